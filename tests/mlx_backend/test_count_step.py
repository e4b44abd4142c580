"""What a step asks of a GPU, by count at the published shape (tests/measure/count_step.py); and that it is compiled
once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import count_step
import mlx.core as mx
import pytest


@cache
def counted(*options: str) -> Any:
    run = [sys.executable, count_step.__file__, *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return json.loads(subprocess.run(run, capture_output=True, check=True, text=True, env=environment).stdout)


def step(family: str, state: str, ours: bool) -> dict:
    return counted("--family", family, "--state", state, *["--kernels"] * ours)


@pytest.mark.parametrize(
    ("family", "state", "ours"),
    [("gpu", "peaked", False), ("gpu", "flat", True), ("matrix", "flat", False), ("matrix", "peaked", True)],
)
@pytest.mark.sample(1)
def test_kernels_of_a_step(family, state, ours):
    found = step(family, state, ours)
    names = found["by_name"]
    assert found["kernels"] == sum(names.values()) == found["network"] + found["vocabulary"]
    if ours:
        assert found["kernels"] <= 700 and found["vocabulary_bytes"] <= 3e9
        assert names["experts"] == 60 and names["GatherQMM"] == 1  # the block that the draw reads again
    else:
        assert found["kernels"] <= 1700 and names["GatherQMM"] == 61


@pytest.mark.slow
def test_the_benchmark_has_these_counts():
    stored = json.loads((Path(count_step.__file__).parents[2] / "mlx_dgemma/benchmark/metal_step.json").read_text())
    for name, options in {
        "MLX's operations, peaked": ("gpu", "peaked", False), "own kernels, flat": ("gpu", "flat", True),
        "own kernels, matrix units": ("matrix", "peaked", True),
    }.items():  # fmt: skip
        found = step(*options)
        assert stored["counted"][f"mlx_dgemma, {name}"] == {key: found[key] for key in ("kernels", "vocabulary_bytes")}


def test_what_is_counted():
    """A product, a view, a fused function in one kernel, another in two, and their bytes."""
    patched = count_step.Patched()
    one = patched.compile(lambda x: mx.exp(x) * 2, shapeless=True)
    two = patched.compile(lambda x: (mx.exp(x) * 2).sum(axis=-1))
    weight = mx.zeros((8, 4))

    def small(x: mx.array, weight: mx.array) -> mx.array:
        return two(one(x @ weight.T).reshape(2, 8))

    found = count_step.count(patched, small, [mx.zeros((2, 4)), weight])
    assert sum(found.kernels.values()) == 4 and found.kernels["Matmul"] == 1
    assert (found.bytes, found.weights) == (4 * (8 + 32 + 16 + 2 * 16 + 16 + 2), 4 * 32)


@pytest.mark.parametrize("family", ["gpu", "matrix"])
@pytest.mark.sample(1)
def test_nothing_is_compiled_again(family):
    """However many positions become light or heavy."""
    first, *later = counted("--traces", "--family", family)
    assert first > 5 and not any(later)
