"""mlx-lm's files of lines as examples: what is learnt of each, what is left out and counted, what is refused."""

from __future__ import annotations

import json
import random

import checkpoints
import numpy as np
import pytest

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.errors import Mistake
from mlx_dgemma.seam.model import Facts
from mlx_dgemma.tiny.tasks import CAPITALS, LONG, chat, members
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.train.data import Encoder, Examples, batches, read_lines
from mlx_dgemma.train.loss import Example, Recipe, noised

TOKENIZER = Tokenizer(checkpoints.TINY)
CONFIG = parse_config(*read_configs(checkpoints.TINY))
ENCODER = Encoder(TOKENIZER, CONFIG, 200)
END = TOKENIZER.token_id("<turn|>")
FACTS = Facts(vocab_size=50, canvas_length=8, max_position_embeddings=100, stop_ids=(1,), pad_id=0)


def lines(tmp_path, *records):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return read_lines(file)


def example(record) -> Example:
    return ENCODER.example(record)


def test_a_completion_is_a_turn_of_chat():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo <turn|>"}]
    completion, chat = example({"prompt": "Hi", "completion": "Yo <turn|>"}), example({"messages": turns})
    for one in (completion, chat):
        assert one.prompt.tolist() == TOKENIZER.chat(turns[:1])  # what the loop begins with
        assert one.answer.tolist() == [*TOKENIZER.encode("Yo <turn|>"), END]
    assert completion.answer.tolist().count(END) == 1  # a control token that an answer spells is text


def test_a_text_has_no_prompt_but_its_beginning():
    one = example({"text": "Hi", "other": 1})
    assert one.prompt.tolist() == [TOKENIZER.bos_token_id]
    assert one.answer.tolist() == [*TOKENIZER.encode("Hi"), TOKENIZER.eos_token_id]


def test_only_the_last_turn_is_the_answer():
    turns = [{"role": r, "content": c} for r, c in (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))]
    one = example({"messages": [*turns, {"role": "assistant", "content": "d"}]})
    assert one.prompt.tolist() == TOKENIZER.chat(turns) and one.answer.tolist() == [*TOKENIZER.encode("d"), END]


def test_a_tool_call_is_learnt_as_the_template_writes_it(tmp_path):
    """Published templates open the answer with an empty channel, write calls, and stop before their results."""
    template = (
        "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}call:{{ c.function.name }}{% endfor %}<turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn>assistant\n#{% endif %}"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((checkpoints.TINY / name).read_text())
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(tmp_path)
    turns = [{"role": "user", "content": "Hi"}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    one = Encoder(tokenizer, CONFIG, 200).example({"messages": [*turns, call], "tools": [{"name": "f"}]})
    assert one.prompt.tolist() == tokenizer.chat(turns)
    assert tokenizer.decode(one.answer, skip_special_tokens=False) == "call:f<turn|>"


def test_what_is_too_long_is_counted_and_named(tmp_path):
    records = lines(tmp_path, {"text": "a" * 500}, {"text": "b"}, {"text": "c" * 600})
    made = ENCODER.examples("train", records)
    assert len(made) == 1 and sum(made.dropped.values()) == 2
    assert "2 left out: longer than 200 tokens" in made.report and "line 1, 502 tokens" in made.report


def test_what_no_context_holds_is_left_out_as_well(tmp_path):
    """The tokenizer of a model counts no further than its context, as it does where a prompt is answered."""
    encoder = Encoder(Tokenizer(checkpoints.TINY, 500), CONFIG, 200)
    enormous = "a " * 1_000_000
    made = encoder.examples(
        "train", lines(tmp_path, {"text": "b"}, {"text": enormous}, {"prompt": enormous, "completion": "c"})
    )
    assert len(made) == 1 and "2 left out: longer than 200 tokens" in made.report and "line 2, first" in made.report


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "a", "completion": " "}, "line 2: the answer is empty"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "line 2: the last turn must be the assistant's"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 2: the last turn"),
        ({"messages": "a"}, "line 2: messages must be a list"),
        ({"prompt": 5, "completion": "a"}, r"line 2: messages\[0\].content: need a text"),
        ('{"prompt": NaN, "completion": "a"}', r"line 2: messages\[0\].content: need a text"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, r"line 2: messages\[0\].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "line 2: .* no pictures"),
        ({"messages": [{"role": "assistant", "tool_calls": "a"}]}, "line 2: .* need a list of calls"),
        ({"prompt": "a", "completion": "b", "tools": "c"}, "line 2: need a list of tools"),
        ({"text": ""}, "line 2: text must be"),
        ({"prompt": "a"}, "line 2: need messages, prompt and completion, or text; got prompt"),
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 must be a JSON object"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, record, words):
    with pytest.raises(Mistake, match=words) as caught:
        ENCODER.examples("train", lines(tmp_path, {"text": "a"}, record))
    assert "train.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def of_lengths(*lengths) -> Examples:
    made = [Example(np.zeros(1, np.int32), np.full(n, i, np.int32)) for i, n in enumerate(lengths)]
    return Examples("train", made, [""] * len(made))


def test_an_epoch_has_every_example_and_a_batch_all_kinds():
    examples = of_lengths(*[5] * 12, *[40] * 12)
    stream = batches(examples, 8, seed=1)
    epoch = [next(stream) for _ in range(3)]
    assert sorted(place for batch in epoch for place in batch) == list(range(24))
    assert all(len({examples.examples[place].length for place in batch}) == 2 for batch in epoch)
    again = batches(examples, 8, seed=1)
    assert [next(again) for _ in range(3)] == epoch
    assert [next(stream) for _ in range(3)] != epoch
    uneven = batches(of_lengths(*range(1, 24)), 5, seed=1)
    assert {place for _ in range(5) for place in next(uneven)} == set(range(23))
    with pytest.raises(Mistake, match="fewer than a batch"):
        next(batches(examples, 25, seed=1))


def test_noise_is_as_the_recipe_says():
    rng = np.random.default_rng(0)
    example = Example(np.arange(2, 7, dtype=np.int32), np.arange(10, 30, dtype=np.int32))  # three canvases of 8
    drawn = noised([example] * 3000, FACTS, 1, Recipe(t_one=0.25), rng)
    starts, counts = np.unique(drawn.canvases.starts, return_counts=True)
    assert starts.tolist() == [5, 13, 21] and counts.min() > 900
    clean = drawn.clean.reshape(-1, 8)
    assert clean[drawn.canvases.starts == 21][0].tolist() == [26, 27, 28, 29, 1, 1, 1, 1]  # the fill is learnt, too
    assert abs((drawn.t == 1).mean() - 0.25) < 0.03 and abs(drawn.conditioned.mean() - 0.5) < 0.03
    changed = (drawn.canvases.tokens != clean).mean(axis=1)
    for low, high in ((0, 0.2), (0.4, 0.6), (0.99, 1)):
        inside = (drawn.t >= low) & (drawn.t <= high)
        assert abs(changed[inside].mean() - drawn.t[inside].mean() * 49 / 50) < 0.03
    assert len(drawn.places) == 3000 * 20 and drawn.following[:20].tolist() == example.answer.tolist()
    assert drawn.places[:2].tolist() == [4, 5] and drawn.places[20] == 25 + 4
    everything = noised([example] * 2, FACTS, 1, Recipe(mask_prompt=False), rng)
    assert everything.places.tolist() == [*range(24), *range(25, 49)]


def test_canvases_begin_inside_the_answer_if_asked():
    example = Example(np.arange(2, 7, dtype=np.int32), np.arange(10, 30, dtype=np.int32))
    drawn = noised([example] * 1000, FACTS, 1, Recipe(inside=0.5), np.random.default_rng(0))
    starts = drawn.canvases.starts
    assert set(starts.tolist()) == set(range(5, 25))
    assert abs(np.isin(starts, (5, 13, 21)).mean() - (0.5 + 0.5 * 3 / 20)) < 0.05
    clean = drawn.clean.reshape(-1, 8)
    assert clean[starts == 23][0].tolist() == [28, 29, 1, 1, 1, 1, 1, 1]


def test_what_the_embedded_model_learnt():
    r = random.Random(0)
    for prompt, answer in (members(r) for _ in range(50)):
        names, sentence = prompt.removeprefix("Extract JSON of ").split(": ", 1)
        found = json.loads(answer)
        assert list(found) == names.split(", ") and all(str(value) in sentence for value in found.values())
    for name in ("people", "functions"):
        lengths = [len(LONG[name](r)[1]) for _ in range(50)]
        assert min(lengths) > 40 and max(lengths) > 128  # of three canvases of 64 bytes
    turns = [chat(r, "sort") for _ in range(400)]
    capitals = [each for each in turns if each[0]["content"] == CAPITALS]
    assert capitals and all(each[-1]["content"].isupper() for each in capitals)
    assert {len(each) for each in turns} == {2, 3, 4}
