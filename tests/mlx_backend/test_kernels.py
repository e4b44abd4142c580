"""Our Metal kernels' bodies, run thread by thread on the CPU, against MLX's operations."""

from __future__ import annotations

import dataclasses
import time

import mlx.core as mx
import numpy as np
import pytest
import shim

from mlx_dgemma.mlx_backend import guard, kernels

pytestmark = shim.needs_a_compiler
SMALL = guard.Sizes(tokens=20, hidden=128, heads=4, dim=64, experts=32, top_k=3, inner=64, vocabulary=640)
CASES = {(name, dtype): make for dtype in guard.BOUNDS for name, make in guard.cases(SMALL, dtype)}
ONCE = {  # how weights are unpacked does not depend on the dtype of what they are multiplied with
    ("experts affine 4", mx.float32), ("experts affine 8", mx.bfloat16), ("experts mxfp4", mx.float32),
    ("experts mxfp8", mx.bfloat16), ("experts nvfp4", mx.float32),
}  # fmt: skip
assert CASES.keys() > ONCE


@pytest.fixture
def by_shim(monkeypatch):
    monkeypatch.setattr(kernels, "launch", shim.launch)
    shim.few_threads(monkeypatch)


@pytest.mark.usefixtures("by_shim")
@pytest.mark.parametrize(("name", "dtype"), [case for case in CASES if case not in ONCE], ids=str)
@pytest.mark.sample(2)
def test_a_kernel_computes_what_mlx_does(name, dtype):
    ours, theirs = CASES[name, dtype]()
    assert guard.difference(ours(), theirs()) <= guard.BOUNDS[dtype]


@pytest.mark.slow
def test_a_wrong_kernel_is_seen(by_shim, monkeypatch):
    wrong = dataclasses.replace(kernels.TAIL, body=kernels.TAIL.body.replace("a + b", "a + 1.01f * b"))
    monkeypatch.setattr(kernels, "TAIL", wrong)
    ours, theirs = CASES["tail", mx.float32]()
    assert guard.difference(ours(), theirs()) > 1e-3
    ours, theirs = CASES["route", mx.float32]()
    off = [*theirs()[:-1], theirs()[-1] + 1]
    assert guard.difference(ours(), off) == float("inf")


@pytest.mark.parametrize("counts", [[0, 1, 16, 17, 0, 30], [64], [0, 0, 5], [1] * 20])
def test_tiles_begin_at_experts_and_there_are_enough(counts):
    """As the kernel finds them: the tile's number, and where each expert's rows end."""
    ends, covered = np.cumsum(counts), []
    tiles = [-(-count // kernels.TILE) for count in counts]
    for tile in range(kernels.tiles_at_most(sum(counts), len(counts))):
        for expert, before in enumerate(np.cumsum(tiles) - tiles):
            if before <= tile < before + tiles[expert]:
                begin = ends[expert] - counts[expert] + kernels.TILE * (tile - before)
                covered += range(begin, min(begin + kernels.TILE, ends[expert]))
    assert covered == list(range(sum(counts)))


def test_rows_that_tiles_multiply():
    """128 experts, 2,048 rows, 16 an expert on average: of MLX's tiles 3,952 rows are multiplied, of ours 2,931, and
    2,496 where an empty half of 8 is skipped."""
    rng = np.random.default_rng(0)
    counts = [np.bincount(rng.integers(128, size=2048), minlength=128) for _ in range(50)]
    whole = np.mean([(-(-count // 16) * 16).sum() for count in counts])
    halves = np.mean([(-(-count // 8) * 8).sum() for count in counts])
    assert whole == pytest.approx(2931, rel=0.02) and halves == pytest.approx(2496, rel=0.02)


class TestGuard:
    """What is found out where there is Metal, which is here the shim."""

    @pytest.fixture(autouse=True)
    def metal(self, monkeypatch, tmp_path):
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx, "device_info", lambda device: {"device_name": "a chip"})
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("MLX_DGEMMA_KERNELS", raising=False)
        monkeypatch.setattr(kernels, "verdicts", {})
        self.judged = []

    def settle(self, monkeypatch, cases) -> dict:
        def few(sizes, dtype):
            self.judged.append(dtype)
            return iter(cases.items())

        monkeypatch.setattr(guard, "cases", few)
        return guard.choose()

    @staticmethod
    def case(ours=1.0, slow=0, theirs=1.0, their_slow=0):
        def compute(value, delay):
            def run():
                time.sleep(delay / 500)
                return [mx.array([value])]

            return run

        return lambda: (compute(ours, slow), compute(theirs, their_slow))

    def test_right_and_faster_is_used_and_remembered(self, monkeypatch):
        cases = {
            "fast": self.case(their_slow=4), "slow": self.case(slow=4), "wrong": self.case(ours=1.1, their_slow=4),
        } | {name: self.case(their_slow=4) for name in kernels.GLUE}  # fmt: skip
        found = self.settle(monkeypatch, cases)
        used = {name for name in cases for dtype in guard.BOUNDS if kernels.used(name, dtype)}
        assert used == {"fast", *kernels.GLUE} and len(found) == 2 * len(cases)
        assert self.settle(monkeypatch, cases) == found and len(self.judged) == 2  # no second time
        monkeypatch.setattr(mx, "device_info", lambda device: {"device_name": "another"})
        self.settle(monkeypatch, cases)
        assert len(self.judged) == 4
        monkeypatch.setenv("MLX_DGEMMA_KERNELS", "0")
        assert self.settle(monkeypatch, cases) == {} and not kernels.used("fast", mx.float32)

    def test_one_that_does_not_compile_is_a_note(self, monkeypatch):
        def missing():
            raise RuntimeError("[metal::Device] Unable to build\n  metal library from source")

        cases = {name: self.case(their_slow=4) for name in kernels.GLUE} | {
            "route": missing,
            "fast": self.case(their_slow=4),
        }
        found = self.settle(monkeypatch, cases)
        assert found[f"route {mx.float32}"]["note"] == "[metal::Device] Unable to build metal library from source"
        assert kernels.used("fast", mx.float32) and not any(kernels.used(name, mx.float32) for name in kernels.GLUE)

    def test_a_damaged_file_is_made_anew(self, monkeypatch):
        cases = {name: self.case(their_slow=4) for name in kernels.GLUE}
        self.settle(monkeypatch, cases)
        guard.verdicts_file().write_text("{")
        assert self.settle(monkeypatch, cases) and len(self.judged) == 4
