"""One sweep over the vocabulary, in slices: head, softcap, temperature, argmax, entropy, draw, and what the next pass
hears of all that. The logits [T, V] are never whole.

A running maximum and sums that are rescaled when it rises, as in attention over blocks of keys. The draw inverts the
cumulative distribution in vocabulary order: the sums of small blocks tell in which of them each position's token lies,
and that one block a position is looked at again, the table seen as so many experts.

The mean embedding of a position (its soft embedding) is a sum over few tokens where the distribution is peaked: those
within `REACH` nats of the top, kept as lists. Where the rest of the mass matters, all of the table is summed up while
its slice is at hand; which positions those will be is known from the last pass, and a wrong guess is made good by
`vocabulary.SelfConditioning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from . import arithmetic
from .arithmetic import bring, dot, single, weight
from .layers import Embedding, Linear

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
class Asked:
    """What is asked of T positions, those of all rows of a call one after another."""

    hidden: mx.array  # [T, D], normed
    temperature: np.ndarray  # [T] float32
    uniforms: np.ndarray  # [T] float32
    heavy: np.ndarray  # [T] bool: expected to need the whole table for their soft embedding
    allowed: np.ndarray | None = None  # [sets, V] bool
    allowed_index: np.ndarray | None = None  # [T] into `allowed`


@dataclass
class Swept:
    """What was found. Arrays of the namespace; lazy if that is MLX."""

    argmax: Any  # [T] int32
    sample: Any  # [T] int32
    entropy: Any  # [T] float32, nats
    confidence: Any  # [T] float32
    normaliser: Any  # [T] float32: logsumexp of the processed logits
    lost: Any  # [T] float32: share of the mass outside the lists
    tokens: Any  # [T, KEPT] int32
    shares: Any  # [T, KEPT] float32, 0 where there is no token
    soft: Any  # [heavy, D] float32, of the positions that were expected to be heavy


class Running(NamedTuple):
    """Of the slices so far, [T, 1] each."""

    top: Any
    total: Any  # sum of exp(logit - top)
    heat: Any  # sum of exp(logit - top) * (logit - top)
    argmax: Any


START = (LOWEST, 0, 0, 0)
KINDS = {xp: (xp.float32, xp.float32, xp.float32, xp.int32) for xp in (np, mx)}


def processed(xp: Any, raw: Any, cap: float, temperature: Any, may: Any) -> Any:
    """Raw logits -> capped, tempered, and barred where they may not be."""
    logits = xp.tanh(raw / cap) * (cap / temperature)
    return logits if may is None else xp.where(may, logits, BARRED)


def _update(
    xp: Any, raw: Any, cap: float, temperature: Any, may: Any, reach: float, first: Any, *running: Any
) -> tuple:
    """One slice -> its logits, their weights and which are near the top; the factor that fades what was summed up
    before, the sums of the slice's blocks, and what is running then."""
    top, total, heat, argmax = running
    logits = processed(xp, raw, cap, temperature, may)
    own = logits.max(axis=-1, keepdims=True)
    argmax = xp.where(own > top, logits.argmax(axis=-1, keepdims=True).astype(xp.int32) + first, argmax)
    before, top = top, xp.maximum(top, own)
    below = logits - top  # <= 0
    weights = weight(xp, below) if may is None else xp.where(may, weight(xp, below), 0)
    fade, masses = xp.exp(before - top), weights.reshape(len(raw), -1, block_of(raw.shape[-1])).sum(axis=-1)
    heat = fade * (heat + (before - top) * total) + dot(weights, below)  # moves with the top
    total = fade * total + masses.sum(axis=-1, keepdims=True)
    return logits, weights, below >= -reach, fade, masses, top, total, heat, argmax


UPDATE = {np: partial(_update, np), mx: mx.compile(partial(_update, mx))}  # traced once for a number of positions


class Lists:
    """Tokens near the top of each position, collected slice by slice."""

    def __init__(self, positions: int, xp: Any):
        self.xp = xp
        self.count = xp.zeros((positions, 1), dtype=xp.int32)
        # One place more than is kept takes what does not fit, and what is not near.
        self.tokens = xp.zeros((positions, KEPT + 1), dtype=xp.int32)
        self.logits = xp.full((positions, KEPT + 1), LOWEST, dtype=xp.float32)

    def add(self, logits: Any, near: Any, first: int) -> None:
        """`near` [T, S] bool marks those of `logits` that may be near the top in the end; `first` is their first id.
        A list that is full already is left alone."""
        if self.xp is np:
            self._add(logits, near & (self.count <= KEPT), first)
            return
        self.count, counted = self.count + near.astype(mx.int32).sum(axis=-1, keepdims=True), self.count
        near = near & (counted <= KEPT)
        places = mx.minimum(mx.cumsum(near.astype(mx.int32), axis=-1) - 1 + counted, KEPT)
        places = mx.where(near, places, KEPT)
        ids = mx.broadcast_to(mx.arange(first, first + logits.shape[1], dtype=mx.int32), logits.shape)
        self.tokens = mx.put_along_axis(self.tokens, places, ids, axis=-1)
        self.logits = mx.put_along_axis(self.logits, places, logits, axis=-1)

    def _add(self, logits: np.ndarray, near: np.ndarray, first: int) -> None:
        rows, columns = np.divmod(np.flatnonzero(near), near.shape[1])  # three times as fast as nonzero of two axes
        added = np.bincount(rows, minlength=len(near))
        places = np.arange(len(rows)) - np.repeat(np.cumsum(added) - added, added) + self.count[rows, 0]
        places = np.minimum(places, KEPT)
        self.tokens[rows, places], self.logits[rows, places] = columns + first, logits[rows, columns]
        self.count += added[:, None].astype(np.int32)

    def shares(self, top: Any, total: Any, reach: float) -> Any:
        """[T, KEPT] float32."""
        kept = self.logits[:, :KEPT]
        return self.xp.where(kept >= top - reach, self.xp.exp(kept - top) / total, 0)


class Sweep:
    """Over `slices` for what is `asked`; `cap` is the softcap's."""

    def __init__(self, slices: Slices, asked: Asked, cap: float):
        self.slices, self.asked, self.cap = slices, asked, cap
        self.xp = arithmetic.namespace()
        self.temperature = bring(asked.temperature)[:, None]

    def may(self, first: Any, width: int) -> Any:
        """[T, width] bool: which ids from `first` ([T, 1] or one) on are allowed; None: all."""
        if self.asked.allowed is None:
            return None
        columns = first + self.xp.arange(width)
        return bring(self.asked.allowed)[bring(self.asked.allowed_index)[:, None], columns]

    def run(self) -> Swept:
        xp, asked, T = self.xp, self.asked, self.asked.hidden.shape[0]
        reach = REACH[asked.hidden.dtype]
        soft, lists = Soft(asked, xp), Lists(T, xp)
        running = Running(*(xp.full((T, 1), at, dtype=kind) for at, kind in zip(START, KINDS[xp], strict=True)))
        update, masses, tops = UPDATE[xp], [], []
        hidden = asked.hidden
        for number, part in enumerate(self.slices.parts):
            first = number * self.slices.width
            raw = single(part.product(hidden))
            may, place = self.may(first, self.slices.width), xp.array(first, dtype=xp.int32)
            logits, weights, near, fade, sums, *state = update(
                raw, self.cap, self.temperature, may, reach, place, *running
            )
            running = Running(*state)
            if asked.hidden.dtype in LISTED:
                lists.add(logits, near, first)
            soft.add(part, weights, fade)
            masses.append(sums)
            tops.append(running.top)
            if xp is mx:
                # Or the scheduler, which goes by what the running maximum needs, would make all slices first.
                hidden = mx.depends(hidden, [*running, sums, lists.tokens, lists.logits, lists.count, soft.sum])
        top, total, heat, argmax = running
        masses = xp.concatenate([sums * xp.exp(own - top) for sums, own in zip(masses, tops, strict=True)], axis=1)
        sample, confidence = self.draw(masses, top)
        shares = lists.shares(top, total, reach)
        return Swept(
            argmax=argmax[:, 0],
            sample=sample,
            entropy=(xp.log(total) - heat / total)[:, 0],
            confidence=confidence / total[:, 0],
            normaliser=(top + xp.log(total))[:, 0],
            lost=1 - shares.sum(axis=-1),
            tokens=lists.tokens[:, :KEPT],
            shares=shares,
            soft=soft.sum / total[soft.positions],
        )

    def draw(self, masses: Any, top: Any) -> tuple[Any, Any]:
        """The sample [T], and its weight [T]: exp(logit - top). `masses` [T, blocks] are the sums of such weights.

        The token is the first whose cumulative sum exceeds the uniform's share of the whole, which is below the whole.
        """
        xp, asked, width = self.xp, self.asked, block_of(self.slices.width)
        ends = xp.cumsum(masses, axis=1)
        share = bring(asked.uniforms)[:, None] * ends[:, -1:]
        chosen = (ends <= share).astype(xp.int32).sum(axis=1)
        before = xp.take_along_axis(ends - masses, chosen[:, None], axis=1)
        raw = single(self.slices.blocks.unsorted(bring(asked.hidden), chosen))
        first = (chosen * width)[:, None]
        weights = xp.exp(processed(xp, raw, self.cap, self.temperature, self.may(first, width)) - top)
        place = (xp.cumsum(weights, axis=1) + before <= share).astype(xp.int32).sum(axis=1)
        # Summed in another order, a block may begin behind the share or end short of it: then its first or last token
        # that can be is meant.
        can, places = weights > 0, xp.arange(width)
        place = xp.maximum(place, xp.where(can, places, width - 1).min(axis=1))
        place = xp.minimum(place, xp.where(can, places, 0).max(axis=1))
        weight = xp.take_along_axis(weights, place[:, None], axis=1)[:, 0]
        return (first[:, 0] + place).astype(xp.int32), weight


class Soft:
    """Sums of weight * embedding over the whole table, for the positions expected to be heavy."""

    def __init__(self, asked: Asked, xp: Any):
        self.dtype, self.count = asked.hidden.dtype, int(asked.heavy.sum())
        # Where that is all of them, a slice: an index would copy.
        self.positions = slice(None) if asked.heavy.all() else bring(np.flatnonzero(asked.heavy).astype(np.int32))
        self.sum = xp.zeros((self.count, asked.hidden.shape[1]), dtype=xp.float32)

    def add(self, part: Linear, weights: Any, fade: Any) -> None:
        if self.count:
            weights = weights[self.positions]
            if isinstance(weights, mx.array):
                weights = weights.astype(self.dtype)
            self.sum *= fade[self.positions]
            self.sum += single(part.product(weights, transpose=False))
