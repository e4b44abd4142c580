"""Triton's kernels, compiled for GPUs that are not here: at the published shapes they fit a multiprocessor, and unpack
a weight in few instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
pytest.importorskip("triton", reason="torch has it on Linux with CUDA; elsewhere: pip install triton")

SCRIPT = Path(__file__).parents[1] / "measure" / "kernel_counts.py"
SHARED = {89: 99, 90: 227, 100: 227, 120: 99}  # KB that a block can have
MOST = {"affine 4": 5.3, "affine 8": 5.6, "mxfp4": 5.5, "nvfp4": 6.0, "mxfp8": 5.1, "bf16": 2.0, "fp8": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_shared_memory_and_instructions(capability):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(capability)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    kernels = {found["kernel"]: found for found in map(json.loads, run.stdout.splitlines())}
    assert len(kernels) == 49
    too_large = {
        name: found["shared"] for name, found in kernels.items() if found["shared"] > SHARED[capability] * 1024
    }
    assert not too_large
    if capability == 90:
        for name, most in MOST.items():
            assert 0 < kernels[f"experts gate and up, {name}"]["a weight"] <= most, (name, kernels)
