"""Which of a few texts is the answer, and how probable each is: two passes over a small canvas.

The texts' tokens are the paths of a tree. Where a path branches, a row of the batch has the tokens up to there fixed,
and hears only of the branches; a text's probability is the product of its branches', so they sum to 1, however many
tokens each takes.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Prediction, Row
from ..tokens.tokenizer import Tokenizer
from ..writing.sampling import Sampling, accept, renoise

PASSES = 2  # the second hears what the first found, and differs little from a third
MOST = 1000


def read(text: str) -> list[str]:
    """Of a line of CSV. Mistake where there are not two different ones."""
    found = list(dict.fromkeys(choice.strip() for choice in next(csv.reader([text], skipinitialspace=True), [])))
    if len(found) < 2 or not all(found) or len(found) > MOST:
        raise Mistake(f"need 2 to {MOST} choices with commas between them, none of them empty, got {text!r}")
    return found


@dataclass
class Branching:
    """A place of the tree: the tokens up to it, and which choices go on with which token."""

    prefix: tuple[int, ...]
    after: dict[int, list[int]] = field(default_factory=dict)  # token -> choices; that of the end is the stop token


def branchings(texts: Sequence[tuple[int, ...]]) -> list[Branching]:
    """Of texts that differ, none the beginning of another: where there is more than one way to go on."""
    places: dict[tuple[int, ...], Branching] = {}
    for number, text in enumerate(texts):
        for i, token in enumerate(text):
            place = places.setdefault(text[:i], Branching(text[:i]))
            place.after.setdefault(token, []).append(number)
    return [place for place in places.values() if len(place.after) > 1]


def probabilities(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    choices: Sequence[str],
    *,
    sampling: Sampling,
    seed: int = 0,
) -> np.ndarray:
    """[choices] float64, of each as the answer to `tokens`, given that it is one of them. At temperature 1."""
    stop = model.config.stop_ids[0]
    texts = [(*tokenizer.encode(choice), stop) for choice in choices]
    if len(set(texts)) < len(texts):
        raise Mistake("two of the choices are the same in this model's tokens: leave one out")
    length = max(map(len, texts))
    if length > model.config.canvas_length or len(tokens) + length > model.config.max_position_embeddings:
        raise Mistake(f"a choice takes {length} tokens, more than a canvas has room for: shorten it")
    places = branchings(texts)
    cache, found = model.new_cache(len(tokens)), np.zeros(len(texts))
    draw = np.random.default_rng(seed)
    rows = [_row(model, place, texts, cache, draw, length) for place in places]
    for place, prediction in zip(places, _predictions(model, rows, tokens, sampling, draw), strict=True):
        logprobs = prediction.allowed_logprobs[len(place.prefix)].astype(np.float64)
        logprobs -= np.logaddexp.reduce(logprobs)  # which float32 leaves at not quite 0
        allowed = _tokens_at(model, texts, place, len(place.prefix))
        for token, numbers in place.after.items():
            same = [token] if token != stop else list(model.config.stop_ids)
            found[numbers] += np.logaddexp.reduce([logprobs[allowed.index(one)] for one in same])
    return np.exp(found)


def chosen(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    choices: Sequence[str],
    *,
    sampling: Sampling,
    seed: int = 0,
) -> dict[str, Any]:
    """The most probable as "text", and the "probabilities" of all: for --json."""
    values = probabilities(model, tokenizer, tokens, choices, sampling=sampling, seed=seed).tolist()
    best = choices[values.index(max(values))]
    return {"text": best, "probabilities": dict(zip(choices, values, strict=True)), "prompt_tokens": len(tokens)}


def _tokens_at(model: DiffusionModel, texts: Sequence[tuple[int, ...]], place: Branching, position: int) -> list[int]:
    """What may stand there in the choices that come by `place`: a stop token for the end, filler behind it."""
    config, own = model.config, sorted(n for numbers in place.after.values() for n in numbers)
    found = {text[position] if position < len(text) else config.pad_id for text in (texts[n] for n in own)}
    if found & {config.stop_ids[0], config.pad_id}:
        found |= set(config.stop_ids)
    return sorted(found)


def _row(
    model: DiffusionModel,
    place: Branching,
    texts: Sequence[tuple[int, ...]],
    cache: Cache,
    draw: np.random.Generator,
    length: int,
) -> Row:
    canvas = draw.integers(model.config.vocab_size, size=length).astype(np.int32)
    fixed = np.arange(length) < len(place.prefix)
    canvas[fixed] = place.prefix
    allowed = np.array([model.token_set(_tokens_at(model, texts, place, i)) for i in range(length)], np.int32)
    allowed[fixed] = -1
    hint = np.where(fixed, canvas, -1).astype(np.int32)
    return Row(canvas, cache, 1.0, np.zeros(length, np.float32), hint=hint, fixed=fixed, allowed=allowed)


def _predictions(
    model: DiffusionModel, rows: list[Row], tokens: Sequence[int], sampling: Sampling, draw: np.random.Generator
) -> list[Prediction]:
    pending: Sequence[int] = tokens
    for _ in range(PASSES):
        size = len(rows[0].canvas)
        rows = [replace(row, uniforms=draw.random(size, dtype=np.float32), pending=pending) for row in rows]
        predictions = model.denoise(rows)
        noise = [draw.integers(model.config.vocab_size, size=size) for _ in rows]
        rows = [_next(*each, sampling) for each in zip(rows, predictions, noise, strict=True)]
        pending = ()
    return predictions


def _next(row: Row, prediction: Prediction, noise: np.ndarray, sampling: Sampling) -> Row:
    accepted = row.fixed | accept(prediction.entropy, sampling.entropy_bound)
    canvas = np.where(row.fixed, row.canvas, renoise(prediction.sample, accepted, noise)).astype(np.int32)
    return replace(row, canvas=canvas, self_conditioning=prediction.self_conditioning, hint=None)
