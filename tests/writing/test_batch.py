"""Many texts at once: the same as alone, admitted and retired at any pass."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
from fakes import FakeModel

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.mlx_backend.layers import ExpertLinear
from mlx_dgemma.writing.batch import batch
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.writing import begin, diffuse

ONE, STOP = [2] * 8, [4, 4, 1, 5, 5, 5, 5, 5]
SETTLING = [(ONE, [7]), (ONE, []), (STOP, []), (STOP, [])]  # two blocks of two passes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = checkpoints.config()
    folder = checkpoints.write(tmp_path_factory.mktemp("model"), config, checkpoints.weights(config, peaked=10))
    return load_model(folder, parse_config(config, checkpoints.generation_config(eos_token_id=[7])), "mlx", "float32")


def test_eight_rows_say_what_each_says_alone(model):
    prompts = [np.random.default_rng(n).integers(96, size=n) for n in (1, 5, 16, 23, 24, 40, 60, 90)]
    options = [
        {"max_tokens": 16 * (1 + n % 3), "sampling": Sampling(max_denoising_steps=5), "seed": n} for n in range(8)
    ]
    alone = [list(diffuse(model, prompt, **own)) for prompt, own in zip(prompts, options, strict=True)]
    writings = (begin(model, p, **own, request=n) for n, (p, own) in enumerate(zip(prompts, options, strict=True)))
    together = list(batch(model, writings, 8))
    for number, steps in enumerate(alone):
        found = [step for step in together if step.request == number]
        assert [(s.block, s.step, s.final, s.reason) for s in found] == [
            (s.block, s.step, s.final, s.reason) for s in steps
        ]
        for one, other in zip(found, steps, strict=True):
            assert np.array_equal(one.canvas, other.canvas) and np.array_equal(one.draft, other.draft)
            assert np.array_equal(one.entropy, other.entropy)


def test_products_of_a_pass_do_not_grow_with_its_rows(model, monkeypatch):
    calls = []
    product = ExpertLinear._scaled  # of those sorted by expert and of those that are not
    monkeypatch.setattr(ExpertLinear, "_scaled", lambda self, *a: (calls.append(1), product(self, *a))[1])
    counts = []
    for size in (1, 8):
        calls.clear()
        writings = [
            begin(model, [3, 4, n], max_tokens=16, sampling=Sampling(max_denoising_steps=1)) for n in range(size)
        ]
        list(batch(model, writings, size))
        counts.append(len(calls))
    # Gate-and-up and down in each of four layers, and the second look of the draw.
    assert counts == [9, 9]


def test_a_late_row_joins_while_another_is_in_the_middle():
    model = FakeModel(SETTLING)
    asked = []

    def writings():
        for number in range(3):
            asked.append(len(model.rows))
            yield begin(model, [9], sampling=Sampling(), request=number, max_tokens=8 if number == 0 else 16)

    steps = [(s.request, s.block, s.step) for s in batch(model, writings(), 2)]
    assert steps == [
        (0, 0, 0), (1, 0, 0),
        (0, 0, 1), (1, 0, 1),
        (1, 1, 0), (2, 0, 0),  # 0 is done after one block; 2 takes its place
        (1, 1, 1), (2, 0, 1),
        (2, 1, 0), (2, 1, 1),
    ]  # fmt: skip
    assert asked == [0, 0, 4]  # the third was asked for only when there was room


def test_a_step_arrives_before_the_next_pass():
    model = FakeModel(SETTLING)
    running = batch(model, (begin(model, [9], sampling=Sampling(), request=n) for n in range(2)), 2)
    next(running), next(running)
    assert len(model.rows) == 2
    next(running)
    assert len(model.rows) == 4
