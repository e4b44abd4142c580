"""The sweep over the vocabulary in slices against all of it at once in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.mlx_backend import sweep as module
from mlx_dgemma.mlx_backend import vocabulary
from mlx_dgemma.mlx_backend.layers import Embedding
from mlx_dgemma.mlx_backend.sweep import KEPT, Slices, Sweep, SweepInputs, SweepResult

V, D, T, CAP = 32 * KEPT, 64, 24, 30.0
KINDS = {"plain": None, "4 bits": Quantization(bits=4, group_size=32)}
SPREADS = {"flat": 0.5, "mixed": 3.0, "peaked": 12.0}


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


def inputs_of(
    spread: float, heavy: float = 0.0, *, vocabulary_size: int = V, sets: bool = False, temperature: float | None = None
) -> SweepInputs:
    rng = np.random.default_rng(1)
    hidden = rng.normal(0, 1, (T, D)).astype(np.float32) * np.linspace(0.2, spread, T, dtype=np.float32)[:, None]
    if spread > 10:  # a third of the positions know their token
        hidden[::3] += 25 * table_of("plain", vocabulary_size)[1][:T:3].astype(np.float32)
    allowed, index = None, None
    if sets:
        allowed, index = rng.random((3, vocabulary_size)) < 0.01, rng.integers(3, size=T)
        allowed[0] = True
        allowed, index = mx.array(allowed), mx.array(index)
    temperatures = rng.uniform(0.4, 0.8, T).astype(np.float32)
    if temperature:
        temperatures[:] = temperature
    uniforms = rng.random(T, np.float32)
    return SweepInputs(
        mx.array(hidden), mx.array(temperatures), mx.array(uniforms), rng.random(T) < heavy, allowed, index
    )


def whole(inputs: SweepInputs, weight: np.ndarray) -> np.ndarray:
    """[T, V] float64 probabilities."""
    logits = np.tanh(np.array(inputs.hidden, np.float64) @ weight.T / CAP) * CAP
    logits /= np.array(inputs.temperature)[:, None]
    if inputs.allowed is not None:
        logits[~np.array(inputs.allowed)[np.array(inputs.allowed_index)]] = -np.inf
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def soft_of(inputs: SweepInputs, result: SweepResult, temperature: float) -> vocabulary.SoftEmbedding:
    """The soft embedding of one row of all positions."""
    lists = {name: np.array(getattr(result, name)) for name in ("tokens", "shares", "lost")}
    return vocabulary.SoftEmbedding(
        hidden=inputs.hidden, temperature=temperature, **lists, heavy=inputs.heavy,
        soft=result.soft, allowed=None,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("sets", [False, True])
def test_everything_is_as_by_all_logits(kind, spread, sets):
    table, weight = table_of(kind)
    inputs = inputs_of(SPREADS[spread], 0.5, sets=sets)
    result = Sweep(Slices(table), inputs, CAP).run()
    shares, uniforms = whole(inputs, weight), np.array(inputs.uniforms)
    each, sample = np.arange(T), np.array(result.sample)
    assert np.array_equal(np.array(result.argmax), shares.argmax(axis=-1))
    ends = np.cumsum(shares, axis=-1)
    assert (ends[each, sample] > uniforms - 1e-5).all()
    assert (ends[each, sample] - shares[each, sample] <= uniforms + 1e-5).all()
    assert np.allclose(result.confidence, shares[each, sample], rtol=1e-3, atol=1e-6)
    assert np.allclose(result.top, shares.max(axis=-1), rtol=1e-4)
    terms = shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    assert np.allclose(result.entropy, -terms.sum(axis=-1), atol=2e-4)
    assert np.allclose(result.soft, shares[inputs.heavy] @ weight, atol=1e-5)
    if sets:
        assert np.array(inputs.allowed)[np.array(inputs.allowed_index), sample].all()


@pytest.mark.parametrize("edge", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_a_uniform_at_the_edge_draws_a_token_that_can_be(edge):
    table, _ = table_of("plain")
    inputs = inputs_of(3.0, sets=True)
    inputs.uniforms = mx.full((T,), edge)
    sample, index = np.array(Sweep(Slices(table), inputs, CAP).run().sample), np.array(inputs.allowed_index)
    ids = [np.flatnonzero(np.array(inputs.allowed)[i]) for i in index]
    end = 0 if edge == 0 else -1
    barred = index > 0  # elsewhere the last tokens may have too little mass to be drawn
    assert sample[barred].tolist() == [int(ids[i][end]) for i in np.flatnonzero(barred)]


def test_a_vocabulary_that_does_not_divide_is_one_slice():
    table, weight = table_of("plain", 1000)
    assert len(Slices(table).parts) == 1
    inputs = inputs_of(3.0, vocabulary_size=1000)
    argmax = np.array(Sweep(Slices(table), inputs, CAP).run().argmax)
    assert np.array_equal(argmax, whole(inputs, weight).argmax(axis=-1))


@pytest.fixture
def listed(monkeypatch):
    """Lists in float32 too, where what they hold can be told exactly."""
    monkeypatch.setattr(module, "LISTED", {mx.float32})


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heavy", [0.0, 0.5, 1.0])
def test_soft_embeddings_are_the_same_from_lists_sums_and_another_sweep(kind, heavy):
    table, weight = table_of(kind)
    slices, inputs = Slices(table), inputs_of(12.0, heavy, temperature=0.6)
    soft = soft_of(inputs, Sweep(slices, inputs, CAP).run(), 0.6)
    if heavy == 0.0:
        assert 0 < soft.needs_table.sum() < T  # some by their lists, some by another sweep
    assert np.abs(np.array(soft.compute(slices, CAP)) - whole(inputs, weight) @ weight).max() < 2e-5


@pytest.mark.slow
def test_memory_at_the_real_vocabulary():
    """The logits of 64 positions alone would be 67 MB."""
    table = Embedding(262_144, 16)
    table.weight = mx.random.normal((262_144, 16), key=mx.random.key(0))
    hidden = mx.random.normal((64, 16), key=mx.random.key(1))
    slices = Slices(table)
    mx.eval(table.weight, hidden)
    for heavy in (False, True):
        inputs = SweepInputs(hidden, mx.full((64,), 0.6), mx.full((64,), 0.5), np.full(64, heavy))
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(list(vars(Sweep(slices, inputs, CAP).run()).values()))
        assert mx.get_peak_memory() - before < 30e6


@pytest.mark.usefixtures("listed")
def test_the_next_pass_expects_what_this_one_saw():
    """Whether this one summed up the whole table or not: or its guesses would change from pass to pass."""
    table, _ = table_of("plain")
    expected = []
    for heavy in (0.0, 1.0):
        inputs = inputs_of(12.0, heavy)
        expected.append(soft_of(inputs, Sweep(Slices(table), inputs, CAP).run(), 0.6).needs_table)
    assert np.array_equal(*expected) and 0 < expected[0].sum() < T
