"""Choose one of some texts as the answer, and say how probable each is: two passes over a small canvas.

The texts' tokens are the paths of a tree. Where a path branches, a row of the batch has the tokens up to there fixed,
and hears only of the branches; a text's probability is the product of its branches', so they sum to 1, however many
tokens each takes.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import Mistake, need
from ..seam.model import DiffusionModel, Text
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
from ..writing.blocks import Block, Single
from ..writing.clock import Clock
from ..writing.task import Task, complete, texts_to_their_end
from ..writing.writing import Writing

PASSES = 2  # a third would change little
MAX_CHOICES = 1000


def read(text: str) -> list[str]:
    """The choices of a line of CSV. Mistake where there are not two different texts."""
    choices = list(dict.fromkeys(choice.strip() for choice in next(csv.reader([text], skipinitialspace=True), [])))
    several = 2 <= len(choices) <= MAX_CHOICES and all(choices)
    need(several, f"2 to {MAX_CHOICES} choices with commas between them, all different and none empty", f"{text!r}")
    return choices


@dataclass
class Branching:
    """A place of the tree: the tokens up to it, and which choices go on with which token."""

    prefix: tuple[int, ...]
    after: dict[int, list[int]] = field(default_factory=dict)  # token -> choices; that of the end is the stop token


def branchings(texts: Sequence[tuple[int, ...]]) -> list[Branching]:
    """The places where texts, none of them the beginning of another, go on in more than one way."""
    places: dict[tuple[int, ...], Branching] = {}
    for number, text in enumerate(texts):
        for i, token in enumerate(text):
            place = places.setdefault(text[:i], Branching(text[:i]))
            place.after.setdefault(token, []).append(number)
    return [place for place in places.values() if len(place.after) > 1]


def probabilities(
    model: DiffusionModel, tokenizer: Tokenizer, tokens: Sequence[int], choices: Sequence[str], ask: Ask
) -> Task[np.ndarray]:
    """[choices] float64: the probability of each as the answer to `tokens`, given that it is one of them, at
    temperature 1. Past a deadline it is that of the first pass."""
    facts, stop = model.facts, model.facts.stop_ids[0]
    texts = [(*tokenizer.encode(choice), stop) for choice in choices]
    if len(set(texts)) < len(texts):
        raise Mistake("two of the choices are the same in this model's tokens: leave one out")
    length = max(map(len, texts))
    if length > facts.canvas_length or len(tokens) + length > facts.max_position_embeddings:
        raise Mistake(f"a choice takes {length} tokens, more than a canvas has room for: shorten it")
    places, result = branchings(texts), np.zeros(len(texts))
    writings = _writings(model, places, texts, Text(tokens), ask)
    yield from texts_to_their_end(writings)
    for place, writing in zip(places, writings, strict=True):
        position = len(place.prefix)
        logprobs = writing.prediction.allowed_logprobs[position].astype(np.float64)
        logprobs -= np.logaddexp.reduce(logprobs)  # which float32 leaves at not quite 0
        allowed = _tokens_at(model, texts, place, position)
        for token, numbers in place.after.items():
            ids = [token] if token != stop else facts.stop_ids
            result[numbers] += np.logaddexp.reduce(logprobs[np.searchsorted(allowed, ids)])
    return np.exp(result)


def choose(
    model: DiffusionModel, tokenizer: Tokenizer, tokens: Sequence[int], choices: Sequence[str], ask: Ask
) -> dict[str, Any]:
    """The most probable choice as "text", and the "probabilities" of all: for --json."""
    return complete(model, choosing(model, tokenizer, tokens, choices, ask), MAX_CHOICES)


def choosing(
    model: DiffusionModel, tokenizer: Tokenizer, tokens: Sequence[int], choices: Sequence[str], ask: Ask
) -> Task[dict[str, Any]]:
    """As `choose`."""
    values = (yield from probabilities(model, tokenizer, tokens, choices, ask)).tolist()
    best = choices[values.index(max(values))]
    return {"text": best, "probabilities": dict(zip(choices, values, strict=True)), "prompt_tokens": len(tokens)}


def _tokens_at(model: DiffusionModel, texts: Sequence[tuple[int, ...]], place: Branching, position: int) -> list[int]:
    """The tokens that choices through `place` have at `position`: a stop token for the end, filler behind it."""
    facts, numbers = model.facts, sorted(n for numbers in place.after.values() for n in numbers)
    ids = {texts[n][position] if position < len(texts[n]) else facts.pad_id for n in numbers}
    if ids & {facts.stop_ids[0], facts.pad_id}:
        ids |= set(facts.stop_ids)
    return sorted(ids)


def _writings(
    model: DiffusionModel, places: Sequence[Branching], texts: Sequence[tuple[int, ...]], prompt: Text, ask: Ask
) -> list[Writing]:
    """A canvas for each place, all behind one prompt."""
    length, rng, clock = max(map(len, texts)), np.random.default_rng(ask.seed), Clock(ask.deadline, model.now)
    sampling = replace(ask.sampling, max_denoising_steps=PASSES, stop="settled", stability_threshold=PASSES)
    sampling, cache = replace(sampling, t_min=1.0, t_max=1.0), model.new_cache(len(prompt))
    writings = []
    for place in places:
        tokens = np.array([*place.prefix, *[-1] * (length - len(place.prefix))], np.int32)
        sets = [model.token_set(_tokens_at(model, texts, place, i)) for i in range(length)]
        allowed = np.where(tokens < 0, np.arange(length), -1).astype(np.int32)
        block = Block(tokens=tokens, fixed=tokens >= 0, allowed=allowed, token_sets=sets)
        writings.append(Writing(model, prompt, Single(block), sampling, rng, cache, clock))
    return writings
