"""Attention in blocks of keys and by MLX's own function, against all scores at once in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.mlx_backend import attention

CASES = {"canvas": (False, None), "text": (True, None), "text in a window": (True, 20)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("total", [12, 50])
@pytest.mark.parametrize("block", [7, 16, 1000])
def test_blocks_and_whole(monkeypatch, case, total, block):
    causal, window = CASES[case]
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, heads, n, 16)).astype(np.float32) for heads, n in ((4, 12), (2, total), (2, total)))
    for bytes_of in ("SCORES", "BLOCK"):
        monkeypatch.setattr(attention, bytes_of, block * 4 * 4 * 12)
    found = attention.attend(mx.array(q), mx.array(k), mx.array(v), causal=causal, window=window)
    query, key = np.arange(total - 12, total)[:, None], np.arange(total)
    seen = (key <= query) & (key > query - (window or total)) if causal else np.ones((12, total), bool)
    for head in range(4):
        scores = np.where(seen, q[0, head].astype(np.float64) @ k[0, head // 2].T, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        expected = weights / weights.sum(axis=-1, keepdims=True) @ v[0, head // 2]
        assert np.abs(np.array(found[0, head]) - expected).max() < 1e-5


@pytest.mark.parametrize("block", [3, 1000])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_sixteen_bits(monkeypatch, dtype, block):
    for bytes_of in ("SCORES", "BLOCK"):
        monkeypatch.setattr(attention, bytes_of, block * 4 * 4 * 8)
    q, k = (mx.random.normal((1, heads, 8, 16), key=mx.random.key(heads)) for heads in (4, 2))
    exact = attention.attend(q, k, k, causal=True, window=None)
    rounded = attention.attend(*(a.astype(dtype) for a in (q, k, k)), causal=True, window=None)
    assert rounded.dtype == dtype
    assert mx.abs(rounded.astype(mx.float32) - exact).max() < 0.1
