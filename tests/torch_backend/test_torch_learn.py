"""How a GPU learns, tried on a CPU: many texts in a block, and all experts in one product."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")

from mlx_dgemma.load import learner, load
from mlx_dgemma.seam.learning import Optimizer
from mlx_dgemma.torch_backend import learn
from mlx_dgemma.torch_backend.layers import ExpertLinear
from mlx_dgemma.train.loss import Example, Recipe, loss_of, noised


def gradients() -> list[np.ndarray]:
    model, _, _ = load(checkpoints.TINY, "torch", "float32")
    one, rng = learner(model, "torch", None, Optimizer(max_norm=1e9), checkpoint=False), np.random.default_rng(3)
    sizes = [(5, 9), (40, 70), (110, 7), (3, 30), (60, 2), (9, 9)]
    made = [Example(*(rng.integers(2, 96, size=n).astype(np.int32) for n in each)) for each in sizes]
    one.step([loss_of(noised(made, model.facts, 1, Recipe(), rng), model.facts, Recipe())], 0.0)
    return [array.grad.numpy() for array in one.learnt if array.grad is not None]


def test_the_gradient_is_the_same(monkeypatch):
    expected = gradients()
    monkeypatch.setitem(learn.TOGETHER, "cpu", 32)
    monkeypatch.setattr(ExpertLinear, "_expert_by_expert", ExpertLinear._all_at_once)
    largest = max(np.abs(array).max() for array in expected)
    for mine, theirs in zip(gradients(), expected, strict=True):
        assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max() + 1e-7 * largest
