"""Between hidden states and the vocabulary: head, entropy, draw, and the soft embedding of the next pass."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..interface import Prediction, Row
from .layers import Embedding

LOGPROB_SET = 1024  # sets of fewer ids have their log-probabilities reported


class TokenSets:
    """The sets of ids that `Row.allowed` points to, each registered once."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.ids: list[tuple[int, ...]] = []

    def add(self, ids) -> int:
        """The set's index. ValueError if it is empty or an id is out of the vocabulary."""
        unique = tuple(dict.fromkeys(int(i) for i in ids))
        if not unique or min(unique) < 0 or max(unique) >= self.vocab_size:
            raise ValueError(f"a token set needs ids in [0, {self.vocab_size}), got {list(unique)[:8]}")
        if unique not in self.ids:
            self.ids.append(unique)
        return self.ids.index(unique)

    def mask(self, allowed: np.ndarray) -> mx.array:
        """[L] set indices -> [L, V] bool: what may stand at each position; -1 is anything."""
        used = sorted({int(i) for i in allowed if i >= 0})
        if used and used[-1] >= len(self.ids):
            raise ValueError(f"token set {used[-1]} is not registered: there are {len(self.ids)}")
        table = np.zeros((len(used) + 1, self.vocab_size), dtype=bool)
        table[0] = True
        for row, index in enumerate(used, start=1):
            table[row, list(self.ids[index])] = True
        return mx.array(table)[mx.array(np.searchsorted(used, allowed) * (allowed >= 0) + (allowed >= 0))]


@dataclass
class SelfConditioning:
    """What one pass tells the next: its processed logits, and one-hot positions. Nothing is computed until `soft`."""

    logits: (
        mx.array | None
    )  # [L, V], after temperature, in the embedding's dtype as in the reference; None: nothing known
    certain: np.ndarray | None  # [L] int32 ids that are known, -1 elsewhere

    def soft(self, table: Embedding) -> mx.array:
        """[L, D]: the mean embedding under each position's distribution."""
        dtype = table.dtype
        if self.logits is None:
            soft = mx.zeros((len(self.certain), table.hidden_size), dtype=dtype)
        else:
            soft = table.soft(mx.softmax(self.logits.astype(mx.float32), axis=-1).astype(dtype))
        if self.certain is None:
            return soft
        known = mx.array(self.certain >= 0)[:, None]
        return mx.where(known, table(mx.array(np.maximum(self.certain, 0))), soft)


def conditioning_of(row: Row) -> SelfConditioning | None:
    """What `row` brings along: its last pass, and its hint over that."""
    before: SelfConditioning | None = row.self_conditioning
    if row.hint is None:
        return before
    logits, known = (None, None) if before is None else (before.logits, before.certain)
    hint = np.asarray(row.hint, dtype=np.int32)
    return SelfConditioning(logits, hint if known is None else np.where(hint >= 0, hint, known))


def head(table: Embedding, hidden: mx.array, cap: float) -> mx.array:
    """[L, D] -> [L, V] float32, softcapped: cap * tanh(x / cap)."""
    return mx.tanh(table.product(hidden).astype(mx.float32) / cap) * cap


@dataclass
class Drawn:
    """A prediction still on the device. `arrays` are what one synchronisation brings up."""

    row: Row
    logits: mx.array  # [L, V] float32, after temperature and restriction
    arrays: dict[str, mx.array]
    sets: dict[int, mx.array]  # position -> log-probabilities over its set

    def prediction(self, dtype: mx.Dtype) -> Prediction:
        """After `mx.eval`."""
        canvas, fixed = np.asarray(self.row.canvas, dtype=np.int32), self.row.fixed
        found = {name: np.array(array) for name, array in self.arrays.items()}
        certain = None
        if fixed is not None:
            fixed = np.asarray(fixed, dtype=bool)
            certain = np.where(fixed, canvas, -1).astype(np.int32)
            for name, given in (("argmax", canvas), ("sample", canvas), ("entropy", 0), ("confidence", 1)):
                found[name] = np.where(fixed, given, found[name]).astype(found[name].dtype)
        return Prediction(
            **found,
            allowed_logprobs={position: np.array(array) for position, array in self.sets.items()},
            self_conditioning=SelfConditioning(self.logits.astype(dtype), certain),
        )


def draw(logits: mx.array, row: Row, sets: TokenSets) -> Drawn:
    """What `row` asks of its raw `logits` [L, V]. Lazy.

    The draw inverts the cumulative distribution in vocabulary order, so that one uniform a position decides it; an
    unnormalised sum is compared with the uniform's share of the total, which is always above the sum before the last
    token that has any probability.
    """
    logits = logits / mx.array(row.temperature, dtype=mx.float32)
    if row.allowed is not None:
        allowed = np.asarray(row.allowed)
        logits = mx.where(sets.mask(allowed), logits, -mx.inf)
    top = logits.max(axis=-1, keepdims=True)
    above = logits - top  # <= 0, -inf where not allowed
    weights = mx.exp(above)
    total = weights.sum(axis=-1)
    sums = mx.cumsum(weights, axis=-1)
    uniforms = mx.array(np.asarray(row.uniforms, dtype=np.float32))
    sample = (sums <= (uniforms * sums[:, -1])[:, None]).sum(axis=-1).astype(mx.int32)
    # -sum p log p, from terms of the same sign: exp(-inf) * -inf must count as nothing.
    entropy = mx.log(total) - (weights * mx.where(weights > 0, above, 0)).sum(axis=-1) / total
    arrays = {
        "argmax": logits.argmax(axis=-1).astype(mx.int32),
        "sample": sample,
        "entropy": entropy,
        "confidence": mx.take_along_axis(weights, mx.minimum(sample, logits.shape[-1] - 1)[:, None], axis=-1)[:, 0]
        / total,
    }
    found = {}
    if row.allowed is not None:
        logprobs = above - mx.log(total)[:, None]
        for position, index in enumerate(allowed.tolist()):
            if index >= 0 and len(sets.ids[index]) < LOGPROB_SET:
                found[position] = logprobs[position, mx.array(sets.ids[index])]
    return Drawn(row, logits, arrays, found)
