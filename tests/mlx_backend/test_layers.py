"""Products of plain and quantized weights, one by one and by expert, against float64; and bits that company leaves."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.mlx_backend.layers import Embedding, ExpertLinear, Linear

STORED = {
    "plain": None,
    "4 bits": Quantization(bits=4, group_size=64),
    "8 bits": Quantization(bits=8, group_size=32),
    "mxfp4": Quantization(bits=4, group_size=32, mode="mxfp4"),
}
BOUNDS = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1e-2}  # of the largest value
EXPERTS, WIDTH = 5, 256


def filled(layer: Linear, stored: Quantization | None, dtype: mx.Dtype) -> np.ndarray:
    """Give `layer` random weights -> them in float64, as they are stored."""
    weight = mx.random.normal(layer.weight.shape, scale=WIDTH**-0.5, key=mx.random.key(0)).astype(dtype)
    if stored is None:
        layer.weight = weight
    else:
        layer.quantize(stored)
        arrays = mx.quantize(weight, group_size=stored.group_size, bits=stored.bits, mode=stored.mode)
        layer.load_weights(list(zip(("weight", "scales", "biases"), arrays, strict=False)))
    return np.array(layer.rows(slice(None), mx.float32).astype(mx.float32), np.float64)


@pytest.fixture(params=STORED)
def stored(request):
    return STORED[request.param]


@pytest.fixture
def packed(monkeypatch):
    """The products that a GPU takes: the CPU has them, in float32."""
    monkeypatch.setattr(Linear, "is_packed", property(lambda self: self.quantization is not None))


@pytest.mark.usefixtures("packed")
def test_packed_products(stored):
    test_products(stored, mx.float32)
    for ascending in (False, True):
        test_products_by_expert(stored, mx.float32, ascending)


def error(y: mx.array, expected: np.ndarray) -> float:
    return float(np.abs(np.array(y.astype(mx.float32)) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_products(stored, dtype):
    layer = Linear(96, WIDTH)
    weight = filled(layer, stored, dtype)
    for transpose, width in ((True, WIDTH), (False, 96)):
        x = mx.random.normal((7, width), key=mx.random.key(1)).astype(dtype)
        y = layer.product(x, transpose=transpose)
        assert y.dtype == dtype
        expected = np.array(x.astype(mx.float32), np.float64) @ (weight.T if transpose else weight)
        assert error(y, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("ascending", [False, True])
def test_products_by_expert(stored, dtype, ascending):
    layer, rng = ExpertLinear(EXPERTS, 64, WIDTH), np.random.default_rng(0)
    weight = filled(layer, stored, dtype)
    x, chosen = mx.random.normal((9, WIDTH), key=mx.random.key(1)).astype(dtype), rng.integers(EXPERTS, size=(9, 2))
    exact = np.array(x.astype(mx.float32), np.float64)
    if ascending:
        y, expected = layer(x, mx.array(np.sort(chosen[:, 0])), ascending=True), np.sort(chosen[:, 0])[:, None]
    else:
        y, expected = layer(x[:, None], mx.array(chosen)), chosen
    assert y.dtype == dtype
    products = np.einsum("nd,nkod->nko", exact, weight[expected]).reshape(y.shape)
    assert error(y, products) < BOUNDS[dtype]


def test_factors_of_experts_and_of_their_rows():
    x, chosen = mx.random.normal((4, WIDTH), key=mx.random.key(1)), mx.array([0, 1, 3, 3])
    layer = ExpertLinear(EXPERTS, 64, WIDTH)
    filled(layer, STORED["mxfp4"], mx.float32)
    plain = layer(x, chosen)
    for per_row in (False, True):
        layer.scale_globally(per_row=per_row)
        assert mx.array_equal(layer(x, chosen), plain)
        layer.weight_scale_2 = mx.random.uniform(1, 2, layer.weight_scale_2.shape, key=mx.random.key(2))
        factors = layer.weight_scale_2[chosen]
        assert mx.allclose(layer(x, chosen), plain * (factors if per_row else factors[:, None]))
    layer.weight_scale_2 = layer.weight_scale_2 * 2.0**-12
    layer.scales = layer.scales + 12  # exponents: weights that would leave float16's range times activations
    assert mx.isfinite(layer(64 * x.astype(mx.float16), chosen)).all()


def test_views_of_the_table(stored):
    table = Embedding(128, WIDTH)
    weight = filled(table, stored, mx.float32)
    x = mx.random.normal((3, WIDTH), key=mx.random.key(1))
    assert error(table.part(32, 96)(x), np.array(x, np.float64) @ weight[32:96].T) < 1e-5
    blocks = np.einsum("nd,nod->no", np.array(x, np.float64), weight.reshape(8, 16, WIDTH)[[7, 0, 3]])
    assert error(table.as_experts(8)(x, mx.array([7, 0, 3])), blocks) < 1e-5
    assert error(table(mx.array([5, 127])), weight[[5, 127]] * WIDTH**0.5) < 1e-5


def test_a_row_has_the_same_bits_in_any_company(stored):
    layer, experts = Linear(96, WIDTH), ExpertLinear(EXPERTS, 64, WIDTH)
    filled(layer, stored, mx.float32), filled(experts, stored, mx.float32)
    x = mx.random.normal((300, WIDTH), key=mx.random.key(1))
    chosen = mx.sort(mx.random.randint(0, EXPERTS, (300,), key=mx.random.key(2)))
    whole, by_expert = layer(x), experts(x, chosen, ascending=True)
    for part in (slice(0, 1), slice(7, 8), slice(11, 13), slice(13, 44), slice(1, 300)):
        assert mx.array_equal(layer(x[part]), whole[part])
        assert mx.array_equal(experts(x[part], chosen[part], ascending=True), by_expert[part])
        assert mx.array_equal(experts(x[part][:, None], chosen[part][:, None])[:, 0], by_expert[part])


@pytest.mark.parametrize("kind", [Linear, ExpertLinear])
def test_how_a_weight_lies_changes_no_bit(kind):
    layer = kind(48, WIDTH) if kind is Linear else kind(EXPERTS, 48, WIDTH)
    filled(layer, None, mx.float32)
    x = mx.random.normal((40, WIDTH), key=mx.random.key(1))
    arguments = (x,) if kind is Linear else (x, mx.arange(40, dtype=mx.uint32) // 8)
    before, weight = layer(*arguments), layer.weight
    layer.lay_by_input()
    assert memoryview(layer.weight).strides[-2:] == (4, 4 * 48) and mx.array_equal(layer.weight, weight)
    assert mx.array_equal(layer(*arguments), before)


def test_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="groups of 64 with 4 bits do not divide rows of 96"):
        Linear(8, 96).quantize(STORED["4 bits"])
