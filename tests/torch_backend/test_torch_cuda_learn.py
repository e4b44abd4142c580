"""What a GPU learns is what the CPU learns."""

from __future__ import annotations

from functools import partial

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch
from folders import quantized

from mlx_dgemma.checkpoint import adapter
from mlx_dgemma.checkpoint.adapter import ATTENTION_AND_MLP
from mlx_dgemma.load import learner, load
from mlx_dgemma.seam.learning import Optimizer
from mlx_dgemma.torch_backend import device as devices
from mlx_dgemma.train.loss import Example, Recipe, loss_of, noised

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
KEYS = {
    "full": None,
    "lora": ATTENTION_AND_MLP,
    "experts": (*ATTENTION_AND_MLP, "experts.gate_up_proj", "experts.down_proj"),
}


def learners(folder, keys, monkeypatch, dtype="float32", **optimizer):
    """The same learner on the GPU in `dtype`, and on the CPU in float32."""
    start, both = keys and partial(adapter.begin, keys=keys, rank=4, scale=2.0, seed=1), []
    for has_gpu in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(devices, "has_gpu", lambda has_gpu=has_gpu: has_gpu)
            model, _, _ = load(folder, "torch", dtype if has_gpu else "float32")
        assert (model.device.type == "cuda") == has_gpu
        both.append(learner(model, "torch", start, Optimizer(**optimizer), checkpoint=False))
    return both


def losses(facts, count: int, self_conditioned: float = 0.5):
    """Of batches with texts of a few tokens, and of more than a window."""
    recipe = Recipe(self_conditioned=self_conditioned, t_one=0.3, mask_prompt=False)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        made = [Example(*(rng.integers(2, 96, size=n).astype(np.int32) for n in (5 + 9 * i, 70))) for i in range(12)]
        yield loss_of(noised(made, facts, 1, recipe, rng), facts, recipe)


def check_gradients(folder, keys, monkeypatch):
    both = learners(folder, keys, monkeypatch, max_norm=1e9)
    for conditioned in (0.0, 1.0):
        [loss] = losses(both[0].model.facts, 1, conditioned)
        (gpu, norm), (cpu, expected) = (one.step([loss], 0.0) for one in both)
        np.testing.assert_allclose([*gpu, norm], [*cpu, expected], rtol=1e-4)
        for mine, theirs in zip(*(one.learnt for one in both), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if mine.grad is not None:
                error = (mine.grad.cpu() - theirs.grad).abs().max()
                assert error <= 1e-4 * theirs.grad.abs().max() + 1e-7 * expected, tuple(mine.shape)


@pytest.mark.parametrize("keys", KEYS)
def test_the_gradient_is_the_cpu_s(keys, monkeypatch):
    check_gradients(checkpoints.TINY, KEYS[keys], monkeypatch)


FOUR_BITS = [
    {"group_size": 16 if mode == "nvfp4" else 32, "bits": 4, "mode": mode} for mode in ("affine", "mxfp4", "nvfp4")
]


@pytest.mark.parametrize("group", FOUR_BITS, ids=lambda group: group["mode"])
@pytest.mark.parametrize("keys", ["lora", "experts"])
def test_the_gradient_over_four_bits_is_the_cpu_s(tmp_path, keys, group, monkeypatch):
    folder, _, _ = quantized(tmp_path, default=group)
    check_gradients(folder, KEYS[keys], monkeypatch)


@pytest.mark.parametrize("group", FOUR_BITS, ids=lambda group: group["mode"])
def test_the_gradient_over_four_bits_in_bfloat16_is_about_float32_s(tmp_path, group, monkeypatch):
    """As a whole: a token whose experts are about equal may go to others."""
    folder, _, _ = quantized(tmp_path, default=group)
    both = learners(folder, KEYS["experts"], monkeypatch, "bfloat16", max_norm=1e9)
    [loss] = losses(both[0].model.facts, 1)
    found = []
    for one in both:
        for array in one.learnt[1::2]:  # begun at zero, behind which the other of a pair has no gradient
            array.copy_(torch.randn(array.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        one.step([loss], 0.0)
        found.append(torch.cat([array.grad.cpu().flatten() for array in one.learnt]))
    gpu, cpu = found
    assert (gpu - cpu).norm() < 0.3 * cpu.norm()  # 0.17 on a CPU


@pytest.mark.parametrize("group", FOUR_BITS, ids=lambda group: group["mode"])
def test_the_gradient_through_frozen_experts_in_bfloat16(tmp_path, group, monkeypatch):
    """One expert has no row. By torch's kernels on Hopper."""
    folder, _, _ = quantized(tmp_path, default=group)
    generator, found = torch.Generator().manual_seed(0), []
    x, weight = (torch.randn((64, width), generator=generator).bfloat16() for width in (64, 128))
    ends = torch.tensor([5, 5, 20, 21, 30, 44, 60, 64], dtype=torch.int32)
    for one, dtype in zip(
        learners(folder, KEYS["lora"], monkeypatch, "bfloat16"), ("bfloat16", "float32"), strict=True
    ):
        linear, device = one.model.network.model.decoder.layers[0].experts.gate_up_proj, one.model.device
        given = x.to(device, getattr(torch, dtype)).requires_grad_()
        y = linear(given, ends.to(device))
        (y * weight.to(y)).sum().backward()
        found.append([array.detach().cpu().float() for array in (y, given.grad)])
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("keys", KEYS)
def test_ten_steps_are_the_cpu_s(tmp_path, keys, monkeypatch):
    """And the eleventh, of learners that went on from a file."""
    both = learners(checkpoints.TINY, KEYS[keys], monkeypatch)
    *ten, last = losses(both[0].model.facts, 11)
    gpu, cpu = (np.array([one.step([loss], 1e-4)[0] for loss in ten]) for one in both)
    assert np.abs(gpu - cpu).max() < 1e-3
    both[0].save(tmp_path / "state.safetensors", {"step": "10"})
    again, _ = learners(checkpoints.TINY, KEYS[keys], monkeypatch)
    again.resume(tmp_path / "state.safetensors")
    assert np.abs(np.subtract(*(one.step([last], 1e-4)[0] for one in (again, both[1])))).max() < 1e-3
