"""How a GPU learns, tried on a CPU: many texts in a block, and the experts without a wait for their sizes."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")

import torch

from mlx_dgemma.load import learner, load
from mlx_dgemma.seam.learning import Optimizer
from mlx_dgemma.torch_backend import layers, learn, sweep
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


def test_a_step_compiles_no_pass_but_the_sweep(monkeypatch):
    """A pass that finds the conditioning has no gradient; for that alone it would be compiled."""
    compiled = []

    def compiling(function):
        def backend(graph, example_inputs):
            compiled.append(function.__name__)
            return graph.forward

        return torch.compile(function.__wrapped__, backend=backend, dynamic=True)

    for module, name in ((layers, "rms_norm"), (sweep, "reduce_slices")):
        monkeypatch.setattr(module, name, compiling(getattr(module, name)))
    model, _, _ = load(checkpoints.TINY, "torch", "float32")
    one, rng, recipe = learner(model, "torch", None, Optimizer(), checkpoint=True), np.random.default_rng(3), Recipe()
    example = Example(*(rng.integers(2, 96, size=9).astype(np.int32) for _ in range(2)))
    loss = loss_of(noised([example], model.facts, 1, Recipe(self_conditioned=1.0), rng), model.facts, recipe)
    one.step([loss], 0.0)
    one.losses(loss)
    assert set(compiled) == {"reduce_slices"}


@pytest.mark.parametrize(("way", "bound"), [(ExpertLinear._all_at_once, 1e-6), (ExpertLinear._grouped, 0.01)])
def test_the_experts_products_have_their_gradients(way, bound):
    """In bfloat16 by torch's kernels. One expert has no row, one has a single one."""
    dtype = torch.bfloat16 if way is ExpertLinear._grouped else torch.float32
    generator, linear, found = torch.Generator().manual_seed(0), ExpertLinear(8, 64, 32), []
    weight, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((8, 64, 32), (40, 32)))
    tokens = torch.randint(0, 40, (64,), generator=generator).int()
    ends = torch.tensor([5, 5, 20, 21, 30, 44, 60, 64], dtype=torch.int32)
    for one in (way, ExpertLinear._expert_by_expert):
        linear.weight, given = weight.clone().requires_grad_(), x.clone().requires_grad_()
        y = one(linear, given, ends, tokens)
        y.float().square().sum().backward()
        found.append([array.detach().float() for array in (y, given.grad, linear.weight.grad)])
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() <= bound * theirs.abs().max()
