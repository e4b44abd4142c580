"""The rows of a call as inputs of a sweep over the vocabulary, and its result as their predictions.

The arithmetic over the vocabulary is in `sweep.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..seam.model import Prediction, Row
from ..seam.shared import VECTORS, lay_fixed
from ..seam.token_sets import Allowed
from . import parallel
from .layers import Embedding
from .sweep import SweepResult, capped


@dataclass
class Conditioning:
    """Carries the prediction of one pass to the next."""

    soft: Tensor | None  # [L, D], the mean embedding of each position; None: zeros
    certain: np.ndarray | None  # [L] int32 ids that are known, -1 elsewhere


def conditioning_of(row: Row) -> Conditioning:
    """The conditioning that `row` brings from its last pass, with its hint laid over it."""
    conditioning: Conditioning = row.self_conditioning or Conditioning(None, None)
    if row.hint is None:
        return conditioning
    hint = np.asarray(row.hint, dtype=np.int32)
    before = conditioning.certain
    return replace(conditioning, certain=hint if before is None else np.where(hint >= 0, hint, before))


def to_numpy(arrays: dict[str | int, Tensor]) -> dict[str | int, np.ndarray]:
    """Copy arrays of 4-byte numbers to the host, in one synchronisation. Every rank gets rank 0's."""
    flat = torch.cat([array.contiguous().view(torch.int32).flatten() for array in arrays.values()])
    host = parallel.from_first(flat).cpu().numpy()
    ends = np.cumsum([array.numel() for array in arrays.values()])
    parts = zip(arrays.items(), np.split(host, ends[:-1]), strict=True)
    return {
        name: part.view(np.float32 if array.dtype == torch.float32 else np.int32).reshape(array.shape)
        for (name, array), part in parts
    }


class Readout:
    """The rows of a call, each padded to `length` positions, on their way through a sweep: T = count * length."""

    def __init__(self, rows: Sequence[Row], count: int, length: int):
        """`count`: rows of the pass, padding behind `rows` included."""
        self.rows, self.length = rows, length
        self.temperature = np.ones((count, length), np.float32)
        self.uniforms = np.zeros((count, length), np.float32)
        for i, row in enumerate(rows):
            canvas = (i, slice(len(row.canvas)))
            self.temperature[canvas], self.uniforms[canvas] = row.temperature, row.uniforms
        self.allowed = Allowed(rows, [length] * len(rows))

    def inputs(self, vocab_size: int) -> dict[str, Tensor]:
        """The fields of `SweepInputs` but `hidden`; `allowed` and `allowed_index` only where a row restricts a
        position."""
        arrays = {"temperature": self.temperature.ravel(), "uniforms": self.uniforms.ravel()}
        if (table := self.allowed.table(vocab_size)) is not None:
            padding = self.temperature.size - len(table[1])
            arrays["allowed"], arrays["allowed_index"] = table[0], np.pad(table[1], (0, padding))  # 0 allows all
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def logprobs(self, hidden: Tensor, result: SweepResult, table: Embedding, cap: float) -> dict[int, Tensor]:
        """Position -> log-probabilities of the small set that is allowed there: a product with few rows of the table.
        A position counts through all rows: row * length + position in the canvas."""
        logprobs: dict[int, Tensor] = {}
        for token_set, positions in self.allowed.small():
            at = torch.from_numpy(positions).to(hidden.device)
            weight = table.rows(torch.from_numpy(token_set.ids).to(hidden.device), hidden.dtype)
            temperature = torch.from_numpy(self.temperature.ravel()[positions]).to(hidden.device)[:, None]
            logits = capped(hidden[at] @ weight.T, cap) / temperature - result.normaliser[at, None]
            logprobs |= dict(zip(positions.tolist(), logits, strict=True))
        return logprobs

    def predictions(self, result: SweepResult, logprobs: dict[int, Tensor]) -> list[Prediction]:
        """Read the results, row by row. Waits for the device, once."""
        vectors = {name: array for name, array in vars(result).items() if name in VECTORS}
        host = to_numpy(vectors | logprobs)
        soft = result.soft.clone().unflatten(0, (-1, self.length))
        predictions = []
        for i, row in enumerate(self.rows):
            start, length = i * self.length, len(row.canvas)
            laid, certain = lay_fixed(row, {name: host[name][start : start + length].copy() for name in VECTORS})
            allowed = {p - start: host[p] for p in logprobs if start <= p < start + length}
            conditioning = Conditioning(soft[i, :length], certain)
            predictions.append(Prediction(**laid, allowed_logprobs=allowed, self_conditioning=conditioning))
        return predictions
