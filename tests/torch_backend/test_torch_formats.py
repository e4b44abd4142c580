"""Packed weights against MLX, which packs them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.torch_backend import formats

AFFINE = [Quantization(bits=bits, group_size=group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
OTHERS = [(4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8")]
FORMATS = [*AFFINE, *(Quantization(bits=b, group_size=g, mode=m) for b, g, m in OTHERS)]


def packed(quantization: Quantization) -> tuple[list, np.ndarray]:
    """torch's arrays, and what MLX makes of them."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (3, 8, 256)) * np.exp(rng.normal(0, 2, (3, 8, 1)))  # scales of all sizes
    arrays = mx.quantize(mx.array(weight.astype(np.float32)), **vars(quantization))
    expected = np.array(mx.dequantize(*arrays, **vars(quantization)).astype(mx.float32))
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    return [tensors[0].view(torch.int32), *tensors[1:], *([None] if len(tensors) == 2 else [])], expected


@pytest.mark.parametrize("quantization", FORMATS, ids=str)
def test_dequantize(quantization):
    arrays, expected = packed(quantization)
    result = formats.dequantize(*arrays, quantization).numpy()
    # MLX gives the float modes in bfloat16, which holds each of their products.
    assert np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("quantization", [q for q in AFFINE if q.bits in formats.WIDER], ids=str)
def test_wider_fields_hold_the_same_numbers(quantization):
    arrays, _ = packed(quantization)
    wide = formats.WIDER[quantization.bits]
    assert torch.equal(
        formats.unpack(formats.widen(arrays[0], quantization.bits), wide), formats.unpack(arrays[0], quantization.bits)
    )


def test_fp8_rows():
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (5, 300)).astype(np.float32))
    x[2] *= 1e6
    x[3] = 0
    rounded, scale = formats.to_fp8(x)
    assert torch.isfinite(rounded.float()).all() and scale.shape == (5, 1)
    # Three bits of mantissa: half a unit is a sixteenth; small numbers of a row are rounded to its steps.
    error = (rounded.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, x.abs().amax(dim=1, keepdim=True) * 2**-17)).all()
