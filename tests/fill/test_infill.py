"""Gaps in a text: what is around them stays, to the byte, and what is in them is right as often as it can be."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import checkpoints
import infill_rates
import numpy as np
import pytest
from fakes import FakeModel

from mlx_dgemma.errors import Mistake
from mlx_dgemma.fill.held import Alphabet, Held
from mlx_dgemma.fill.infill import Filling, Infill, infill
from mlx_dgemma.load import load
from mlx_dgemma.writing.answer import prompt_tokens
from mlx_dgemma.writing.blocks import Given
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.writing import Writing, steps

BPE = Path(__file__).parents[1] / "fixtures" / "bpe"
ASKED = "Extract JSON: Tess is 40 and works as a vet in Accra."
BEFORE, BEHIND = '{"name": "', '", "age": 40, "job": "vet", "city": "Accra"}'
FEW = Sampling(max_denoising_steps=3)
ODD = "a\r\n\tb  c\n\n▁<0x41><eos>é\u0301天\U0001f9d1\u200d\U0001f680 <|turn> don't 12 345\ufeff\x7f{"


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Random weights under a tokenizer like Gemma's: what it says is noise of every kind of piece."""
    folder = tmp_path_factory.mktemp("bpe")
    shutil.copytree(BPE, folder, dirs_exist_ok=True)
    vocab = len(json.loads((BPE / "tokenizer.json").read_text())["model"]["vocab"]) + 64
    config = checkpoints.config(vocab_size=vocab, eos=(1, 6))
    checkpoints.write(folder, config, checkpoints.weights(config), checkpoints.generation_config(eos_token_id=[1, 6]))
    return load(folder)


@pytest.fixture(params=["tiny", "bpe"])
def loaded(request):
    return request.getfixturevalue(request.param)


def given(tokens: list[int]) -> Given:
    """-1 is not known."""
    known, nothing = np.array(tokens, np.int32), np.full(len(tokens), -1, np.int32)
    return Given(tokens=known, fixed=known >= 0, hint=nothing, allowed=np.where(known < 0, 7, -1).astype(np.int32))


def blocks(tokens: list[int], width: int = 8) -> list[tuple[list[int], list[int]]]:
    """What is encoded before each block, what the block starts from."""
    layout = Held(given(tokens), width, np.full(width, 99))
    found = [layout.first()]
    while not isinstance(following := layout.after(np.zeros(width)), str):
        found.append(following)
    assert following == "stop"
    return [(list(block.before), block.tokens.tolist()) for block in found]


def test_a_text_that_fits_stands_in_one_canvas_and_ends_there():
    assert blocks([2, 3, -1, -1, 4]) == [([], [2, 3, -1, -1, 4, 99, 99, 99])]
    [block] = [Held(given([2, -1]), 4, np.full(4, 99)).first()]
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
    text = given([2, 3, 4, -1, *range(10, 20), -1, 5, 6, 7])
    writing = Writing(model, [9], sampling=Sampling(), layout=Held(text, 4, np.full(4, 1)))
    for step in steps(model, writing):
        assert step.reason == ("stop" if step.final and step.block == 1 else None)  # known stop tokens do not end it
    assert [list(row.pending) for row in model.rows if len(row.pending)] == [
        [9, 2, 3, 4],
        [7, 7, 7, 7, *range(13, 20)],
    ]


@pytest.mark.parametrize("heal", [False, True])
def test_known_text_is_byte_identical(loaded, heal):
    model, tokenizer, _ = loaded
    draw, requests = random.Random(5), []
    for seed in range(12):
        texts = []
        for _ in range(draw.randint(2, 4)):
            first = draw.randrange(len(ODD))
            texts.append(ODD[first : first + draw.randint(1, 60)])
        texts[0], texts[-1] = texts[0][: draw.choice([0, 99])], texts[-1][: draw.choice([0, 99])]
        lengths = [draw.choice([1, 2, 5, 40]) for _ in texts[1:]]
        requests.append(Infill(prompt=[2, 40], texts=texts, lengths=lengths, heal=heal, seed=seed))
    for request, filled in zip(requests, infill(model, tokenizer, requests, sampling=FEW), strict=True):
        rest = filled.text.encode()
        for text, gap in zip(request.texts, [*filled.gaps, ""], strict=True):
            assert rest.startswith(text.encode() + gap.encode())
            rest = rest[len(text.encode() + gap.encode()) :]
        assert rest == b"" and len(filled.gaps) == len(request.texts) - 1


@pytest.mark.parametrize("heal", [False, True])
def test_a_gap_holds_text_and_no_special_token(bpe, heal):
    model, tokenizer, _ = bpe
    alphabet = Alphabet(model, tokenizer)
    request = Infill(prompt=[2, 40], texts=["def f(x):\n    retu", "ing.\n"], lengths=[40], heal=heal)
    filling = Filling(model, alphabet, FEW, request)
    for step in steps(model, filling.writing(0)):
        filling.add(step)
    [span] = filling.spans
    said = filling.tokens[span].tolist()
    assert len(said) == 40 + 2 * heal
    assert not set(said) & set(model.config.stop_ids) and all(tokenizer.piece(token) for token in said)
    assert filling.tokens[: span.start].tolist() == tokenizer.encode("def f(x):\n    retu")[: span.start]
    if heal:  # the seams' own text is still there, in pieces that may hold more
        before, behind = tokenizer.encode("def f(x):\n    retu")[-1], tokenizer.encode("ing.\n")[0]
        assert tokenizer.piece(said[0]).startswith(tokenizer.piece(before))
        assert tokenizer.piece(said[-1]).endswith(tokenizer.piece(behind))


def test_what_a_seam_may_become(bpe):
    model, tokenizer, _ = bpe
    alphabet = Alphabet(model, tokenizer)
    [first] = tokenizer.encode("retu")[-1:]
    longer = [tokenizer.piece(int(i)) for i in model.sets.ids[alphabet.beginning_with(first)]]
    assert len(longer) > 1 and all(piece.startswith(tokenizer.piece(first)) for piece in longer)
    # A token that says no whole character is no seam, nor is the only one between two gaps.
    request = Infill(prompt=[2], texts=["abc \U0001f9d1", "x", " x abc"], lengths=[1, 1], heal=True)
    filling = Filling(model, alphabet, FEW, request)
    assert (filling.healed(0), filling.healed(1)[0]) == (("", ""), "") and filling.healed(1)[1]


def test_the_length_found_says_what_it_says_when_given(tiny):
    model, tokenizer, sampling = tiny
    options = {"prompt": prompt_tokens(tokenizer, ASKED), "texts": [BEFORE, BEHIND], "seed": 3}
    [searched] = infill(model, tokenizer, [Infill(**options)], sampling=sampling)
    [known] = infill(model, tokenizer, [Infill(**options, lengths=[4])], sampling=sampling)
    assert (searched.gaps, searched.lengths, searched.entropy) == (["Tess"], [4], known.entropy)
    [tried] = searched.tried
    assert len(tried) == 4 and max(tried, key=tried.get) == 4 and searched.passes > known.passes == sum(known.steps)


def test_several_gaps_are_searched_and_filled_together(tiny):
    model, tokenizer, sampling = tiny
    texts = ['{"name": "', '", "age": ', ', "job": "', '", "city": "Accra"}']
    request = Infill(prompt=prompt_tokens(tokenizer, ASKED), texts=texts)
    [filled] = infill(model, tokenizer, [request], sampling=sampling)
    assert (filled.gaps, filled.lengths, len(filled.steps)) == (["Tess", "40", "vet"], [4, 2, 3], 1)


def test_alone_and_in_company(loaded):
    model, tokenizer, _ = loaded
    sampling = Sampling(max_denoising_steps=6)
    prompt = [2, *tokenizer.encode("Sort: Lima, Tokyo")]
    requests = [
        Infill(prompt=prompt, texts=["Lima", "Tokyo"], seed=1),
        Infill(prompt=prompt, texts=["", ", Tokyo"], lengths=[20], seed=2),
        Infill(prompt=prompt[:4], texts=["one ", " two ", " three" * 8], lengths=[3, 2], seed=3, heal=True),
        Infill(prompt=prompt, texts=["Lima" * 20, "Tokyo" * 9], lengths=[30], seed=1),
    ]
    alone = [infill(model, tokenizer, [request], sampling=sampling)[0] for request in requests]
    together = infill(model, tokenizer, requests, sampling=sampling, size=3)
    for one, other in zip(alone, together, strict=True):
        assert [one.gaps, one.lengths, one.steps] == [other.gaps, other.lengths, other.steps]


def test_rates(tiny):
    """`infill_rates.py` measures all of it."""
    for name, prompts in (("json", 8), ("reverse", 6), ("code", 5)):
        found = infill_rates.rates(tiny, name, prompts, seed=0)
        assert found["given"] >= found["whole"] and found["searched"] >= found["given"] - 0.1, (name, found)


def test_mistakes_in_python(tiny):
    model, tokenizer, sampling = tiny
    for request, words in (
        (Infill(prompt=[], texts=["a", "b"], lengths=[1]), "prompt is empty"),
        (Infill(prompt=[2], texts=["a", "b"], lengths=[4090]), "a gap of 4090 tokens does not fit"),
        (Infill(prompt=[2], texts=["a" * 5000, "b"]), "the text around it 5001"),
        (Infill(prompt=[2], texts=["a"]), "need gaps"),
        (Infill(prompt=[2], texts=["a", "b"], lengths=[1, 2]), "got 1 and .1, 2."),
        (Infill(prompt=[2], texts=["\udcff", "b"]), "valid Unicode"),
    ):
        with pytest.raises(Mistake, match=words):
            infill(model, tokenizer, [request], sampling=sampling)
    with pytest.raises(Mistake, match="canvas_length <= 64"):
        infill(model, tokenizer, [Infill(prompt=[2], texts=["a", ""])], sampling=Sampling(canvas_length=65))
