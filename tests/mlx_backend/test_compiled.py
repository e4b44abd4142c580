"""A GPU's path with its functions compiled, as they are there: here by the C++ compiler that MLX calls."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from mlx_dgemma.load import load
from mlx_dgemma.mlx_backend import family, sweep
from mlx_dgemma.seam.model import Row, Text


def entropies(rows: int) -> list[np.ndarray]:
    """Of passes of other and other sizes, first and conditioned, some positions heavy."""
    model, rng = load(dtype="float32")[0], np.random.default_rng(0)
    found = []
    for length in (64, 20):
        cache = model.new_cache()
        model.encode([Text(rng.integers(288, size=30))], [cache])
        canvases = rng.integers(288, size=(rows, length)).astype(np.int32)
        several = [Row(canvas, cache, 0.6, rng.random(length, dtype=np.float32)) for canvas in canvases]
        for _ in range(3):
            predictions = model.denoise(several)
            found += [prediction.entropy for prediction in predictions]
            for row, prediction in zip(several, predictions, strict=True):
                row.self_conditioning = prediction.self_conditioning
    return found


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="MLX compiles for a CPU with g++")
@pytest.mark.parametrize("path", ["GPU", "MATRIX_GPU"])
def test_compiled_functions_compute_the_same(monkeypatch, path):
    monkeypatch.setattr(sweep, "LISTED", set(sweep.REACH))
    expected = entropies(2)
    monkeypatch.setattr(family, "current", lambda: getattr(family, path))
    for right, mine in zip(expected, entropies(2), strict=True):
        assert np.abs(right - mine).max() < 1e-4
