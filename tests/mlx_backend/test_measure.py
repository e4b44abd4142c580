"""What the MLX backend tells the benchmark of itself."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

from mlx_dgemma.checkpoint.folder import read_tensors
from mlx_dgemma.checkpoint.names import is_vision
from mlx_dgemma.load import load
from mlx_dgemma.mlx_backend import measure
from mlx_dgemma.seam.model import Row, Text


@pytest.fixture(scope="module")
def model():
    return load()[0]


def test_weight_bytes_are_those_of_the_file(model):
    stored = sum(t.nbytes for name, t in read_tensors(checkpoints.TINY).items() if not is_vision(name))
    assert sum(measure.weight_bytes(model).values()) == stored


def late_row(model) -> Row:
    """A canvas behind a text of 30 tokens, in its second pass."""
    rng, cache = np.random.default_rng(0), model.new_cache()
    model.encode([Text(rng.integers(50, size=30))], [cache])
    row = Row(np.zeros(64, np.int32), cache, 0.8, rng.random(64, dtype=np.float32))
    row.self_conditioning = model.denoise([row])[0].self_conditioning
    return row


def test_the_parts_of_a_step(model):
    row = late_row(model)
    [before] = model.denoise([row])
    seconds = measure.step_parts(model, [row], repeat=2)
    parts = {"linears", "experts", "attention", "head and draw", "self-conditioning"}
    assert set(seconds) == {*parts, "rest"} and all(seconds[part] > 0 for part in parts)
    assert row.cache.length == 30  # and nothing else has changed
    assert np.array_equal(model.denoise([row])[0].entropy, before.entropy)


def test_the_parts_are_those_of_the_network(model):
    layers, tokens = model.config.layers, 64
    # q, k, o, gate, up, down, router; v where the layer slides
    assert len(measure._linears(model, tokens)()) == 7 * len(layers) + sum(layer.sliding for layer in layers)
    experts = measure._experts(model, tokens)()
    assert [array.shape for array in experts] == [(tokens, model.config.hidden_size)] * len(layers)
    attended = measure._attention(model, [late_row(model)])()
    heads = model.config.num_attention_heads
    assert [array.shape for array in attended] == [(1, heads, tokens, layer.head_dim) for layer in layers]


def test_primitives_are_counted(model):
    row = late_row(model)
    counts = measure.step_primitives(model, [row])
    # Gate-and-up and down in each layer; the draw reads no block again where there is but one.
    assert counts["GatherMM"] == 2 * len(model.config.layers)
    twice = measure.step_primitives(model, [row, late_row(model)])
    assert twice["GatherMM"] == counts["GatherMM"] and twice["Power"] > counts["Power"]
    assert row.cache.length == 30


def test_the_device_names_nobody():
    about = measure.device()
    assert {"name", "memory", "backend", "shared_memory", "versions", "driver"} <= set(about)
    import platform

    assert platform.node() not in str(about)
