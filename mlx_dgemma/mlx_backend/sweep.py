"""One sweep over the vocabulary, in slices: head, softcap, temperature, argmax, entropy, draw, and the mean embeddings
that the next pass is conditioned on. The logits [T, V] are never whole.

A running maximum and sums that are rescaled when it rises, as in attention over blocks of keys. The draw inverts the
cumulative distribution in vocabulary order: the sums of small blocks show in which of them each position's token lies,
and that block is computed again, the table taken as so many experts.

The mean embedding of a position (its soft embedding) is a sum over few tokens where the distribution is peaked: those
within `REACH` nats of the top, kept as lists. Where the rest of the mass matters, all of the table is summed up while
its slice is at hand; which positions those will be is known from the last pass, and a wrong guess is made good by
`vocabulary.SoftEmbedding`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .layers import Embedding, Linear, compiled

SLICES = 32  # at least
BLOCK = 64  # tokens whose weights are summed for the draw, which reads that many rows of the table a position again
WIDEST = 4096  # of a slice: its logits, of 256 positions, are 4 MB, and a dozen arrays of that size are at hand
LISTED = {mx.bfloat16, mx.float16}  # activations for which lists are kept: exact enough for float32 they are too long
KEPT = 256  # tokens that the list of a position holds
REACH = {mx.float32: 16.0, mx.bfloat16: 10.0, mx.float16: 10.0}  # nats below the top
LOST = {mx.float32: 2e-6, mx.bfloat16: 2.0**-9, mx.float16: 2.0**-11}  # share of the mass that a list may leave out
LOWEST = -1e30  # of a running maximum: finite, so that differences stay numbers
BARRED = -1e31  # the logit of a token that is not allowed


def block_of(width: int) -> int:
    """Tokens of a block in slices of that width."""
    return BLOCK if width % BLOCK == 0 else width


class Slices:
    """The embedding in slices of equal width, each a `Linear`; and in blocks, finer than these, as experts."""

    def __init__(self, table: Embedding):
        self.table, vocabulary = table, table.weight.shape[0]
        count = max(SLICES, vocabulary // WIDEST)
        self.width = vocabulary // count if vocabulary % count == 0 and vocabulary // count >= KEPT else vocabulary
        self.parts = [table.part(first, first + self.width) for first in range(0, vocabulary, self.width)]
        self.blocks = table.as_experts(vocabulary // block_of(self.width))


@dataclass
class SweepInputs:
    """T positions, those of all rows of a call one after another."""

    hidden: mx.array  # [T, D], normed
    temperature: mx.array  # [T] float32
    uniforms: mx.array  # [T] float32
    heavy: np.ndarray  # [T] bool: expected to need the whole table for their soft embedding
    allowed: mx.array | None = None  # [sets, V] bool
    allowed_index: mx.array | None = None  # [T] into `allowed`


@dataclass
class SweepResult:
    """The predictions of T positions. Lazy."""

    argmax: mx.array  # [T] int32
    sample: mx.array  # [T] int32
    entropy: mx.array  # [T] float32, nats
    confidence: mx.array  # [T] float32, the probability of `sample`
    top: mx.array  # [T] float32, the probability of `argmax`
    normaliser: mx.array  # [T] float32: logsumexp of the processed logits
    lost: mx.array  # [T] float32: share of the mass outside the lists
    tokens: mx.array  # [T, KEPT] int32
    shares: mx.array  # [T, KEPT] float32, 0 where there is no token
    soft: mx.array  # [heavy, D] float32, of the positions that were expected to be heavy


class Running(NamedTuple):
    """Sums and maxima over the slices so far, [T, 1] each."""

    top: mx.array
    total: mx.array  # sum of exp(logit - top)
    heat: mx.array  # sum of exp(logit - top) * (logit - top)
    argmax: mx.array


class Slice(NamedTuple):
    """One slice's arrays, of S tokens in blocks of B."""

    logits: mx.array  # [T, S]
    weights: mx.array  # [T, S]: exp(logit - top), by the running top
    near: mx.array  # [T, S] bool: within reach of the running top
    fade: mx.array  # [T, 1]: what sums of earlier weights are to be multiplied by
    masses: mx.array  # [T, S / B]: the blocks' sums of weights


def processed(raw: mx.array, cap: float, temperature: mx.array, may: mx.array | None) -> mx.array:
    """Cap and temper raw logits, and bar those that are not allowed."""
    logits = mx.tanh(raw / cap) * (cap / temperature)
    return logits if may is None else mx.where(may, logits, BARRED)


@compiled  # traced once for a number of positions
def update(
    raw: mx.array, cap: float, temperature: mx.array, may: mx.array | None, reach: float, first: mx.array,
    running: Running,
) -> tuple[Slice, Running]:  # fmt: skip
    """Add the slice of `raw` logits, whose first token is `first`, to what is running."""
    logits = processed(raw, cap, temperature, may)
    highest = logits.max(axis=-1, keepdims=True)
    place = logits.argmax(axis=-1, keepdims=True).astype(mx.int32) + first
    argmax = mx.where(highest > running.top, place, running.argmax)
    top = mx.maximum(running.top, highest)
    below, risen = logits - top, running.top - top  # <= 0
    weights = mx.exp(below) if may is None else mx.where(may, mx.exp(below), 0)
    fade, masses = mx.exp(risen), weights.reshape(len(raw), -1, block_of(raw.shape[-1])).sum(axis=-1)
    heat = fade * (running.heat + risen * running.total) + (weights * below).sum(axis=-1, keepdims=True)
    total = fade * running.total + masses.sum(axis=-1, keepdims=True)
    return Slice(logits, weights, below >= -reach, fade, masses), Running(top, total, heat, argmax)


class Lists:
    """Tokens near the top of each position, collected slice by slice."""

    def __init__(self, positions: int):
        self.count = mx.zeros((positions, 1), dtype=mx.int32)
        # One place more than is kept takes what does not fit, and what is not near.
        self.tokens = mx.zeros((positions, KEPT + 1), dtype=mx.int32)
        self.logits = mx.full((positions, KEPT + 1), LOWEST, dtype=mx.float32)

    def add(self, logits: mx.array, near: mx.array, first: int) -> None:
        """`near` [T, S] bool marks those of `logits` that may be near the top in the end; `first` is their first id.
        A list that is full already is left alone."""
        self.count, counted = self.count + near.astype(mx.int32).sum(axis=-1, keepdims=True), self.count
        near = near & (counted <= KEPT)
        places = mx.minimum(mx.cumsum(near.astype(mx.int32), axis=-1) - 1 + counted, KEPT)
        places = mx.where(near, places, KEPT)
        ids = mx.broadcast_to(mx.arange(first, first + logits.shape[1], dtype=mx.int32), logits.shape)
        self.tokens = mx.put_along_axis(self.tokens, places, ids, axis=-1)
        self.logits = mx.put_along_axis(self.logits, places, logits, axis=-1)

    def shares(self, running: Running, reach: float) -> mx.array:
        """[T, KEPT] float32."""
        kept = self.logits[:, :KEPT]
        return mx.where(kept >= running.top - reach, mx.exp(kept - running.top) / running.total, 0)


class Soft:
    """Sums weight * embedding over the whole table, for the positions expected to be heavy."""

    def __init__(self, inputs: SweepInputs):
        self.dtype, self.count = inputs.hidden.dtype, int(inputs.heavy.sum())
        # All of them are a slice: an index would copy.
        self.positions = slice(None) if inputs.heavy.all() else mx.array(np.flatnonzero(inputs.heavy).astype(np.int32))
        self.sum = mx.zeros((self.count, inputs.hidden.shape[1]))

    def add(self, part: Linear, weights: mx.array, fade: mx.array) -> None:
        if self.count:
            products = part.product(weights[self.positions].astype(self.dtype), transpose=False)
            self.sum = self.sum * fade[self.positions] + products.astype(mx.float32)


class Sweep:
    """Predicts each position of `inputs` over `slices`; `cap` is the softcap's."""

    def __init__(self, slices: Slices, inputs: SweepInputs, cap: float):
        self.slices, self.inputs, self.cap = slices, inputs, cap
        self.temperature = inputs.temperature[:, None]

    def may(self, first: int | mx.array, width: int) -> mx.array | None:
        """[T, width] bool: which ids from `first` (an int, or [T, 1]) on are allowed; None: all."""
        if self.inputs.allowed is None:
            return None
        return self.inputs.allowed[self.inputs.allowed_index[:, None], first + mx.arange(width)]

    def run(self) -> SweepResult:
        hidden, T, width = self.inputs.hidden, self.inputs.hidden.shape[0], self.slices.width
        reach, soft, lists = REACH[hidden.dtype], Soft(self.inputs), Lists(T)
        zeros = mx.zeros((T, 1))
        running = Running(mx.full((T, 1), LOWEST), zeros, zeros, zeros.astype(mx.int32))
        masses, tops = [], []
        for first, part in zip(range(0, len(self.slices.parts) * width, width), self.slices.parts, strict=True):
            raw, may = part.product(hidden).astype(mx.float32), self.may(first, width)
            done, running = update(raw, self.cap, self.temperature, may, reach, mx.array(first), running)
            if hidden.dtype in LISTED:
                lists.add(done.logits, done.near, first)
            soft.add(part, done.weights, done.fade)
            masses.append(done.masses)
            tops.append(running.top)
            # Or the scheduler, which goes by what the running maximum needs, would make all slices first.
            hidden = mx.depends(hidden, [*running, done.masses, lists.tokens, lists.logits, lists.count, soft.sum])
        masses = [mass * mx.exp(top - running.top) for mass, top in zip(masses, tops, strict=True)]
        sample, weight = self.draw(mx.concatenate(masses, axis=1), running.top)
        shares, total = lists.shares(running, reach), running.total[:, 0]
        return SweepResult(
            argmax=running.argmax[:, 0],
            sample=sample,
            entropy=mx.log(total) - running.heat[:, 0] / total,
            confidence=weight / total,
            top=1 / total,
            normaliser=running.top[:, 0] + mx.log(total),
            lost=1 - shares.sum(axis=-1),
            tokens=lists.tokens[:, :KEPT],
            shares=shares,
            soft=soft.sum / running.total[soft.positions],
        )

    def draw(self, masses: mx.array, top: mx.array) -> tuple[mx.array, mx.array]:
        """The sample [T], and its weight [T]: exp(logit - top). `masses` [T, blocks] are the sums of such weights.

        The token is the first whose cumulative sum exceeds the uniform's share of the whole, which is below the whole.
        """
        width = block_of(self.slices.width)
        ends = mx.cumsum(masses, axis=1)
        share = self.inputs.uniforms[:, None] * ends[:, -1:]
        chosen = (ends <= share).astype(mx.int32).sum(axis=1)
        before = mx.take_along_axis(ends - masses, chosen[:, None], axis=1)
        raw = self.slices.blocks(self.inputs.hidden, chosen).astype(mx.float32)
        first = (chosen * width)[:, None]
        weights = mx.exp(processed(raw, self.cap, self.temperature, self.may(first, width)) - top)
        place = (mx.cumsum(weights, axis=1) + before <= share).astype(mx.int32).sum(axis=1)
        # Summed in another order, a block may begin behind the share or end short of it: then its first or last token
        # that can be is meant.
        can, places = weights > 0, mx.arange(width)
        place = mx.maximum(place, mx.where(can, places, width - 1).min(axis=1))
        place = mx.minimum(place, mx.where(can, places, 0).max(axis=1))
        weight = mx.take_along_axis(weights, place[:, None], axis=1)[:, 0]
        return (first[:, 0] + place).astype(mx.int32), weight
