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

from . import family, kernels, parallel
from .layers import Embedding, compiled, exp, tanh

SLICES = 32  # at least, of a vocabulary that divides into them; on a GPU as few as `Family.widest` allows
BLOCK = 64  # tokens whose weights are summed for the draw, which reads that many rows of the table a position again
LISTED = {mx.bfloat16, mx.float16}  # activations for which lists are kept: in float32 they would have to be too long
KEPT = 256  # tokens that the list of a position holds
REACH = {mx.float32: 16.0, mx.bfloat16: 10.0, mx.float16: 10.0}  # nats below the top
LOST = {mx.float32: 2e-6, mx.bfloat16: 2.0**-9, mx.float16: 2.0**-11}  # share of the mass that a list may leave out
LOWEST = -1e30  # of a running maximum: finite, so that differences stay numbers
BARRED = -1e31  # the logit of a token that is not allowed


def block_of(width: int) -> int:
    """Tokens of a block in slices of that width."""
    return BLOCK if width % BLOCK == 0 else width


class Slices:
    """The embedding table in slices of equal width, each a `Linear`; and in finer blocks, as experts."""

    def __init__(self, table: Embedding):
        self.table, vocabulary, path = table, table.weight.shape[0], family.current()
        widest = path.widest * (2 if kernels.used("vocabulary", table.dtype) else 1)  # fewer arrays are at hand
        count = max(1 if path.gpu else SLICES, vocabulary // widest)
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

    @property
    def listed(self) -> bool:
        """True if lists are kept: of 16-bit activations, on devices that gain by them."""
        return self.hidden.dtype in LISTED and family.current().lists


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
    tokens: mx.array  # [T, KEPT] int32, rows of this rank's table
    shares: mx.array  # [T, KEPT] float32, 0 where there is no token
    soft: mx.array  # [heavy, D] float32, the mean embeddings of the heavy positions; this rank's share


class Lists(NamedTuple):
    """Tokens near the top of each position, collected slice by slice. MLX's operations need one place more, which takes
    what does not fit, and what is not near."""

    count: mx.array  # [T, 1] int32
    tokens: mx.array  # [T, KEPT + 1] int32
    logits: mx.array  # [T, KEPT + 1] float32


class Slice(NamedTuple):
    """The results of a slice of S tokens in blocks of B. Weights are exp(logit - top)."""

    top: mx.array  # [T, 1]: the highest logit of this slice and those before
    fade: mx.array  # [T, 1]: what sums of the weights of those before are to be multiplied by
    place: mx.array  # [T, 1]: of the highest logit within the slice
    masses: mx.array  # [T, S / B] float32: the blocks' sums of weights
    heat: mx.array  # [T, 1]: sum of weight * (logit - top)
    narrow: mx.array  # [heavy, S]: weights of the heavy positions, in the activations' dtype


def processed(raw: mx.array, cap: float, temperature: mx.array) -> mx.array:
    """Cap and temper raw logits, in float32; one of -inf is not allowed, and stays the least."""
    logits = tanh(raw.astype(mx.float32) / cap) * (cap / temperature)
    return mx.where(raw == -mx.inf, BARRED, logits)


# Each compiled function is one kernel: elementwise, traced once for all sizes, and its last array uses all others, or
# MLX would make several.
@compiled
def rise(raw: mx.array, cap: float, temperature: mx.array, top: mx.array) -> tuple[mx.array, mx.array]:
    """[T, 1] each: the top with the highest raw logits of one more slice, and its `Slice.fade`."""
    risen = mx.maximum(processed(raw, cap, temperature), top)
    return risen, exp(top - risen)


@compiled
def weigh(
    raw: mx.array, cap: float, temperature: mx.array, top: mx.array, reach: float | None, wide: bool
) -> tuple[mx.array, ...]:
    """[T, S] each: weights, their terms of the heat, and the weights in the dtype of `raw`; with a `reach`, also the
    logits, and 1 where they may be near the top in the end, in 16 bits unless a slice is too `wide` for their sums."""
    logits = processed(raw, cap, temperature)
    below = logits - top  # <= 0
    weights = exp(below)
    heats = weights * below
    if reach is None:
        return weights, heats, mx.maximum(weights, heats).astype(raw.dtype)  # heats are never more
    near = (below >= -reach).astype(mx.int32 if wide else mx.uint16)
    return weights, heats, mx.where(near >= 0, weights, heats).astype(raw.dtype), logits, near


@compiled
def places_of(near: mx.array, ends: mx.array, count: mx.array) -> mx.array:
    """[T, S]: where tokens go in lists of `count` [T, 1]. A list that is full already is left alone."""
    return mx.where((near > 0) & (count <= KEPT), mx.minimum(ends - 1 + count, KEPT), KEPT).astype(near.dtype)


@compiled
def accumulated(total: mx.array, fade: mx.array, products: mx.array) -> mx.array:
    return total * fade + products.astype(mx.float32)


@compiled
def faded(masses: mx.array, tops: mx.array, top: mx.array) -> mx.array:
    return masses * exp(tops - top)


@compiled
def heat_terms(sums: mx.array, heats: mx.array, tops: mx.array, top: mx.array) -> mx.array:
    """[T, slices]: sums of weight * (logit - top) by the top of all, from those by the `tops` of their slices."""
    return exp(tops - top) * heats + (tops - top) * sums


@compiled
def share_of(logits: mx.array, top: mx.array, total: mx.array, reach: float) -> mx.array:
    return mx.where(logits >= top - reach, exp(logits - top) / total, 0)


def listed(lists: Lists, logits: mx.array, near: mx.array, first: int) -> Lists:
    """Add those of `logits` [T, S] that are near; `first` is the id of the first."""
    ends = mx.cumsum(near, axis=-1)
    places = places_of(near, ends, lists.count)
    ids = mx.broadcast_to(mx.arange(first, first + logits.shape[1], dtype=mx.int32), logits.shape)
    tokens = mx.put_along_axis(lists.tokens, places, ids, axis=-1)
    return Lists(lists.count + ends[:, -1:], tokens, mx.put_along_axis(lists.logits, places, logits, axis=-1))


class Sweep:
    """Predicts each position of `inputs` over `slices`; `cap` is the softcap's."""

    def __init__(self, slices: Slices, inputs: SweepInputs, cap: float):
        self.slices, self.inputs, self.cap = slices, inputs, cap
        self.temperature, self.first = inputs.temperature[:, None], slices.table.here.start
        self.reach = REACH[inputs.hidden.dtype]
        self.whole: mx.array | None = None  # the raw logits [T, V] of a vocabulary that is one block
        # A slice where all positions are heavy: an index would copy.
        heavy = np.flatnonzero(inputs.heavy).astype(np.int32)
        self.heavy, self.count = slice(None) if inputs.heavy.all() else mx.array(heavy), len(heavy)
        fits = slices.width % BLOCK == 0
        self.constants = self.kernel_constants() if fits and kernels.used("vocabulary", inputs.hidden.dtype) else None

    def kernel_constants(self) -> kernels.SweepConstants:
        heavy = self.inputs.heavy
        slots = np.where(heavy, np.cumsum(heavy) - 1, -1).astype(np.int32)
        constants = mx.array([self.cap]), mx.array([self.reach])
        return kernels.SweepConstants(
            self.temperature, mx.array(slots), self.count, *constants, kept=KEPT, listed=self.inputs.listed
        )

    def barred(self, raw: mx.array, first: int | mx.array) -> mx.array:
        """`raw` [T, S] of the ids from `first` (an int, or [T, 1]) on, -inf where they are not allowed."""
        if self.inputs.allowed is None:
            return raw
        may = self.inputs.allowed[self.inputs.allowed_index[:, None], first + mx.arange(raw.shape[1])]
        return mx.where(may, raw, -mx.inf)

    def take(self, raw: mx.array, first: int, top: mx.array, lists: Lists) -> tuple[Slice, Lists]:
        """Weigh the slice of `raw` logits, whose first token is `first`, behind those that made `top` and `lists`."""
        if self.constants:
            *done, count, tokens, logits = kernels.vocabulary(raw, first, top, lists, self.constants, BLOCK)
            return Slice(*done), Lists(count, tokens, logits) if self.constants.listed else lists
        place = raw.argmax(axis=-1, keepdims=True)
        top, fade = rise(mx.take_along_axis(raw, place, axis=-1), self.cap, self.temperature, top)
        reach = self.reach if self.inputs.listed else None
        wide = raw.shape[-1] >= 2**16
        weights, heats, narrow, *near = weigh(raw, self.cap, self.temperature, top, reach, wide)
        masses = weights.reshape(len(raw), -1, block_of(raw.shape[-1])).sum(axis=-1)
        if near:
            lists = listed(lists, *near, first)
        return Slice(top, fade, place, masses, heats.sum(axis=-1, keepdims=True), narrow[self.heavy]), lists

    def run(self) -> SweepResult:
        hidden, T, width = self.inputs.hidden, self.inputs.hidden.shape[0], self.slices.width
        room = KEPT if self.constants else KEPT + 1
        lists = Lists(mx.zeros((T, 1), mx.int32), mx.zeros((T, room), mx.int32), mx.full((T, room), LOWEST))
        top, soft, taken = mx.full((T, 1), LOWEST), mx.zeros((self.count, hidden.shape[1])), []
        for i, part in enumerate(self.slices.parts):
            raw = self.barred(part.product(hidden), i * width)
            self.whole = raw if block_of(width) == self.slices.table.vocab_size else None
            done, lists = self.take(raw, i * width, top, lists)
            if self.count:
                soft = accumulated(soft, done.fade[self.heavy], part.product(done.narrow, transpose=False))
            top = done.top
            taken.append(done._replace(narrow=None))
            # Without this, MLX's scheduler would make the logits of all slices first.
            hidden = mx.depends(hidden, [*done[:-1], *lists, soft])
        return self.result(taken, lists, soft)

    def result(self, taken: list[Slice], lists: Lists, soft: mx.array) -> SweepResult:
        """Join what the slices add, weights by the top of all."""
        tops, places, heats = (
            mx.concatenate([getattr(part, name) for part in taken], axis=1) for name in ("top", "place", "heat")
        )  # [T, slices]
        highest, best = tops[:, -1:], tops.argmax(axis=-1, keepdims=True)  # the first slice that reaches the top
        argmax = self.ids(best * self.slices.width + mx.take_along_axis(places, best, axis=-1))
        top, argmax = first_highest(highest, argmax)
        masses = faded(mx.stack([part.masses for part in taken], axis=1), tops[..., None], top[..., None])
        sums = masses.sum(axis=-1)
        total, heat = (parallel.sum_up(x.sum(axis=-1)) for x in (sums, heat_terms(sums, heats, tops, top)))
        sample, weight = self.draw(masses.flatten(1), top)
        kept = lists.logits[:, :KEPT]
        shares = share_of(kept, top, total[:, None], self.reach) if self.inputs.listed else mx.zeros_like(kept)
        return SweepResult(
            argmax=argmax[:, 0],
            sample=sample,
            entropy=mx.log(total) - heat / total,
            confidence=weight / total,
            top=1 / total,
            normaliser=top[:, 0] + mx.log(total),
            lost=parallel.from_first(1 - parallel.sum_up(shares.sum(axis=-1))),
            tokens=lists.tokens[:, :KEPT],
            shares=shares,
            soft=_rescaled(soft, highest[self.heavy], top[self.heavy]) / total[self.heavy][:, None],
        )

    def ids(self, places: mx.array) -> mx.array:
        """Places among this rank's tokens -> ids, int32."""
        places = places.astype(mx.int32)
        return places + self.first if self.first else places  # nothing is added to a step of one rank

    def draw(self, masses: mx.array, top: mx.array) -> tuple[mx.array, mx.array]:
        """The sample [T], and its weight [T]: exp(logit - top). `masses` [T, blocks] are the sums of such weights.

        The token is the first whose cumulative sum exceeds the uniform's share of the whole, which is below the whole.
        """
        width = block_of(self.slices.width)
        ends = mx.cumsum(masses, axis=1)
        share, here = share_here(self.inputs.uniforms[:, None], ends[:, -1:])
        chosen = (ends <= share).astype(mx.int32).sum(axis=1)
        if parallel.mine.ranks > 1:
            chosen = mx.minimum(chosen, ends.shape[1] - 1)
        before = mx.take_along_axis(ends - masses, chosen[:, None], axis=1)
        first = (chosen * width)[:, None]
        again = self.whole is None
        raw = self.barred(self.slices.blocks(self.inputs.hidden, chosen), first) if again else self.whole
        weights = exp(processed(raw, self.cap, self.temperature) - top)
        place = (mx.cumsum(weights, axis=1) + before <= share).astype(mx.int32).sum(axis=1)
        # Summed in another order, a block may begin behind the share or end short of it: then its first or last allowed
        # token is drawn.
        can, places = weights > 0, mx.arange(width)
        place = mx.maximum(place, mx.where(can, places, width - 1).min(axis=1))
        place = mx.minimum(place, mx.where(can, places, 0).max(axis=1))
        weight = mx.take_along_axis(weights, place[:, None], axis=1)[:, 0]
        sample = self.ids(first[:, 0] + place)
        return parallel.placed(sample, here), parallel.placed(weight, here)


def first_highest(tops: mx.array, places: mx.array) -> tuple[mx.array, mx.array]:
    """[T, 1] each: the highest of all ranks' tops, and its place; of equals, the lower rank's."""
    if parallel.mine.ranks == 1:
        return tops, places
    tops, places = parallel.gathered(tops), parallel.gathered(places)
    best = tops.argmax(axis=-1, keepdims=True)
    return mx.take_along_axis(tops, best, axis=-1), mx.take_along_axis(places, best, axis=-1)


def share_here(uniforms: mx.array, totals: mx.array) -> tuple[mx.array, mx.array]:
    """The uniforms' share [T, 1] of all weights, counted from this rank's first one on, whose sums are `totals` [T, 1];
    and [T] bool: whether it lies on this rank."""
    if parallel.mine.ranks == 1:
        return uniforms * totals, mx.array(True)
    ends = mx.cumsum(parallel.gathered(totals), axis=1)
    share, rank = uniforms * ends[:, -1:], parallel.mine.rank
    owner = mx.minimum((ends <= share).astype(mx.int32).sum(axis=1), parallel.mine.ranks - 1)
    return share - (ends[:, rank - 1 : rank] if rank else 0.0), owner == rank


def _rescaled(soft: mx.array, highest: mx.array, top: mx.array) -> mx.array:
    """Weights by this rank's highest logit -> by the top of all ranks."""
    return soft if parallel.mine.ranks == 1 else soft * exp(highest - top)
