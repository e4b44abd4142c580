"""The sweep over the vocabulary in slices against all of it at once in float64, with NumPy's and MLX's operations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.mlx_backend import arithmetic, vocabulary
from mlx_dgemma.mlx_backend import sweep as module
from mlx_dgemma.mlx_backend.layers import Embedding
from mlx_dgemma.mlx_backend.sweep import KEPT, Asked, Slices, Sweep

V, D, T, CAP = 32 * KEPT, 64, 24, 30.0
KINDS = {"plain": None, "4 bits": Quantization(bits=4, group_size=32)}
SPREADS = {"flat": 0.5, "mixed": 3.0, "peaked": 12.0}


@pytest.fixture(params=["numpy", "mlx"], autouse=True)
def namespace(request, monkeypatch):
    monkeypatch.setattr(arithmetic, "namespace", lambda: {"numpy": np, "mlx": mx}[request.param])
    return request.param


def table_of(kind: str, vocabulary_size: int = V) -> tuple[Embedding, np.ndarray]:
    weight = np.random.default_rng(0).normal(0, D**-0.5, (vocabulary_size, D)).astype(np.float32)
    table, quantization = Embedding(vocabulary_size, D), KINDS[kind]
    if quantization is None:
        table.weight = mx.array(weight)
        return table, weight.astype(np.float64)
    table.quantize(quantization)
    packed = mx.quantize(mx.array(weight), bits=quantization.bits, group_size=quantization.group_size)
    table.weight, table.scales, table.biases = packed
    return table, np.array(mx.dequantize(*packed, bits=quantization.bits, group_size=quantization.group_size))


def ask(spread: float, heavy: float = 0.0, *, vocabulary_size: int = V, sets: bool = False) -> Asked:
    rng = np.random.default_rng(1)
    hidden = rng.normal(0, 1, (T, D)).astype(np.float32) * np.linspace(0.2, spread, T, dtype=np.float32)[:, None]
    if spread > 10:  # a third of the positions know their token
        hidden[::3] += 25 * table_of("plain", vocabulary_size)[1][:T:3].astype(np.float32)
    allowed, index = None, None
    if sets:
        allowed, index = rng.random((3, vocabulary_size)) < 0.01, rng.integers(3, size=T)
        allowed[0] = True
    temperature = rng.uniform(0.4, 0.8, T).astype(np.float32)
    return Asked(mx.array(hidden), temperature, rng.random(T, np.float32), rng.random(T) < heavy, allowed, index)


def whole(asked: Asked, weight: np.ndarray) -> np.ndarray:
    """[T, V] float64 probabilities."""
    logits = np.tanh(np.array(asked.hidden, np.float64) @ weight.T / CAP) * CAP / asked.temperature[:, None]
    if asked.allowed is not None:
        logits[~asked.allowed[asked.allowed_index]] = -np.inf
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("sets", [False, True])
def test_everything_found(kind, spread, sets):
    table, weight = table_of(kind)
    asked = ask(SPREADS[spread], 0.5, sets=sets)
    found = Sweep(Slices(table), asked, CAP).run()
    shares = whole(asked, weight)
    each, sample = np.arange(T), np.array(found.sample)
    assert np.array_equal(np.array(found.argmax), shares.argmax(axis=-1))
    ends = np.cumsum(shares, axis=-1)
    assert (ends[each, sample] > asked.uniforms - 1e-5).all()
    assert (ends[each, sample] - shares[each, sample] <= asked.uniforms + 1e-5).all()
    assert np.allclose(found.confidence, shares[each, sample], rtol=1e-3, atol=1e-6)
    terms = shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    assert np.allclose(found.entropy, -terms.sum(axis=-1), atol=2e-4)
    assert np.allclose(found.soft, shares[asked.heavy] @ weight, atol=1e-5)
    if sets:
        assert asked.allowed[asked.allowed_index, sample].all()


@pytest.mark.parametrize("edge", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_a_uniform_at_the_edge_draws_a_token_that_can_be(edge):
    table, _ = table_of("plain")
    asked = ask(3.0, sets=True)
    asked.uniforms[:] = edge
    sample = np.array(Sweep(Slices(table), asked, CAP).run().sample)
    own = [np.flatnonzero(asked.allowed[i]) for i in asked.allowed_index]
    ends = [0 if edge == 0 else -1] * T
    barred = asked.allowed_index > 0  # elsewhere the last tokens may have too little mass to be drawn
    assert [int(s) for s in sample[barred]] == [ids[e] for ids, e, b in zip(own, ends, barred, strict=True) if b]


def test_a_vocabulary_that_does_not_divide_is_one_slice():
    table, weight = table_of("plain", 1000)
    assert len(Slices(table).parts) == 1
    asked = ask(3.0, vocabulary_size=1000)
    assert np.array_equal(np.array(Sweep(Slices(table), asked, CAP).run().argmax), whole(asked, weight).argmax(axis=-1))


@pytest.fixture
def listed(monkeypatch):
    """Lists in float32 too, where what they hold can be told exactly."""
    monkeypatch.setattr(module, "LISTED", {mx.float32})


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heavy", [0.0, 0.5, 1.0])
def test_soft_embeddings_are_the_same_from_lists_sums_and_second_looks(kind, heavy):
    table, weight = table_of(kind)
    slices, asked = Slices(table), ask(12.0, heavy)
    found = Sweep(slices, asked, CAP).run()
    names = ("tokens", "shares", "lost")
    told = vocabulary.SelfConditioning(
        hidden=asked.hidden, temperature=0.6, allowed=None, heavy=asked.heavy, soft=found.soft, certain=None,
        found={name: getattr(found, name) for name in names},
    )  # fmt: skip
    asked.temperature[:] = 0.6
    found = Sweep(slices, asked, CAP).run()
    told.found, told.soft = {name: np.array(getattr(found, name)) for name in names}, found.soft
    listed = ~asked.heavy & (np.array(found.lost) <= module.LOST[mx.float32])
    if heavy == 0.0:
        assert 0 < listed.sum() < T  # some by their lists, some by a second look
    soft = np.array(vocabulary.soft_embedding(told, table, slices, CAP)) / D**0.5
    assert np.abs(soft - whole(asked, weight) @ weight).max() < 2e-5


def test_memory_at_the_real_vocabulary():
    """Of MLX; 256 positions' logits alone would be 268 MB."""
    table = Embedding(262_144, 16)
    table.weight = mx.random.normal((262_144, 16), key=mx.random.key(0))
    hidden = mx.random.normal((256, 16), key=mx.random.key(1))
    slices = Slices(table)
    mx.eval(table.weight, hidden)
    for heavy in (False, True):
        asked = Asked(hidden, np.full(256, 0.6, np.float32), np.full(256, 0.5, np.float32), np.full(256, heavy))
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval([array for array in vars(Sweep(slices, asked, CAP).run()).values() if isinstance(array, mx.array)])
        assert mx.get_peak_memory() - before < 80e6


@pytest.mark.usefixtures("listed")
def test_the_next_pass_expects_what_this_one_saw():
    """Whether this one summed up the whole table or not: or its guesses would change from pass to pass."""
    table, _ = table_of("plain")
    expected = []
    for heavy in (0.0, 1.0):
        asked = ask(12.0, heavy)
        found = {"lost": np.array(Sweep(Slices(table), asked, CAP).run().lost)}
        told = vocabulary.SelfConditioning(asked.hidden, 0.6, None, found, asked.heavy, None, None)
        expected.append(told.expect_heavy())
    assert np.array_equal(*expected) and 0 < expected[0].sum() < T


def test_no_weight_is_subnormal(namespace):
    """A CPU multiplies those a hundred times as slowly as others."""
    if namespace == "mlx":
        pytest.skip("the weights of a GPU are its own affair")
    below = np.linspace(-110, 0, 4001, dtype=np.float32)
    exact = np.exp(below.astype(np.float64))
    weights = arithmetic.weight(np, below)
    assert (weights >= np.finfo(np.float32).tiny).all() and np.abs(weights - exact).max() < 1e-7
