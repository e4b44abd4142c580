"""What a row asks of the vocabulary, and what it hears: predictions, self-conditioning.

The arithmetic over the vocabulary is in `sweep.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..seam.model import Prediction, Row
from ..seam.token_sets import LOGPROB_SET, TokenSets
from . import parallel
from .layers import Embedding
from .sweep import Swept, capped

VECTORS = ("argmax", "sample", "entropy", "confidence")


@dataclass
class SelfConditioning:
    """What one pass tells the next."""

    soft: Tensor | None  # [L, D], the mean embedding of each position; None: nothing is known but what is certain
    certain: np.ndarray | None  # [L] int32 ids that are known, -1 elsewhere


def conditioning_of(row: Row) -> SelfConditioning:
    """What `row` brings along: its last pass, and its hint over that."""
    told: SelfConditioning = row.self_conditioning or SelfConditioning(None, None)
    if row.hint is None:
        return told
    hint = np.asarray(row.hint, dtype=np.int32)
    return replace(told, certain=hint if told.certain is None else np.where(hint >= 0, hint, told.certain))


class Question:
    """What the rows of a call ask, each padded to L positions, as [rows * L] arrays."""

    def __init__(self, rows: Sequence[Row], count: int, length: int, sets: TokenSets):
        self.rows, self.length, self.sets = rows, length, sets
        self.temperature = np.ones((count, length), np.float32)
        self.uniforms = np.zeros((count, length), np.float32)
        self.set_of = np.full((count, length), -1)  # -1 where anything may stand
        for i, row in enumerate(rows):
            own = (i, slice(len(row.canvas)))
            self.temperature[own], self.uniforms[own] = row.temperature, row.uniforms
            if row.allowed is not None:
                self.set_of[own] = row.allowed

    def inputs(self) -> dict[str, Tensor]:
        """For `sweep.Asked`; `allowed` and `index` only where a row asks for it."""
        found = {"temperature": self.temperature.ravel(), "uniforms": self.uniforms.ravel()}
        if (self.set_of != -1).any():
            found["allowed"], found["index"] = self.sets.table(self.set_of.ravel())
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def logprobs(self, hidden: Tensor, swept: Swept, table: Embedding, cap: float) -> dict[int, Tensor]:
        """position -> over the set that is allowed there: a product with few rows of the table."""
        found, set_of = {}, self.set_of.ravel()
        for index in np.unique(set_of[set_of >= 0]).tolist():
            ids = self.sets.ids[index]
            if len(ids) >= LOGPROB_SET:
                continue
            positions = np.flatnonzero(set_of == index)
            at = torch.from_numpy(positions).to(hidden.device)
            few = table.rows(torch.tensor(ids, device=hidden.device), hidden.dtype)
            temperature = torch.from_numpy(self.temperature.ravel()[positions]).to(hidden.device)[:, None]
            logits = capped(hidden[at] @ few.T, cap) / temperature - swept.normaliser[at, None]
            found |= dict(zip(positions.tolist(), logits, strict=True))
        return found


def bring(arrays: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """To the host, in one synchronisation; those of rank 0. Arrays of 4-byte numbers."""
    flat = torch.cat([array.contiguous().view(torch.int32).flatten() for array in arrays.values()])
    host, found = parallel.from_first(flat).cpu().numpy(), {}
    ends = np.cumsum([array.numel() for array in arrays.values()])
    for (name, array), part in zip(arrays.items(), np.split(host, ends[:-1]), strict=True):
        kind = np.float32 if array.dtype == torch.float32 else np.int32
        found[name] = part.view(kind).reshape(array.shape)
    return found


def predictions(question: Question, swept: Swept, logprobs: dict[int, Tensor]) -> list[Prediction]:
    """What came of it. Waits for the device, once."""
    host = bring({name: getattr(swept, name) for name in VECTORS} | logprobs)
    soft, found = swept.soft.clone().unflatten(0, (-1, question.length)), []
    for i, row in enumerate(question.rows):
        start, length = i * question.length, len(row.canvas)
        own = {name: host[name][start : start + length].copy() for name in VECTORS}
        certain = None
        if row.fixed is not None:
            canvas, fixed = np.asarray(row.canvas, dtype=np.int32), np.asarray(row.fixed, dtype=bool)
            certain = np.where(fixed, canvas, -1).astype(np.int32)
            for name, given in (("argmax", canvas), ("sample", canvas), ("entropy", 0), ("confidence", 1)):
                own[name] = np.where(fixed, given, own[name]).astype(own[name].dtype)
        allowed = {p - start: host[p] for p in logprobs if start <= p < start + length}
        told = SelfConditioning(soft[i, :length], certain)
        found.append(Prediction(**own, allowed_logprobs=allowed, self_conditioning=told))
    return found
