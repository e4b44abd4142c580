"""Triton's kernels against plain torch: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
pytest.importorskip("triton", reason="torch has it on Linux with CUDA; elsewhere: pip install triton")

from folders import quantized, write

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import attention, device, kernels
from mlx_dgemma.torch_backend.layers import ExpertLinear, Linear

# ruff: noqa: E402, the environment comes first
FORMATS = [
    *(Quantization(bits=bits, group_size=group) for bits, group in ((4, 64), (4, 32), (8, 64), (3, 64), (6, 128))),
    Quantization(bits=4, group_size=32, mode="mxfp4"),
    Quantization(bits=4, group_size=16, mode="nvfp4"),
    Quantization(bits=8, group_size=32, mode="mxfp8"),
]


def packed(layer: Linear, quantization: Quantization | None, seed: int = 0) -> Linear:
    """`layer` with random weights, packed by MLX."""
    weight = np.random.default_rng(seed).normal(0, 1, layer.weight.shape).astype(np.float32)
    if quantization is None:
        layer.weight = torch.from_numpy(weight).to(DEVICE)
        return layer
    layer.quantize(quantization)
    arrays = mx.quantize(mx.array(weight), **vars(quantization))
    for name, array in zip(("weight", "scales", "biases"), arrays, strict=False):
        tensor = torch.from_numpy(np.array(array))
        setattr(layer, name, (tensor.view(torch.int32) if tensor.dtype == torch.uint32 else tensor).to(DEVICE))
    return layer


@pytest.mark.parametrize("quantization", [None, "fp8", *FORMATS], ids=str)
@pytest.mark.parametrize("ends", [[3, 3, 40, 41, 57], [0, 0, 0, 0, 64], [5, 5, 20, 20, 20]], ids=str)
def test_a_product_expert_by_expert(quantization, ends):
    layer = packed(
        ExpertLinear(5, 80, 192 if quantization is None else 384), None if quantization == "fp8" else quantization
    )
    if quantization == "fp8":
        layer.to_fp8()
    x = torch.randn((64, layer.rows(0, torch.float32).shape[1]), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    starts = [0, *ends[:-1]]
    expected = [x[a:b] @ layer.rows(i, torch.float32).T for i, (a, b) in enumerate(zip(starts, ends, strict=True))]
    layer.widen()
    result = kernels.grouped_product(x, layer.packed, torch.tensor(ends, dtype=torch.int32, device=DEVICE))
    assert (result[: ends[-1]] - torch.cat(expected)).abs().max() < 1e-3


@pytest.mark.parametrize("rows", [1, 16, 100])
def test_a_product(rows):
    layer = packed(Linear(200, 128), FORMATS[0])
    x = torch.randn((rows, 128), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = x @ layer.rows(slice(None), torch.float32).T
    assert (kernels.quantized_product(x, layer.packed) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("quantization", FORMATS, ids=str)
def test_the_mean_of_a_table(quantization):
    table = packed(Linear(1100, 384), quantization)
    shares = torch.rand((70, 1100), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = shares @ table.rows(slice(None), torch.float32)
    table.widen()
    assert (kernels.mean(shares, table.packed) - expected).abs().max() < 1e-3


def seen(case: str, count: int, queries: int) -> tuple[list[list[int]], list[list[int]], int]:
    """Ends of what each query sees."""
    length = [70, 3, 0][:count]
    if case == "canvas":
        return [[max(0, n - 23)] * queries for n in length], [[n] * queries for n in length], 70
    lo = [[max(0, n + i - 40) for i in range(queries)] for n in length]
    return lo, [[min(n + i + 1, n + 9) for i in range(queries)] for n in length], 70 + queries


@pytest.mark.parametrize("case", ["canvas", "text"])
@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("parts", [1, 3])
def test_attention_over_the_pool(case, dim, parts, monkeypatch):
    monkeypatch.setattr(kernels, "LONG", 10_000 if parts == 1 else 25)
    count, queries, heads, groups, room = 3, 20, 4, 2, 96
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn((count, queries, n, dim), generator=generator) * 0.5 for n in (heads, groups, groups))
    cache = tuple(torch.randn((4, room + 1, groups, dim), generator=generator) for _ in range(2))
    lo, hi, width = seen(case, count, queries)
    number = {"dtype": torch.int32, "device": DEVICE}
    canvas = torch.tensor([20, 7, 20], **number) if case == "canvas" else None
    slot = torch.tensor([2, 0, 3], **number)
    keys = attention.KeyRange(slot, torch.tensor(lo, **number), torch.tensor(hi, **number), width, canvas)
    q, k, v, *cache = (x.to(DEVICE) for x in (q, k, v, *cache))
    expected = attention.in_blocks(q, tuple(cache), (k, v), keys)
    assert (kernels.attend(q, tuple(cache), (k, v), keys) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("mode", ["plain", "affine", "nvfp4"])
def test_a_whole_model_by_the_kernels(tmp_path, mode, monkeypatch):
    """Texts and canvases of several lengths, sliding layers past their window, and what a pass tells the next. In
    float32: the interpreter cannot multiply bfloat16."""
    monkeypatch.setattr("mlx_dgemma.torch_backend.model.PREFILL_CHUNK", 32)
    groups = {"affine": {"group_size": 32, "bits": 4}, "nvfp4": {"group_size": 16, "bits": 4}}
    folder = write(tmp_path) if mode == "plain" else quantized(tmp_path, default={**groups[mode], "mode": mode})[0]
    model, _, _ = load(folder, "torch", "float32")
    rng, results, pool = np.random.default_rng(0), {}, model.graphs.pool
    texts, canvases = [rng.integers(256, size=n) for n in (40, 3)], rng.integers(256, size=(2, 16))
    uniforms = rng.random((2, 16), dtype=np.float32)
    for by_kernel in (False, True):
        monkeypatch.setattr(device, "by_kernel", lambda x, on=by_kernel: on)
        model.together = by_kernel
        monkeypatch.setattr(model.graphs, "pool", pool if by_kernel else None)  # the loop over experts is no graph
        if by_kernel:
            for layer in model.network.modules():
                if isinstance(layer, Linear):
                    layer.widen()
        rows = [Row(c, model.new_cache(), 0.7, u, Text(t)) for c, u, t in zip(canvases, uniforms, texts, strict=True)]
        conditioning = [prediction.self_conditioning for prediction in model.denoise(rows)]
        rows = [
            replace(row, pending=Text(), self_conditioning=last) for row, last in zip(rows, conditioning, strict=True)
        ]
        results[by_kernel] = np.stack([model.logits(row) for row in rows])
    assert np.abs(results[True] - results[False]).max() < 1e-3
