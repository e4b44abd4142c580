"""Packed weights: what `mx.dequantize` and the tests' own packing say of them."""

from __future__ import annotations

import numpy as np
import pytest
from packed import pack

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.torch_backend import formats

AFFINE = [Quantization(bits=bits, group_size=group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
OTHERS = [(4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8")]
FORMATS = [*AFFINE, *(Quantization(bits=b, group_size=g, mode=m) for b, g, m in OTHERS)]


def weights() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(0, 1, (3, 8, 256)) * np.exp(rng.normal(0, 2, (3, 8, 1)))).astype(
        np.float32
    )  # scales of all sizes


def tensors(arrays: list[np.ndarray]) -> list[torch.Tensor | None]:
    words, *rest = map(torch.from_numpy, arrays)
    return [words.view(torch.int32), *rest, *([None] if len(rest) == 1 else [])]


def same(result: np.ndarray, expected: np.ndarray) -> bool:
    return np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("quantization", FORMATS, ids=str)
def test_dequantize(quantization):
    arrays, expected = pack(weights(), **vars(quantization))
    assert same(formats.dequantize(*tensors(arrays), quantization).numpy(), expected)
    error = {2: 0.6, 3: 0.4, 4: 0.2, 5: 0.1, 6: 0.1, 8: 0.05}[quantization.bits]
    assert np.linalg.norm(expected - weights()) < error * np.linalg.norm(weights())


@pytest.mark.parametrize("quantization", FORMATS, ids=str)
def test_dequantize_as_mlx_does(quantization):
    import mlx.core as mx

    arrays = mx.quantize(mx.array(weights()), **vars(quantization))
    # MLX gives the float modes in bfloat16, which holds each of their products.
    expected = np.array(mx.dequantize(*arrays, **vars(quantization)).astype(mx.float32))
    assert same(formats.dequantize(*tensors([np.array(array) for array in arrays]), quantization).numpy(), expected)


@pytest.mark.parametrize("width", [256, 96])
@pytest.mark.parametrize("quantization", FORMATS, ids=str)
def test_tiles_hold_the_same_numbers(quantization, width):
    if width % quantization.group_size or width * quantization.bits % 32:
        pytest.skip("groups do not divide the rows")
    words, *rest = tensors(pack(weights()[..., :width].copy(), **vars(quantization))[0])
    packed = formats.Packed(words[0], *(None if array is None else array[0] for array in rest), quantization)
    tiled, index = formats.tiled(packed), torch.tensor([3, 0, 3])
    for rows in (slice(None), index):
        assert torch.equal(tiled.rows(rows, torch.float32), packed.rows(rows, torch.float32))
    experts = formats.tiled(formats.Packed(words, *rest, quantization))
    assert torch.equal(experts.rows(0, torch.float32), packed.rows(slice(None), torch.float32))
    assert tiled.weight.shape[-1] == 2 * tiled.quantization.bits and tiled.out == 8


def test_fp8_rows():
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (5, 300)).astype(np.float32))
    x[2] *= 1e6
    x[3] = 0
    rounded, scale = formats.to_fp8(x)
    assert torch.isfinite(rounded.float()).all() and scale.shape == (5, 1)
    # Three bits of mantissa: half a unit is a sixteenth; small numbers of a row are rounded to its steps.
    error = (rounded.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, x.abs().amax(dim=1, keepdim=True) * 2**-17)).all()
