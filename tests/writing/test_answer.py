"""Steps -> text, on both tokenizers."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
from fakes import facts

from mlx_dgemma import stream_generate
from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load, load_model
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.tokens.stream import split_thinking
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.diffuse import diffuse
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.writing import Step

BPE = Path(__file__).parents[1] / "fixtures" / "bpe"
FOLDERS = {"bytes": checkpoints.TINY, "bpe": BPE}
SUDOKU = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
EURO = "costs 5 €, naïve 🧑‍🚀 ok"


@pytest.fixture(params=FOLDERS)
def tokenizer(request):
    return Tokenizer(FOLDERS[request.param])


def steps(tokens: list[int], length: int, reason: str, passes: int = 3):
    """Blocks of `length` of these tokens, the last padded with stop tokens; drafts of the passes before are noise."""
    blocks = [tokens[i : i + length] for i in range(0, len(tokens), length)]
    for block, content in enumerate(blocks):
        for step in range(passes):
            final = step == passes - 1
            draft = np.array(content + [1] * (length - len(content))) if final else np.arange(length)
            zeros = np.zeros(length)
            last = final and block == len(blocks) - 1
            yield Step(
                request=0, block=block, step=step, canvas=draft, draft=draft, accepted=zeros > 0, entropy=zeros,
                final=final, reason=reason if last else None,
            )  # fmt: skip


@pytest.mark.parametrize("length", [3, 8, 64])
def test_text_comes_as_blocks_finish_and_is_never_cut_inside_a_character(tokenizer, length):
    tokens = [*tokenizer.encode(EURO), 1]
    answer = Answer(facts(canvas_length=length), tokenizer, 1000)
    pieces = [answer.add(step)[1] for step in steps(tokens, length, "stop")]
    assert "".join(pieces) == answer.text == EURO
    assert all(piece == "" for i, piece in enumerate(pieces) if i % 3 != 2)  # nothing before a block is final
    assert answer.finish_reason == "stop" and answer.tokens == tokens
    assert answer.steps_per_block == [3] * -(-len(tokens) // length)
    assert answer.tokens_per_forward == len(tokens) / answer.steps


def test_cut_at_max_tokens(tokenizer):
    tokens = [*tokenizer.encode("one two three four five six seven eight"), 1]
    answer = Answer(facts(canvas_length=64), tokenizer, 5)
    for step in steps(tokens, 64, "stop"):
        answer.add(step)
    assert answer.tokens == tokens[:5] and answer.finish_reason == "length"
    assert answer.text == tokenizer.decode(tokens[:5])
    assert answer.tokens_per_forward == len(tokens) / 3  # of the whole canvas, as transformers counts


def test_pads_are_not_counted(tokenizer):
    answer = Answer(facts(canvas_length=8), tokenizer, 100)
    for step in steps([0, 0, 20, 21, 1], 8, "stop", passes=1):
        answer.add(step)
    assert answer.tokens_per_forward == 3


def test_thinking_is_split_from_the_answer(tokenizer):
    tokens = [*tokenizer.encode("<|channel>thought\nso, 1 + 1<channel|>2", special_tokens=True), 1]
    answer = Answer(facts(canvas_length=4), tokenizer, 100)
    for step in steps(tokens, 4, "stop"):
        answer.add(step)
    assert (answer.thinking, answer.text) == ("so, 1 + 1", "2")


@pytest.mark.parametrize(
    ("stop", "kept"), [("b", "<|channel>thought\nb<channel|>a"), ("c", "<|channel>thought\nb<channel|>abé")]
)
def test_tokens_before_a_stop_are_those_of_what_is_shown(tokenizer, stop, kept):
    tokens = [*tokenizer.encode("<|channel>thought\nb<channel|>abécab", special_tokens=True), 1]
    answer = Answer(facts(canvas_length=4), tokenizer, 100, stops=[stop])
    for step in steps(tokens, 4, "stop"):
        answer.add(step)
        if answer.finish_reason:
            break
    assert (answer.finish_reason, answer.found_stop) == ("stop", stop)
    thinking, text = split_thinking(tokenizer, answer.tokens_before_stop)
    assert (tokenizer.decode(thinking), tokenizer.decode(text)) == ("b", kept.partition("<channel|>")[2])


def test_a_prompt_may_be_a_conversation(tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert prompt_tokens(tokenizer, turns, system="s") == tokenizer.chat([{"role": "system", "content": "s"}, *turns])
    for empty in ("", "  \n", [], [{"role": "user", "content": ""}]):
        with pytest.raises(ValueError, match="prompt is empty"):
            prompt_tokens(tokenizer, empty)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.sample(1)
def test_a_random_model_with_a_large_vocabulary(tmp_path, seed):
    """Whatever comes out of it: the pieces are the whole text, and the ids are those of the kept tokens."""
    tokenizer = Tokenizer(BPE)
    config = checkpoints.config(vocab_size=tokenizer.vocab_size)
    folder = checkpoints.write(tmp_path, config, checkpoints.weights(config, seed=seed, peaked=10))
    model = load_model(Checkpoint(folder, parse_config(config, checkpoints.generation_config())), "mlx", "float32")
    ask = Ask(max_tokens=40, sampling=Sampling(max_denoising_steps=3), seed=seed)
    pieces = list(stream_generate(model, tokenizer, "Why is the sky blue?", ask))
    tokens = prompt_tokens(tokenizer, "Why is the sky blue?")
    written = [t for step in diffuse(model, tokens, ask) if step.final for t in step.draft.tolist()][:40]
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(split_thinking(tokenizer, written)[1])
    assert pieces[-1].finish_reason == "length" and all(p.finish_reason is None for p in pieces[:-1])


def test_the_embedded_model_answers():
    model, tokenizer, sampling = load()
    pieces = list(stream_generate(model, tokenizer, SUDOKU, Ask(sampling=sampling)))
    assert "".join(piece.text for piece in pieces) == "4213\n3124\n1342\n2431"


@pytest.mark.parametrize("length", [3, 64])
def test_tool_calls_are_no_part_of_the_text(length):
    tokenizer = Tokenizer(BPE)
    calls = '<|tool_call>call:a{x:<|"|>1<|"|>}<tool_call|><|tool_call>call:b{}<tool_call|>'
    answer = Answer(facts(canvas_length=length), tokenizer, 1000)
    for step in steps([*tokenizer.encode(f"one {calls}two", special_tokens=True), 1], length, "stop"):
        answer.add(step)
    assert answer.text == "one two" and list(map(str, answer.calls)) == ['a{"x": "1"}', "b{}"]
    calls = answer.statistics(1)["tool_calls"]
    assert calls[0] == {"id": "call_0", "type": "function", "function": {"name": "a", "arguments": '{"x": "1"}'}}
    assert [call["id"] for call in calls] == ["call_0", "call_1"]


def test_tokens_a_second_of_prompt_and_answer(tokenizer, monkeypatch):
    """The first pass ends after 5 s, each that follows takes 1 s: so the prompt took 4."""
    clock = iter([100.0, 105.0, 106.0, 107.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    answer = Answer(facts(canvas_length=64), tokenizer, 1000)
    tokens = tokenizer.encode("one two three")
    passes = list(steps(tokens, 64, "stop"))
    answer.add(passes[0])
    assert answer.statistics(80)["prompt_tokens_per_second"] is None
    for step in passes[1:]:
        answer.add(step)
    numbers = answer.statistics(80)
    assert numbers["prompt_tokens_per_second"] == 80 / 4.0
    assert numbers["tokens_per_second"] == len(answer.tokens) / 3
