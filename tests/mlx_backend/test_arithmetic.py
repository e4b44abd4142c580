"""Products on the CPU device: whose BLAS it is changes no bit of a row, and neither does its company."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.mlx_backend import arithmetic
from mlx_dgemma.mlx_backend.layers import Linear

SHAPES = [(5, 7), (32, 48), (100, 33), (704, 352), (176, 704), (513, 512)]  # inner, width


def factors(inner: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(inner)
    return rng.standard_normal((600, inner), np.float32), rng.standard_normal((width, inner), np.float32).T


@pytest.fixture(params=["NumPy's BLAS", "MLX's BLAS"])
def blas(request, monkeypatch):
    if request.param == "MLX's BLAS":
        monkeypatch.setattr(arithmetic, "steady", lambda: False)
    elif not arithmetic.steady():
        pytest.skip("with this BLAS the bits of a row depend on its place, and MLX's is taken")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_any_company(blas, shape):
    x, weight = factors(*shape)
    whole = arithmetic.product(x, weight)
    assert np.abs(whole - x.astype(np.float64) @ weight).max() < 1e-3
    for first, count in ((0, 1), (7, 1), (11, 2), (13, 31), (37, 256), (1, 599)):
        assert np.array_equal(arithmetic.product(x[first : first + count], weight), whole[first : first + count])


def test_the_probe_finds_a_blas_whose_bits_depend_on_the_place(monkeypatch):
    def placed(x, weight):
        y = x @ weight
        y[1::2] *= np.float32(1 + 2**-20)  # as AVX2's kernels do, only more
        return y

    monkeypatch.setattr(arithmetic, "_padded", placed)
    assert not arithmetic.steady.__wrapped__()


@pytest.mark.parametrize("bits", [4, 8])
def test_an_unpacked_weight_is_what_mlx_multiplies_packed(bits):
    layer, x = Linear(96, 128), mx.random.normal((40, 128), key=mx.random.key(0))
    layer.quantize(Quantization(bits=bits, group_size=64))
    packed = mx.quantize(mx.random.normal((96, 128), key=mx.random.key(1)), 64, bits)
    layer.load_weights(list(zip(("weight", "scales", "biases"), packed, strict=True)))
    expected = mx.quantized_matmul(x, *packed, transpose=True, group_size=64, bits=bits)
    assert np.abs(layer(np.array(x)) - np.array(expected)).max() < 1e-4
