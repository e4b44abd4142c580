"""The parts of a step, random models of any precision, and what they hold."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch
from checkpoints import published

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.convert.recipes import mlx_community, plain, quantization
from mlx_dgemma.errors import Mistake
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import dummy, measure
from mlx_dgemma.torch_backend.cache import Pool
from mlx_dgemma.torch_backend.layers import Linear
from mlx_dgemma.torch_backend.network import Network

SHAPE = {"hidden_size": 128, "intermediate_size": 64, "moe_intermediate_size": 64, "vocab_size": 256, "head_dim": 32}
PRECISIONS = {name: (name, plain) for name in ("float32", "bfloat16", "fp8")}
PRECISIONS["4bit"] = ("bfloat16", mlx_community(quantization(bits=4)))  # as `convert -q` stores it
PARTS = ["linears", "experts", "attention", "self-conditioning", "head and draw", "rest"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.sample(1)
def test_a_random_model_and_the_parts_of_its_step(precision, together):
    model = dummy.dummy_torch(parse_config(checkpoints.config(**SHAPE)), *PRECISIONS[precision], peaked=3.0)
    model.padded = together
    rows = []
    for seed in range(2):
        rng, cache = np.random.default_rng(seed), model.new_cache()
        model.encode([Text(rng.integers(256, size=30))], [cache])
        rows.append(Row(rng.integers(256, size=16), cache, 0.7, rng.random(16, dtype=np.float32)))
    before = model.denoise(rows)
    seconds = measure.step_parts(model, rows, repeat=2)
    assert sorted(seconds) == sorted(PARTS) and all(seconds[part] > 0 for part in PARTS[:3])
    for first, second in zip(before, model.denoise(rows), strict=True):  # nothing was left behind
        assert np.array_equal(first.argmax, second.argmax) and np.isfinite(first.entropy).all()


def test_bits_by_class():
    config = parse_config(checkpoints.config(**SHAPE))
    held = {name: measure.weight_bytes(dummy.dummy_torch(config, *made)) for name, made in PRECISIONS.items()}
    for name, bits in {"experts": 4.5, "attention": 8.5, "dense MLP": 8.5, "embedding": 8.5}.items():
        assert held["4bit"][name] / held["float32"][name] == pytest.approx(bits / 32, rel=0.02)
    assert held["fp8"]["experts"] / held["float32"]["experts"] == pytest.approx(1 / 4, rel=0.1)
    with pytest.raises(Mistake, match=r"'2bit' is not one .* need one of float32, bfloat16, float16, fp8"):
        dummy.dummy_torch(config, "2bit", plain)


@pytest.mark.slow
def test_the_device_and_its_ceilings():
    about, rates = measure.device(), measure.ceilings("float32")
    assert about["memory"] > 1e9 and about["versions"]["torch"] == torch.__version__
    assert 1e8 < rates["copy_bytes_per_second"] < 1e14 and 1e8 < rates["product_flops_per_second"] < 1e16


def test_the_published_model_fits_a_card_of_18_gb(tmp_path):
    """By count, at a context of 4,096: weights, the cache, and the largest arrays of a step."""
    config = parse_config(json.loads((published(tmp_path) / "config.json").read_text()))
    recipe = mlx_community(quantization(bits=4))
    with torch.device("meta"):
        network = Network(config)
        for path, module in network.named_modules():
            if isinstance(module, Linear) and (stored := recipe(path)):
                module.quantize(stored)
    # Scales and biases are declared as float32 and held in bfloat16.
    weights = sum(a.nbytes // 2 if a.dtype == torch.float32 else a.nbytes for a in network.buffers())
    cache = Pool(config, network.kinds, torch.bfloat16, torch.device("cpu"), 1024).nbytes(1, 4096 + 256)
    logits, mean = 2 * 256 * 262_144 * 2, 16 * 256 * 2816 * 4
    chunk = 1024 * 8 * (2816 + 3 * 704) * 2 * 2  # of a prompt, through its experts
    assert 15.3e9 < weights < 15.5e9 and weights + cache + logits + mean + chunk < 18e9
