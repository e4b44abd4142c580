"""What the MLX backend tells the benchmark of itself."""

from __future__ import annotations

import math

import checkpoints
import numpy as np
import pytest

from mlx_dgemma.benchmark.count import PARTS
from mlx_dgemma.checkpoint.folder import read_tensors
from mlx_dgemma.checkpoint.names import is_vision
from mlx_dgemma.load import load
from mlx_dgemma.mlx_backend import layers, measure, network
from mlx_dgemma.seam.model import Row


@pytest.fixture(scope="module")
def model():
    return load()[0]


def test_weight_bytes_are_those_of_the_file(model):
    stored = sum(t.nbytes for name, t in read_tensors(checkpoints.TINY).items() if not is_vision(name))
    assert sum(measure.weight_bytes(model).values()) == stored


def test_the_parts_of_a_step(model):
    rng, cache = np.random.default_rng(0), model.new_cache()
    model.encode([rng.integers(50, size=30)], [cache])
    row = Row(np.zeros(64, np.int32), cache, 0.8, rng.random(64, dtype=np.float32))
    before = model.denoise([row])[0]
    row.self_conditioning = before.self_conditioning
    calls = layers.Linear.__call__, network.Experts.__call__, network.attend
    seconds = measure.step_parts(model, [row], repeat=2)
    assert set(seconds) == {*PARTS, "rest"} and all(seconds[part] > 0 for part in PARTS)
    assert (layers.Linear.__call__, network.Experts.__call__, network.attend) == calls  # as they were
    assert cache.length == 30
    found = model.denoise([row])[0]
    row.self_conditioning = before.self_conditioning
    assert np.array_equal(model.denoise([row])[0].entropy, found.entropy)


def test_parts_are_recorded_once_a_module(model):
    rng, cache = np.random.default_rng(0), model.new_cache()
    model.encode([[5, 6]], [cache])
    row = Row(np.zeros(64, np.int32), cache, 0.8, rng.random(64, dtype=np.float32))
    row.self_conditioning = model.denoise([row])[0].self_conditioning
    with measure._recorded(model) as calls:
        model._canvas_hidden([row])
    layer = model.config.layers
    # q, k, o, gate, up, down, router; v where the layer slides
    assert len(calls["linears"]) == 7 * len(layer) + sum(one.sliding for one in layer)
    assert len(calls["experts"]) == len(calls["attention"]) == len(layer)
    assert len(calls["self-conditioning"]) == 3


def test_ceilings_are_rates():
    found = measure.ceilings("float32")
    assert all(math.isfinite(rate) and rate > 1e8 for name, rate in found.items() if name.endswith("_per_second"))


def test_the_device_names_nobody():
    about = measure.device()
    assert {"name", "memory", "backend", "shared_memory", "versions", "driver"} <= set(about)
    import platform

    assert platform.node() not in str(about)
