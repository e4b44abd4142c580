"""What the GPU may hold is asked of Metal."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_dgemma.checkpoint.memory import check_memory
from mlx_dgemma.errors import Mistake
from mlx_dgemma.mlx_backend.load import memory_of_the_gpu


def test_metal_is_asked(monkeypatch):
    assert memory_of_the_gpu() == (None, "") or mx.metal.is_available()
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda device: {"max_recommended_working_set_size": 48 * 10**9})
    monkeypatch.setattr(mx, "get_active_memory", lambda: 10**9)
    check_memory(int(46.9e9), "fits", *memory_of_the_gpu())
    with pytest.raises(Mistake, match=r"needs 50.5 GB, 47.0 GB are free; .*-8bit would fit; .*iogpu.wired_limit_mb"):
        check_memory(int(50.5e9), "google/diffusiongemma-26B-A4B-it", *memory_of_the_gpu())
