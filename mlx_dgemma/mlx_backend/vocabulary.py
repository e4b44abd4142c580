"""What a row asks of the vocabulary, and what it hears: predictions, self-conditioning.

The arithmetic over the vocabulary is in `sweep.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..seam.model import Prediction, Row
from ..seam.token_sets import LOGPROB_SET, TokenSets
from .arithmetic import to_mlx
from .layers import Embedding
from .sweep import LOST, Asked, Slices, Sweep, Swept

GROUP = 8  # tokens of each list whose embeddings are fetched at a time


@dataclass
class SelfConditioning:
    """What one pass tells the next: for each position a mean embedding, from its list where that says enough, from a
    sum over the whole table where such a sum was made, and else from a second look at its hidden state."""

    hidden: mx.array | None  # [L, D]; None: nothing is known but what is certain
    temperature: float
    allowed: tuple[np.ndarray, np.ndarray] | None
    found: dict[str, np.ndarray]  # of the row: tokens, shares, lost
    heavy: np.ndarray  # [L] bool: positions of `soft`
    soft: Any  # [heavy, D]
    certain: np.ndarray | None  # [L] int32 ids that are known, -1 elsewhere

    def expect_heavy(self) -> np.ndarray:
        """[L] bool: where the next pass had better sum up the whole table."""
        return self.found["lost"] > LOST[self.hidden.dtype]


def _listed(table: Embedding, tokens: np.ndarray, shares: np.ndarray) -> mx.array:
    """[n, D]: sums over each position's list."""
    used = int(np.max(np.nonzero(shares.any(axis=0))[0], initial=-1)) + 1
    total = mx.zeros((len(tokens), table.hidden_size), dtype=mx.float32)
    for first in range(0, used, GROUP):
        ids, weights = mx.array(tokens[:, first : first + GROUP]), mx.array(shares[:, first : first + GROUP])
        rows = table.rows(ids.flatten(), table.dtype).reshape(*ids.shape, -1)
        total = total + (rows * weights[..., None]).sum(axis=1)
    return total


def soft_embedding(told: SelfConditioning, table: Embedding, slices: Slices, cap: float) -> mx.array:
    """[L, D]: what the canvas hears of its last pass. Lazy."""
    length = len(told.heavy)
    soft = mx.zeros((length, table.hidden_size), dtype=mx.float32)
    if told.hidden is not None:
        lost, dtype = told.found["lost"], told.hidden.dtype
        tokens, shares = told.found["tokens"], told.found["shares"]
        light = ~told.heavy & (lost <= LOST[dtype])
        missed = ~told.heavy & ~light
        parts = [(np.flatnonzero(told.heavy), told.soft)]
        parts += [(np.flatnonzero(light), _listed(table, tokens[light], shares[light]))] if light.any() else []
        parts += [(np.flatnonzero(missed), _second_look(told, missed, slices, cap))] if missed.any() else []
        places = np.argsort(np.concatenate([positions for positions, _ in parts]))
        soft = mx.concatenate([mx.array(sums) for _, sums in parts])[mx.array(places)]
    soft = soft.astype(table.dtype) * table.hidden_size**0.5
    if told.certain is None:
        return soft
    known = mx.array(told.certain >= 0)[:, None]
    return mx.where(known, table(mx.array(np.maximum(told.certain, 0))), soft)


def _second_look(told: SelfConditioning, positions: np.ndarray, slices: Slices, cap: float) -> mx.array:
    count = int(positions.sum())
    allowed = told.allowed and (told.allowed[0], told.allowed[1][positions])
    temperature = np.full(count, told.temperature, np.float32)
    hidden = told.hidden[mx.array(np.flatnonzero(positions))]
    asked = Asked(hidden, temperature, np.zeros(count, np.float32), np.ones(count, bool), *(allowed or ()))
    return Sweep(slices, asked, cap).run().soft


def conditioning_of(row: Row) -> SelfConditioning | None:
    """What `row` brings along: its last pass, and its hint over that."""
    told: SelfConditioning | None = row.self_conditioning
    if row.hint is None:
        return told
    hint = np.asarray(row.hint, dtype=np.int32)
    if told is None:
        return SelfConditioning(None, 1.0, None, {}, np.zeros(len(hint), bool), None, hint)
    known = hint if told.certain is None else np.where(hint >= 0, hint, told.certain)
    return SelfConditioning(told.hidden, told.temperature, told.allowed, told.found, told.heavy, told.soft, known)


def expected_heavy(row: Row) -> np.ndarray:
    """[L] bool: positions whose soft embedding will likely need the whole table."""
    told: SelfConditioning | None = row.self_conditioning
    if told is None or told.hidden is None:
        return np.ones(len(row.canvas), dtype=bool)  # a first pass is sure of little
    return told.expect_heavy()


def head(table: Embedding, hidden: mx.array, cap: float) -> mx.array:
    """[L, D] -> [L, V] float32, softcapped: cap * tanh(x / cap)."""
    return mx.tanh(to_mlx(table.product(hidden), mx.float32) / cap) * cap


class Look:
    """The look of all rows of a call at the vocabulary: `arrays` are evaluated, then `predictions` read them."""

    def __init__(self, rows: Sequence[Row], hidden: list[mx.array], slices: Slices, sets: TokenSets, cap: float):
        self.rows, self.hidden, self.sets = rows, hidden, sets
        self.ends = np.cumsum([len(row.canvas) for row in rows]).tolist()
        lengths = [len(row.canvas) for row in rows]
        own = [np.full(n, -1) if row.allowed is None else row.allowed for row, n in zip(rows, lengths, strict=True)]
        self.set_of = np.concatenate(own)  # [T], -1 where anything may stand
        self.allowed = sets.table(self.set_of) if (self.set_of != -1).any() else None
        self.heavy = np.concatenate([expected_heavy(row) for row in rows])
        asked = Asked(
            hidden=mx.concatenate(hidden),
            temperature=np.repeat([row.temperature for row in rows], lengths).astype(np.float32),
            uniforms=np.concatenate([row.uniforms for row in rows]).astype(np.float32),
            heavy=self.heavy,
            allowed=self.allowed and self.allowed[0],
            allowed_index=self.allowed and self.allowed[1],
        )
        self.swept: Swept = Sweep(slices, asked, cap).run()
        self.slices, self.cap = slices, cap
        self.logprobs = self._logprobs(asked)

    @property
    def arrays(self) -> list[mx.array]:
        """What one synchronisation brings up."""
        return [array for array in (*vars(self.swept).values(), *self.logprobs.values()) if isinstance(array, mx.array)]

    def _logprobs(self, asked: Asked) -> dict[int, mx.array]:
        """position -> over the set that is allowed there: a product with few rows of the table."""
        found = {}
        for index in np.unique(self.set_of[self.set_of >= 0]).tolist():
            ids = self.sets.ids[index]
            if len(ids) >= LOGPROB_SET:
                continue
            positions = np.flatnonzero(self.set_of == index)
            few = self.slices.table.rows(mx.array(ids), asked.hidden.dtype)
            raw = (asked.hidden[mx.array(positions)] @ few.T).astype(mx.float32)
            logits = mx.tanh(raw / self.cap) * (self.cap / mx.array(asked.temperature[positions])[:, None])
            normaliser = mx.array(self.swept.normaliser)[mx.array(positions)][:, None]
            found |= dict(zip(positions.tolist(), logits - normaliser, strict=True))
        return found

    def predictions(self) -> list[Prediction]:
        # Whole arrays, which are there by now: a slice of one on the device would have to be waited for again.
        host = {name: np.array(array) for name, array in vars(self.swept).items() if name != "soft"}
        return [
            self._prediction(row, slice(end - len(row.canvas), end), hidden, host)
            for row, end, hidden in zip(self.rows, self.ends, self.hidden, strict=True)
        ]

    def _prediction(self, row: Row, own: slice, hidden: mx.array, host: dict[str, np.ndarray]) -> Prediction:
        canvas, certain = np.asarray(row.canvas, dtype=np.int32), None
        found = {name: host[name][own].copy() for name in ("argmax", "sample", "entropy", "confidence")}
        if row.fixed is not None:
            fixed = np.asarray(row.fixed, dtype=bool)
            certain = np.where(fixed, canvas, -1).astype(np.int32)
            for name, given in (("argmax", canvas), ("sample", canvas), ("entropy", 0), ("confidence", 1)):
                found[name] = np.where(fixed, given, found[name]).astype(found[name].dtype)
        heavy, before = self.heavy[own], int(self.heavy[: own.start].sum())
        told = SelfConditioning(
            hidden=hidden,
            temperature=row.temperature,
            allowed=self.allowed and (self.allowed[0], self.allowed[1][own]),
            found={name: host[name][own] for name in ("tokens", "shares", "lost")},
            heavy=heavy,
            soft=self.swept.soft[before : before + int(heavy.sum())],
            certain=certain,
        )
        logprobs = {p - own.start: np.array(v) for p, v in self.logprobs.items() if own.start <= p < own.stop}
        return Prediction(**found, allowed_logprobs=logprobs, self_conditioning=told)
