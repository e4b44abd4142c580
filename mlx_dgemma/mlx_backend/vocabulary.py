"""From hidden states to predictions, and to the self-conditioning of the next pass.

The arithmetic over the vocabulary is in `sweep.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..seam.model import Prediction, Row
from ..seam.shared import VECTORS, known_ids, lay_fixed
from ..seam.token_sets import Allowed
from . import parallel
from .layers import Embedding
from .sweep import LOST, Slices, Sweep, SweepInputs, SweepResult, processed

GROUP = 32  # tokens of each list whose embeddings are fetched at a time: 46 MB of 256 positions in 16 bits
MARGIN = 4  # a list that is nearly as long as it may be is expected not to do in the next pass
PADDED = 32  # positions of another sweep are a multiple of these


@dataclass(frozen=True, kw_only=True)
class SoftEmbedding:
    """The mean embeddings of L positions, not yet computed. Each comes from the list of its likeliest tokens where that
    suffices, from a sum over the whole table where the sweep made one, and else from another sweep."""

    hidden: mx.array  # [L, D]
    temperature: float
    tokens: np.ndarray  # [L, KEPT] int32
    shares: np.ndarray  # [L, KEPT] float32, 0 where there is no token
    lost: np.ndarray  # [L] float32: share of the mass outside the list
    heavy: np.ndarray  # [L] bool: positions of `soft`
    soft: mx.array  # [heavy, D] float32
    allowed: tuple[mx.array, np.ndarray] | None  # [sets, V] bool, and [L] into it

    @property
    def needs_table(self) -> np.ndarray:
        """[L] bool: where the list leaves out too much."""
        return self.lost > LOST[self.hidden.dtype]

    def compute(self, slices: Slices, cap: float) -> mx.array:
        """[L, D] float32, this rank's share. Lazy."""
        heavy, light, missed = map(
            np.flatnonzero, (self.heavy, ~self.heavy & ~self.needs_table, ~self.heavy & self.needs_table)
        )
        sums = [self.soft]
        if light.size:
            sums.append(_listed(slices.table, self.tokens[light], self.shares[light]))
        if missed.size:
            sums.append(self._swept(missed, slices, cap))
        return mx.concatenate(sums)[mx.array(np.argsort(np.concatenate([heavy, light, missed])))]

    def _swept(self, positions: np.ndarray, slices: Slices, cap: float) -> mx.array:
        count = len(positions)
        positions = np.resize(positions, count + -count % PADDED)
        temperature, uniforms = mx.full(len(positions), self.temperature), mx.zeros(len(positions))
        inputs = SweepInputs(self.hidden[mx.array(positions)], temperature, uniforms, np.ones(len(positions), bool))
        if self.allowed is not None:
            inputs.allowed, inputs.allowed_index = self.allowed[0], mx.array(self.allowed[1][positions])
        return Sweep(slices, inputs, cap).run().soft[:count]


def _listed(table: Embedding, tokens: np.ndarray, shares: np.ndarray) -> mx.array:
    """[n, K] each -> [n, D] float32: the embeddings of each position's tokens, weighted and summed."""
    used = int(np.max(np.nonzero(shares.any(axis=0))[0], initial=-1)) + 1
    total = mx.zeros((len(tokens), table.width))
    for first in range(0, used, GROUP):
        group = slice(first, first + GROUP)
        ids, weights = mx.array(tokens[:, group]), mx.array(shares[:, None, group])
        rows = table.rows(ids.flatten(), table.dtype).reshape(*ids.shape, -1)
        total = total + (weights.astype(rows.dtype) @ rows).squeeze(1)
    return total


@dataclass(frozen=True)
class Conditioning:
    """The self-conditioning of a row's next pass: `Prediction.self_conditioning`."""

    soft: SoftEmbedding | None  # None: nothing is predicted
    certain: np.ndarray | None  # [L] int32 ids that are known, -1 elsewhere

    def embedding(self, slices: Slices, cap: float) -> mx.array:
        """[L, D]: mean embeddings, those of known ids where they are known. Lazy."""
        table = slices.table
        if self.soft is None:
            soft = mx.zeros((len(self.certain), table.width), dtype=table.dtype)
        else:
            soft = self.soft.compute(slices, cap).astype(table.dtype) * table.width**0.5
        if self.certain is not None:
            known = table.share(mx.array(np.maximum(self.certain, 0)))
            soft = mx.where(mx.array(self.certain >= 0)[:, None], known, soft)
        return parallel.sum_up(soft)


def conditioning_of(row: Row) -> Conditioning | None:
    """Return the conditioning of `row` by its last pass, and by its hint over that."""
    last: Conditioning | None = row.self_conditioning
    if row.hint is None:
        return last
    return Conditioning(last and last.soft, known_ids(row, last and last.certain))


def soft_of(row: Row) -> list[mx.array]:
    """What a row's self-conditioning holds lazily."""
    last: Conditioning | None = row.self_conditioning
    return [last.soft.soft] if last and last.soft else []


def expected_heavy(row: Row) -> np.ndarray:
    """[L] bool: positions whose soft embedding will likely need the whole table, all of them in a first pass."""
    last: Conditioning | None = row.self_conditioning
    if last is None or last.soft is None:
        return np.ones(len(row.canvas), bool)
    return last.soft.lost > LOST[last.soft.hidden.dtype] / MARGIN


def head(table: Embedding, hidden: mx.array, cap: float) -> mx.array:
    """[L, D] -> [L, V] float32, softcapped: cap * tanh(x / cap)."""
    return mx.tanh(raw_logits(table, hidden).astype(mx.float32) / cap) * cap


def raw_logits(table: Embedding, hidden: mx.array) -> mx.array:
    """[L, D] -> [L, V], of all ranks."""
    return parallel.gathered(table.product(hidden))


class Readout:
    """The predictions of all rows of a call: `arrays` are evaluated, then `predictions` reads them."""

    def __init__(self, rows: Sequence[Row], hidden: list[mx.array], slices: Slices, cap: float):
        self.rows, self.hidden, self.slices, self.cap = rows, hidden, slices, cap
        lengths = [len(row.canvas) for row in rows]
        self.ends = np.cumsum(lengths).tolist()
        self.heavy = np.concatenate([expected_heavy(row) for row in rows])
        self.inputs = SweepInputs(
            hidden=mx.concatenate(hidden),
            temperature=mx.array(np.repeat([row.temperature for row in rows], lengths).astype(np.float32)),
            uniforms=mx.array(np.concatenate([row.uniforms for row in rows]).astype(np.float32)),
            heavy=self.heavy,
        )
        allowed, self.allowed_index = Allowed(rows), None
        if table := allowed.table(slices.table.vocab_size):
            self.inputs.allowed, self.allowed_index = mx.array(table[0][:, slices.table.here]), table[1]
            self.inputs.allowed_index = mx.array(self.allowed_index)
        self.result: SweepResult = Sweep(slices, self.inputs, cap).run()
        self.logprobs = self._logprobs(allowed)

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays that a synchronisation brings up."""
        return [*vars(self.result).values(), *self.logprobs.values()]

    def _logprobs(self, allowed: Allowed) -> dict[int, mx.array]:
        """position -> log-probabilities of the set that is allowed there: a product with its rows of the table."""
        logprobs = {}
        for token_set, positions in allowed.small():
            places = mx.array(positions)
            rows, here = self.slices.table.rows_here(mx.array(token_set.ids), self.inputs.hidden.dtype)
            raw = parallel.placed(self.inputs.hidden[places] @ rows.T, here)
            logits = processed(raw, self.cap, self.inputs.temperature[places][:, None])
            logprobs |= dict(zip(positions.tolist(), logits - self.result.normaliser[places][:, None], strict=True))
        return logprobs

    def predictions(self) -> list[Prediction]:
        # Whole arrays, which are there by now: a slice of one on the device would have to be waited for again.
        host = {name: np.array(array) for name, array in vars(self.result).items() if name != "soft"}
        return [
            self._prediction(row, slice(end - len(row.canvas), end), hidden, host)
            for row, end, hidden in zip(self.rows, self.ends, self.hidden, strict=True)
        ]

    def _prediction(self, row: Row, part: slice, hidden: mx.array, host: dict[str, np.ndarray]) -> Prediction:
        vectors, certain = lay_fixed(row, {name: host[name][part].copy() for name in VECTORS})
        heavy, before = self.heavy[part], int(self.heavy[: part.start].sum())
        soft = SoftEmbedding(
            hidden=hidden,
            temperature=row.temperature,
            **{name: host[name][part] for name in ("tokens", "shares", "lost")},
            heavy=heavy,
            soft=self.result.soft[before : before + int(heavy.sum())],
            allowed=None if self.allowed_index is None else (self.inputs.allowed, self.allowed_index[part]),
        )
        logprobs = {p - part.start: np.array(v) for p, v in self.logprobs.items() if part.start <= p < part.stop}
        return Prediction(**vectors, allowed_logprobs=logprobs, self_conditioning=Conditioning(soft, certain))
