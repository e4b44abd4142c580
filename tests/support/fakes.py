"""A model without weights: it says what it was told to, and keeps a record of what it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlx_dgemma.seam.model import Prediction, Row


@dataclass
class FakeConfig:
    vocab_size: int = 50
    canvas_length: int = 8
    max_position_embeddings: int = 1000
    stop_ids: tuple[int, ...] = (1,)
    pad_id: int = 0


@dataclass
class FakeCache:
    tokens: list[int] = field(default_factory=list)
    passes: int = 0


@dataclass
class FakeModel:
    """Pass n answers with the n-th of `script`: an argmax [L], sure everywhere but at `unsure` positions."""

    script: list[tuple[list[int], list[int]]]
    config: FakeConfig = field(default_factory=FakeConfig)
    rows: list[Row] = field(default_factory=list)
    caches: list[FakeCache] = field(default_factory=list)

    def new_cache(self, capacity: int | None = None) -> FakeCache:
        self.caches.append(FakeCache())
        return self.caches[-1]

    def denoise(self, rows):
        """The n-th pass over a cache follows the n-th line of the script, whoever else is in the call."""
        found = []
        for row in rows:
            passes = row.cache.passes
            argmax, unsure = self.script[min(passes, len(self.script) - 1)]
            self.rows.append(row)
            row.cache.tokens += list(row.pending)
            row.cache.passes += 1
            entropy = np.zeros(len(row.canvas), dtype=np.float32)
            entropy[unsure] = 2.0
            argmax = np.array(argmax, dtype=np.int32)
            found.append(Prediction(argmax, argmax, entropy, np.exp(-entropy), {}, f"after pass {passes + 1}"))
        return found
