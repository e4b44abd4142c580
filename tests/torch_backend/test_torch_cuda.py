"""A GPU's kernels and graphs give what the CPU gives."""

from __future__ import annotations

from dataclasses import replace

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch
from folders import quantized, write

from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import device as devices

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
# Of a random model, median over a canvas: rounding of the activations is all that may differ.
BOUNDS = {"float32": 1e-3, "bfloat16": 0.05, "fp8": 0.3}


def both(folder, dtype, monkeypatch):
    gpu, _, _ = load(folder, "torch", dtype)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "has_gpu", lambda: False)
        cpu, _, _ = load(folder, "torch", dtype)
    assert gpu.device.type == "cuda" and cpu.device.type == "cpu"
    return gpu, cpu


def rows(model, count: int) -> list[Row]:
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        canvas, uniforms = rng.integers(256, size=16), rng.random(16, dtype=np.float32)
        made.append(Row(canvas, model.new_cache(), 0.7, uniforms, Text(rng.integers(256, size=9 + 30 * i))))
    return made


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", ["plain", "affine", "mxfp4", "nvfp4", "mxfp8"])
def test_logits_of_two_steps(tmp_path, dtype, kind, monkeypatch):
    if kind != "plain" and dtype == "fp8":
        pytest.skip("weights that are quantized stay as they are")
    group = {"group_size": 16 if kind == "nvfp4" else 32, "bits": 8 if kind == "mxfp8" else 4, "mode": kind}
    shape = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
    folder = write(tmp_path, **shape) if kind == "plain" else quantized(tmp_path, default=group)[0]
    logits = []
    for model in both(folder, dtype, monkeypatch):
        first = rows(model, 3)
        second = [
            replace(row, pending=Text(), self_conditioning=last.self_conditioning)
            for row, last in zip(first, model.denoise(first), strict=True)
        ]
        for _ in range(2):  # captured, and replayed
            model.denoise(second)
        logits.append(np.stack([model.logits(row) for row in second]))
    assert np.median(np.abs(logits[0] - logits[1])) < BOUNDS[dtype]


def test_a_run_of_the_embedded_model(monkeypatch):
    """Both denoise the same canvases, of the CPU's run. Where a rounding of 1e-6 crosses a uniform, a draw differs."""
    models = both(checkpoints.TINY, "float32", monkeypatch)
    rng = np.random.default_rng(1)
    canvas, text = rng.integers(256, size=64), Text(np.arange(5, 45))
    made = [Row(canvas, model.new_cache(), 0.7, np.zeros(64, np.float32), text) for model in models]
    for _ in range(8):
        uniforms = rng.random(64, dtype=np.float32)
        found = [model.denoise([replace(row, uniforms=uniforms)])[0] for model, row in zip(models, made, strict=True)]
        gpu, cpu = found
        assert np.abs(gpu.entropy - cpu.entropy).max() < 1e-3 and (gpu.sample != cpu.sample).mean() < 0.05
        made = [
            replace(row, canvas=cpu.sample, pending=Text(), self_conditioning=last.self_conditioning)
            for row, last in zip(made, found, strict=True)
        ]
