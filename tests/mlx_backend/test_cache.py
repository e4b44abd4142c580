"""One layer's K and V: what is seen, what is kept, and that the past is not copied for every pass."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.mlx_backend.cache import LayerCache

KEPT, SEEN = 30, 20


def tokens(first: int, count: int, dim: int = 4) -> tuple[mx.array, mx.array]:
    """Keys that are their positions, values their negatives."""
    positions = mx.broadcast_to(
        mx.arange(first, first + count, dtype=mx.float32)[None, None, :, None], (1, 2, count, dim)
    )
    return positions, -positions


@pytest.mark.parametrize("pieces", [[5, 1, 1, 40, 16, 16], [100], [10] * 12])
@pytest.mark.parametrize("sliding", [False, True])
def test_what_is_seen_and_kept(pieces, sliding):
    cache, length = LayerCache(SEEN, KEPT) if sliding else LayerCache(None, None), 0
    for count in pieces:
        for canvas in (True, False):  # first a canvas, which leaves nothing behind
            keys, values = cache.visible(*tokens(1000 if canvas else length, count))
            past = min(length, SEEN) if sliding else length
            start = 1000 if canvas else length
            expected = [*range(length - past, length), *range(start, start + count)]
            assert np.array_equal(np.array(keys[0, 1, :, 0]), expected)
            assert np.array_equal(np.array(values), -np.array(keys))
        cache.append(count)
        length += count
        assert cache.retained == (min(length, KEPT) if sliding else length)
        assert np.array_equal(np.array(cache.text()["keys"][0, 0, :, 0]), range(length - cache.retained, length))


@pytest.mark.parametrize("sliding", [False, True])
def test_a_pass_writes_in_place(sliding):
    """Of 20,000 tokens, 40 MB: a canvas of 16 costs about its own size. Room is made once in a while."""
    cache = LayerCache(19_000, 19_500) if sliding else LayerCache(None, None, 21_000)
    cache.visible(*tokens(0, 20_000, 128))
    cache.append(20_000)
    mx.eval(cache.keys, cache.values)
    copied = 0
    for step in range(60):
        new = tokens(20_000, 16, 128)
        mx.eval(new)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        seen = cache.visible(*new)
        mx.eval(cache.keys, cache.values, seen)
        del seen
        copied += mx.get_peak_memory() - before > 1_000_000
        if step % 2:
            cache.append(16)
    assert copied <= 1


def test_a_fork_is_a_copy_only_once_it_is_written():
    cache = LayerCache(None, None, 300)
    cache.visible(*tokens(0, 200, 256))
    cache.append(200)
    mx.eval(cache.keys, cache.values)
    before = mx.get_active_memory()
    fork = cache.copy()
    assert mx.get_active_memory() == before
    fork.visible(*tokens(500, 8, 256))
    fork.append(8)
    cache.visible(*tokens(700, 8, 256))
    cache.append(8)
    for one, start in ((fork, 500), (cache, 700)):
        assert np.array_equal(np.array(one.text()["keys"][0, 0, :, 0]), [*range(200), *range(start, start + 8)])
