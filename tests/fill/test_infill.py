"""Gaps in a text: what is around them stays, to the byte, and what is in them is right as often as it can be."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import checkpoints
import infill_rates
import numpy as np
import pytest
from fakes import FakeModel
from scripted import Counting, Slipping, Timed

from mlx_dgemma.errors import Mistake
from mlx_dgemma.fill.gap_length import search
from mlx_dgemma.fill.held import Alphabet, Held
from mlx_dgemma.fill.infill import Filling, Infill, infill
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import PIECE, run
from mlx_dgemma.writing.blocks import Block, Layout
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.task import complete
from mlx_dgemma.writing.verify import Verify
from mlx_dgemma.writing.writing import Writing

BPE = Path(__file__).parents[1] / "fixtures" / "bpe"
ASKED = "Extract JSON: Tess is 40 and works as a vet in Accra."
BEFORE, BEHIND = '{"name": "', '", "age": 40, "job": "vet", "city": "Accra"}'
FEW = Ask(sampling=Sampling(max_denoising_steps=3))
SLOW = pytest.mark.slow
ODD = "a\r\n\tb  c\n\n▁<0x41><eos>é\u0301天\U0001f9d1\u200d\U0001f680 <|turn> don't 12 345\ufeff\x7f{"


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Random weights under a tokenizer like Gemma's: it writes noise of every kind of piece."""
    folder = tmp_path_factory.mktemp("bpe")
    shutil.copytree(BPE, folder, dirs_exist_ok=True)
    vocab = len(json.loads((BPE / "tokenizer.json").read_text())["model"]["vocab"]) + 64
    config = checkpoints.config(vocab_size=vocab, eos=(1, 6))
    checkpoints.write(folder, config, checkpoints.weights(config), checkpoints.generation_config(eos_token_id=[1, 6]))
    return load(folder)


@pytest.fixture(params=[pytest.param("tiny", marks=pytest.mark.slow), "bpe"])
def loaded(request):
    return request.getfixturevalue(request.param)


def known(tokens: list[int]) -> Block:
    """-1 is not known."""
    ids, nothing = np.array(tokens, np.int32), np.full(len(tokens), -1, np.int32)
    return Block(tokens=ids, fixed=ids >= 0, hint=nothing, allowed=np.where(ids < 0, 7, -1).astype(np.int32))


def held(tokens: list[int], width: int, filler: int = 99) -> Layout:
    return Held(known(tokens), np.full(width, filler))


def blocks(tokens: list[int], width: int = 8) -> list[tuple[list[int], list[int]]]:
    """What is encoded before each block, what the block starts from."""
    layout = held(tokens, width)
    made = [layout.first()]
    while not isinstance(after := layout.after(np.zeros(width)), str):
        made.append(after)
    assert after == "stop"
    return [(block.before.tokens.tolist(), block.tokens.tolist()) for block in made]


def test_a_text_that_fits_stands_in_one_canvas_and_ends_there():
    assert blocks([2, 3, -1, -1, 4]) == [([], [2, 3, -1, -1, 4, 99, 99, 99])]
    block = held([2, -1], 4).first()
    assert block.fixed.tolist() == [True, False, True, True] and block.allowed.tolist() == [-1, 7, -1, -1]


def test_otherwise_a_canvas_begins_with_a_gap():
    long = list(range(10, 20))
    assert blocks([*long, -1, -1, 4]) == [(long, [-1, -1, 4, 99, 99, 99, 99, 99])]
    # Known text is held by its beginning.
    assert blocks([2, -1, *long]) == [([2], [-1, *long[:7]])]
    # A gap longer than a canvas goes on in the next.
    assert blocks([2, *[-1] * 11, 4]) == [([2], [-1] * 8), ([], [-1, -1, -1, 4, 99, 99, 99, 99])]
    # Known text between two gaps is encoded, as far as it was not in the canvas of the first.
    assert blocks([2, -1, *long, -1, 4]) == [([2], [-1, *long[:7]]), ([], [*long[7:], -1, 4, 99, 99, 99])]
    assert blocks([2, -1, *long, -1, *long]) == [([2], [-1, *long[:7]]), (long[7:], [-1, *long[:7]])]


def test_what_comes_before_a_block_is_encoded_with_the_block_before_that():
    model = FakeModel([([7] * 4, [])])
    text = replace(known([2, 3, 4, -1, *range(10, 20), -1, 5, 6, 7]), allowed=np.full(18, -1))
    layout = Held(text, np.full(4, 1))
    for step in run(model, [Writing(model, Text([9]), layout, Sampling(), np.random.default_rng(0))]):
        assert step.reason == ("stop" if step.final and step.block == 1 else None)  # known stop tokens do not end it
    assert [row.pending.tokens.tolist() for row in model.rows if len(row.pending)] == [
        [9, 2, 3, 4],
        [7, 7, 7, 7, *range(13, 20)],
    ]


@pytest.mark.parametrize("heal", [pytest.param(False, marks=SLOW), True])
def test_known_text_is_byte_identical(loaded, heal):
    model, tokenizer, _ = loaded
    draw, requests = random.Random(5), []
    for seed in range(6):
        texts = []
        for _ in range(draw.randint(2, 4)):
            first = draw.randrange(len(ODD))
            texts.append(ODD[first : first + draw.randint(1, 60)])
        texts[0], texts[-1] = texts[0][: draw.choice([0, 99])], texts[-1][: draw.choice([0, 99])]
        lengths = [draw.choice([1, 2, 5, 40]) for _ in texts[1:]]
        requests.append(Infill(prompt=[2, 40], texts=texts, lengths=lengths, heal=heal, ask=replace(FEW, seed=seed)))
    for request, filled in zip(requests, infill(model, tokenizer, requests), strict=True):
        rest = filled.text.encode()
        for text, gap in zip(request.texts, [*filled.gaps, ""], strict=True):
            assert rest.startswith(text.encode() + gap.encode())
            rest = rest[len(text.encode() + gap.encode()) :]
        assert rest == b"" and len(filled.gaps) == len(request.texts) - 1


@pytest.mark.parametrize("heal", [False, True])
def test_a_gap_holds_text_and_no_special_token(bpe, heal):
    model, tokenizer, _ = bpe
    alphabet = Alphabet(model, tokenizer)
    request = Infill(prompt=[2, 40], texts=["def f(x):\n    retu", "ing.\n"], lengths=[40], heal=heal, ask=FEW)
    filling = Filling(model, alphabet, request)
    for step in run(model, [filling.writing(0)]):
        filling.add(step)
    [span] = filling.spans
    gap = filling.tokens[span].tolist()
    assert len(gap) == 40 + 2 * heal
    assert not set(gap) & set(model.facts.stop_ids) and all(tokenizer.piece(token) for token in gap)
    assert filling.tokens[: span.start].tolist() == tokenizer.encode("def f(x):\n    retu")[: span.start]
    if heal:  # the seams' own text is still there, in pieces that may hold more
        before, behind = tokenizer.encode("def f(x):\n    retu")[-1], tokenizer.encode("ing.\n")[0]
        assert tokenizer.piece(gap[0]).startswith(tokenizer.piece(before))
        assert tokenizer.piece(gap[-1]).endswith(tokenizer.piece(behind))


def test_what_a_seam_may_become(bpe):
    model, tokenizer, _ = bpe
    alphabet = Alphabet(model, tokenizer)
    [first] = tokenizer.encode("retu")[-1:]
    longer = [tokenizer.piece(int(i)) for i in alphabet.sets[alphabet.beginning_with(first)].ids]
    assert len(longer) > 1 and all(piece.startswith(tokenizer.piece(first)) for piece in longer)
    # A token that is no whole character is no seam, nor is the only one between two gaps.
    request = Infill(prompt=[2], texts=["abc \U0001f9d1", "x", " x abc"], lengths=[1, 1], heal=True)
    filling = Filling(model, alphabet, request)
    assert (filling.healed(0), filling.healed(1)[0]) == (("", ""), "") and filling.healed(1)[1]


def test_the_length_found_gives_what_it_gives_when_given(tiny):
    model, tokenizer, sampling = tiny
    request = Infill(prompt=prompt_tokens(tokenizer, ASKED), texts=[BEFORE, BEHIND], ask=Ask(sampling=sampling, seed=3))
    [searched] = infill(model, tokenizer, [request])
    [given] = infill(model, tokenizer, [replace(request, lengths=[4])])
    assert (searched.gaps, searched.lengths, searched.entropy) == (["Tess"], [4], given.entropy)
    [tried] = searched.tried
    assert len(tried) == 4 and max(tried, key=tried.get) == 4 and searched.passes > given.passes == sum(given.steps)


def three_gaps(tiny, **ask) -> Infill:
    texts = ['{"name": "', '", "age": ', ', "job": "', '", "city": "Accra"}']
    return Infill(prompt=prompt_tokens(tiny[1], ASKED), texts=texts, ask=Ask(sampling=tiny[2], **ask))


@pytest.mark.slow
def test_several_gaps_are_searched_and_filled_together(tiny):
    shown = []
    [filled] = infill(*tiny[:2], [three_gaps(tiny)], show=shown.append)
    assert len(shown) == filled.passes
    assert (filled.gaps, filled.lengths, len(filled.steps)) == (["Tess", "40", "vet"], [4, 2, 3], 1)


@pytest.mark.slow
def test_alone_and_in_company(loaded):
    model, tokenizer, _ = loaded
    ask = Ask(sampling=Sampling(max_denoising_steps=2), seed=1)
    prompt = [2, *tokenizer.encode("Sort: Lima, Tokyo")]
    requests = [
        Infill(prompt=prompt, texts=["Lima", "Tokyo"], tries=2, ask=ask),
        Infill(prompt=prompt, texts=["", ", Tokyo"], lengths=[20], ask=replace(ask, seed=2)),
        Infill(
            prompt=prompt[:4],
            texts=["one ", " two ", " three" * 8],
            lengths=[3, 2],
            heal=True,
            ask=replace(ask, seed=3),
        ),
        Infill(prompt=prompt, texts=["Lima" * 20, "Tokyo" * 9], lengths=[30], ask=ask),
        Infill(prompt=prompt, texts=["Lima", "Tokyo"], lengths=[70], ask=replace(ask, verify=True)),
    ]
    alone = [infill(model, tokenizer, [request])[0] for request in requests]
    together = infill(model, tokenizer, requests, size=3)
    for one, other in zip(alone, together, strict=True):
        assert [one.gaps, one.lengths, one.steps, one.notes] == [other.gaps, other.lengths, other.steps, other.notes]


def around_gaps(filled, texts) -> None:
    """Known text is there, to the byte."""
    rest = filled.text
    for text, gap in zip(texts, [*filled.gaps, ""], strict=True):
        assert rest.startswith(text + gap)
        rest = rest[len(text + gap) :]
    assert rest == ""


def test_a_gap_that_is_verified(tiny):
    """The likeliest tokens of a repaired gap are the right ones, and what is around it stands."""
    model, tokenizer, sampling = tiny
    hasty = replace(sampling, max_denoising_steps=2)
    prompt = "Reverse: clerk, Kofi, Eve, Turin, Noor, Cara"
    request = Infill(
        prompt=prompt_tokens(tokenizer, prompt),
        texts=["Cara, ", ", Kofi, clerk"],
        lengths=[16],
        ask=Ask(sampling=hasty),
    )
    [plain] = infill(Slipping(model, 8), tokenizer, [request])
    [checked] = infill(Slipping(model, 8), tokenizer, [replace(request, ask=replace(request.ask, verify=True))])
    around_gaps(checked, request.texts)
    assert plain.gaps == ["Nopr, Turin, Eve"] and checked.gaps == ["Noor, Turin, Eve"]
    assert checked.notes and all("written again from token" in note for note in checked.notes)
    assert checked.finish_reason == "stop" and checked.passes > plain.passes


@pytest.mark.parametrize("deadline", [0.5, *(pytest.param(n, marks=SLOW) for n in (3, 12, 30))])
def test_a_deadline_in_the_search(tiny, deadline):
    """Passes take a second. Whatever is known of the gaps by then is written, and nothing around them changes."""
    model, tokenizer, _ = tiny
    request = three_gaps(tiny, deadline=deadline)
    [filled] = infill(Timed(model), tokenizer, [request])
    around_gaps(filled, request.texts)
    assert filled.finish_reason in ("stop", "deadline") and all(filled.gaps) and len(filled.lengths) == 3
    assert filled.finish_reason == "deadline" or filled.gaps == ["Tess", "40", "vet"]
    assert (deadline == 0.5) <= (filled.finish_reason == "deadline")


@pytest.mark.parametrize("deadline", [4, *(pytest.param(n, marks=SLOW) for n in (2, 3, 6, 7, 100))])
def test_a_deadline_between_blocks(tiny, deadline):
    """Three gaps in three canvases, three passes each: those that nothing was drafted for are empty."""
    model, tokenizer, _ = tiny
    texts = ["one " * 20, " two " * 20, " three " * 20, " four"]
    request = Infill(prompt=[2, 40], texts=texts, lengths=[5, 6, 7], ask=replace(FEW, deadline=deadline))
    [filled] = infill(Timed(model), tokenizer, [request])
    around_gaps(filled, texts)
    blocks = len(filled.steps)
    assert filled.finish_reason == ("stop" if deadline == 100 else "deadline")
    assert blocks == (3 if deadline == 100 else -(-deadline // 3)) and sum(filled.steps) == min(deadline, 9)
    assert [bool(gap) for gap in filled.gaps] == [True] * blocks + [False] * (3 - blocks)


def test_mode_ar_is_refused(tiny):
    with pytest.raises(Mistake, match="a gap is denoised: leave out mode 'ar'"):
        infill(*tiny[:2], [Infill(prompt=[2], texts=["a", "b"], lengths=[1], ask=Ask(mode="ar"))])


@pytest.mark.slow
def test_rates(tiny):
    """`infill_rates.py` measures all of it."""
    for name, prompts in (("json", 2), ("reverse", 1), ("code", 1)):
        rates = infill_rates.rates(tiny, name, prompts, seed=0)
        assert rates["given"] >= rates["whole"] and rates["searched"] >= rates["given"] - 0.1, (name, rates)


def test_mistakes_in_python(tiny):
    model, tokenizer, _ = tiny
    for request, words in (
        (Infill(prompt=[], texts=["a", "b"], lengths=[1]), "prompt is empty"),
        (Infill(prompt=[2], texts=["a", "b"], lengths=[4090]), "a gap of 4090 tokens does not fit"),
        (Infill(prompt=[2], texts=["a" * 5000, "b"]), "the text around it 5001"),
        (Infill(prompt=[2], texts=["a"]), "need gaps"),
        (Infill(prompt=[2], texts=["a", "b"], lengths=[1, 2]), "got 1 and .1, 2."),
        (Infill(prompt=[2], texts=["\udcff", "b"]), "valid Unicode"),
    ):
        with pytest.raises(Mistake, match=words):
            infill(model, tokenizer, [request])
    wide = Ask(sampling=Sampling(canvas_length=65))
    with pytest.raises(Mistake, match="canvas_length <= 64"):
        infill(model, tokenizer, [Infill(prompt=[2], texts=["a", ""], ask=wide)])


@pytest.mark.slow
def test_known_text_is_encoded_once(tiny):
    """The text before the gap is longer than a canvas; so is one of the lengths that are tried."""
    model, tokenizer, _ = tiny
    counting, before = Counting(model), "one two three four five six seven " * 5
    request = Infill(prompt=[2, 40], texts=[before, " end"], first_lengths=[80], ask=FEW)
    filling = Filling(counting, Alphabet(counting, tokenizer), request)
    length = 2 + len(tokenizer.encode(before))
    gap = filling.next_gap()
    gap.sampling = Sampling(max_denoising_steps=1)  # so that blocks are done
    [result] = complete(counting, search(counting, [gap], 4), 4)
    assert 80 in result.scores
    assert [cache.length for cache in filling.caches.values()] == [2, length]
    counting.encoded, filling.lengths = 0, [5]
    list(run(counting, [writing := filling.writing(0)]))
    assert (counting.encoded, writing.cache.length) == (0, length)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("prompt", "words", "pieces"), [(3, 3, 0), (PIECE + 1, 3, 2), (3, PIECE // 3, 2), (PIECE + 1, PIECE // 3, 4)]
)
def test_what_is_long_is_read_in_pieces(tiny, prompt, words, pieces):
    model, tokenizer, _ = tiny
    request = Infill(prompt=[2] * prompt, texts=["one " * words, "end"])
    filling = Filling(model, Alphabet(model, tokenizer), request)
    assert len(list(filling.read())) == pieces


def test_a_known_stop_token_does_not_cut_what_a_check_commits():
    text = [2, -1, 1, *range(10, 17), -1, 5, 6, 7]
    model = FakeModel([([7, 1, 10, 11], [])] * 2 + [([8, 5, 6, 7], [])] * 2)
    layout = Held(replace(known(text), allowed=np.full(len(text), -1)), np.full(4, 1))
    writing = Writing(model, Text([9]), layout, Sampling(), np.random.default_rng(0), check=Verify())
    steps = list(run(model, [writing]))
    assert [step.reason for step in steps if step.final] == [None, "stop"]
    assert writing.cache.tokens == [9, 2, 7, 1, *range(10, 17), 8, 5, 6, 7]


def test_a_healed_gap_that_a_deadline_leaves_as_it_was_searched(tiny):
    """Its seams are the known tokens: nothing of the gap itself is taken for them."""
    model, tokenizer, sampling = Timed(tiny[0]), tiny[1], tiny[2]
    texts = ["one " * 20, " two " * 20, " three"]
    ask = Ask(sampling=sampling, deadline=0.5)
    filling = Filling(
        model, alphabet := Alphabet(model, tokenizer), Infill(prompt=[2], texts=texts, heal=True, ask=ask)
    )
    while not filling.complete:
        filling.add_result(complete(model, search(model, [filling.next_gap()], 8), 8)[0])
    for step in run(model, [filling.writing(0)]):
        filling.add(step)
    filled = filling.filled()
    around_gaps(filled, texts)
    assert (filled.finish_reason, len(filled.steps)) == ("deadline", 1)
    assert filled.gaps[1] == alphabet.decode(filling.results[1].tokens) != ""
