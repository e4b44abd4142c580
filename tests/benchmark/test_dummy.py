"""Random weights made on the device: the right shapes and sizes, and predictions that are none too wild."""

from __future__ import annotations

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dgemma.benchmark.subject import PRECISIONS
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import dummy
from mlx_dgemma.mlx_backend.layers import Linear
from mlx_dgemma.mlx_backend.model import MLXModel
from mlx_dgemma.seam.model import Row, Text

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "vocab_size": 512, "head_dim": 32}
CONFIG = parse_config(checkpoints.config(**SHAPE), checkpoints.generation_config())


def made(precision: str, seed: int = 0, peaked: float = 1.0) -> MLXModel:
    return dummy(CONFIG, "mlx", *PRECISIONS[precision], seed=seed, peaked=peaked)


def entropy(model) -> float:
    rng = np.random.default_rng(0)
    canvas, uniforms = rng.integers(512, size=16), rng.random(16, dtype=np.float32)
    [found] = model.denoise([Row(canvas, model.new_cache(), 0.6, uniforms, pending=Text([3, 4, 5]))])
    return float(np.median(found.entropy))


@pytest.mark.parametrize("precision", ["float32", "bf16", "4bit"])
def test_it_predicts_and_its_weights_are_about_one_over_the_width(precision):
    model = made(precision)
    assert 1 < entropy(model) < np.log(512)
    layer = model.network.model.decoder.layers[0].experts.gate_up_proj
    assert float(layer.rows(slice(None), mx.float32).astype(mx.float32).var()) == pytest.approx(1 / 64, rel=0.1)


def test_peaked_and_seeds():
    assert entropy(made("float32", peaked=8)) < 1 < entropy(made("float32")) / 2
    weights = [dict(tree_flatten(made("bf16", seed=seed).network.parameters())) for seed in (0, 0, 1)]
    same = [[bool((weights[0][path] == other[path]).all()) for path in other] for other in weights[1:]]
    assert all(same[0]) and not all(same[1])


def test_4bit_is_as_convert_stores_it():
    modules = made("4bit").network.named_modules()
    bits = {path.split(".")[-2]: m.quantization.bits for path, m in modules if isinstance(m, Linear)}
    assert bits["experts"] == 4 and bits["self_attn"] == 8 and bits["mlp"] == 8
