"""The rows of a call as inputs of a sweep over the vocabulary, and its result as their predictions.

`sweep.py` has the arithmetic over the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..seam.model import Prediction, Row
from ..seam.shared import VECTORS, known_ids, lay_fixed
from ..seam.token_sets import Allowed
from . import parallel
from .layers import Embedding, product
from .sweep import SweepResult, processed


@dataclass
class Conditioning:
    """The self-conditioning of a row's next pass: `Prediction.self_conditioning`."""

    soft: Tensor | None  # [L, D], the mean embedding of each position; None: zeros
    certain: np.ndarray | None  # [L] int32 ids that are known, -1 elsewhere


def conditioning_of(row: Row) -> Conditioning:
    """The conditioning of `row` by its last pass, and by its hint over that."""
    last: Conditioning = row.self_conditioning or Conditioning(None, None)
    return Conditioning(last.soft, known_ids(row, last.certain))


def to_numpy(arrays: dict[str | int, Tensor]) -> dict[str | int, np.ndarray]:
    """Copy arrays of 4-byte numbers to the host, in one synchronisation."""
    flat = torch.cat([array.contiguous().view(torch.int32).flatten() for array in arrays.values()])
    parts = flat.cpu().split([array.numel() for array in arrays.values()])
    return {
        name: part.view(array.dtype).view(array.shape).numpy()
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    }


class Readout:
    """The rows of a call on their way through a sweep over T positions: their canvases, and what they are padded by."""

    def __init__(self, rows: Sequence[Row], starts: Sequence[int]):
        """`starts`: where each row's canvas begins, of padding behind `rows`, too; and behind them T."""
        self.rows, self.starts, total = rows, starts[: len(rows)], starts[-1]
        self.temperature, self.uniforms = np.ones(total, np.float32), np.zeros(total, np.float32)
        for row, start in zip(rows, self.starts, strict=True):
            canvas = slice(start, start + len(row.canvas))
            self.temperature[canvas], self.uniforms[canvas] = row.temperature, row.uniforms
        self.allowed = Allowed(rows, np.diff([*self.starts, total]).tolist())

    def inputs(self, vocab_size: int) -> dict[str, Tensor]:
        """The fields of `SweepInputs` but `hidden`; `allowed` and `allowed_index` only where a row restricts a
        position."""
        arrays = {"temperature": self.temperature, "uniforms": self.uniforms}
        if (table := self.allowed.table(vocab_size)) is not None:
            arrays["allowed"], arrays["allowed_index"] = table
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def logprobs(self, hidden: Tensor, result: SweepResult, table: Embedding, cap: float) -> dict[int, Tensor]:
        """Position -> log-probabilities of the small set that is allowed there: a product with its rows of the table.
        A position counts through all rows."""
        logprobs: dict[int, Tensor] = {}
        for token_set, positions in self.allowed.small():
            arrays = positions, token_set.ids, self.temperature[positions]
            at, ids, temperature = (torch.from_numpy(array).to(hidden.device) for array in arrays)
            rows, here = table.rows_here(ids, hidden.dtype)
            raw = parallel.placed(product(hidden[at], rows.T).T, here).T
            logits = processed(raw, temperature[:, None], None, cap) - result.normaliser[at, None]
            logprobs |= dict(zip(positions.tolist(), logits, strict=True))
        return logprobs

    def predictions(self, result: SweepResult, logprobs: dict[int, Tensor]) -> list[Prediction]:
        """Read the results, row by row. Waits for the device, once."""
        vectors = {name: array for name, array in vars(result).items() if name in VECTORS}
        host = to_numpy(vectors | logprobs)
        soft, predictions = result.soft.clone(), []
        for row, start in zip(self.rows, self.starts, strict=True):
            end = start + len(row.canvas)
            laid, certain = lay_fixed(row, {name: host[name][start:end].copy() for name in VECTORS})
            allowed = {p - start: host[p] for p in logprobs if start <= p < end}
            conditioning = Conditioning(soft[start:end], certain)
            predictions.append(Prediction(**laid, allowed_logprobs=allowed, self_conditioning=conditioning))
        return predictions
