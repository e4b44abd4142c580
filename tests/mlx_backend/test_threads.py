"""Rows of a call that are spread over threads of a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlx_dgemma import load
from mlx_dgemma.errors import Mistake
from mlx_dgemma.mlx_backend import threads
from mlx_dgemma.seam.model import Row, Text


@pytest.fixture(scope="module")
def rows():
    model = load()[0]
    caches = [model.new_cache() for _ in range(3)]
    for n, cache in enumerate(caches):
        model.encode([Text(np.arange(20 + n))], [cache])
    uniforms = np.random.default_rng(0).random(64, dtype=np.float32)
    return model, [
        Row(np.arange(64 - n, dtype=np.int32), caches[n % 3], 0.7, uniforms[n:], Text(np.arange(3 + n % 3)))
        for n in (0, 1, 2, 3, 4)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_rows_of_a_cache_stay_together(rows, count):
    parts = threads.spread(rows[1], count)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4] and len(parts) == min(count, 3)
    for one, other in ((0, 3), (1, 4)):
        assert any({one, other} <= set(part) for part in parts)


def test_threads_change_no_bit_and_no_order(rows, monkeypatch):
    model, given = rows
    found = []
    for count in (1, 2, 4):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        forks: dict[int, object] = {}
        own = [replace(row, cache=forks.setdefault(id(row.cache), row.cache.copy())) for row in given]
        first = model.denoise(own)
        pairs = zip(own, first, strict=True)
        again = [replace(row, pending=Text(), self_conditioning=p.self_conditioning) for row, p in pairs]
        found.append([*first, *model.denoise(again)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.array_equal(one.sample, two.sample) and np.array_equal(one.entropy, two.entropy)
    assert [len(p.argmax) for p in found[0]] == [64, 63, 62, 61, 60] * 2


@pytest.mark.slow
def test_threads_do_nothing_that_another_has_to_finish(rows, monkeypatch):
    """A new model has views and constants, a cache that was trimmed or forked is lazy."""
    monkeypatch.setattr(threads, "count", lambda: 3)
    model = load()[0]
    model.denoise([replace(row, cache=model.new_cache()) for row in rows[1]])
    model, given = rows
    for _ in range(2):
        caches = {id(row.cache): row.cache.copy() for row in given}
        for cache in caches.values():
            cache.trim(2)
        model.denoise([replace(row, cache=caches[id(row.cache)]) for row in reversed(given)])


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_goes_wrong_in_any_part_is_raised_when_all_have_ended(rows, monkeypatch, bad):
    model, given = rows
    monkeypatch.setattr(threads, "count", lambda: 3)
    own = [replace(row, cache=row.cache.copy()) for row in given[:3]]
    own[bad] = replace(own[bad], canvas=np.full(64, 10**6, np.int32))
    with pytest.raises(Mistake, match="token ids"):
        model.denoise(own)
    lengths = {20 + n + (0 if n == bad else 3 + n) for n in range(3)}
    assert {row.cache.length for row in own} == lengths


def test_several_ranks_and_one_row_use_one_thread(rows, monkeypatch):
    model, given = rows
    monkeypatch.setattr(threads, "_others", None)  # whoever asks for more fails
    model.denoise([replace(given[0], cache=given[0].cache.copy())])
    monkeypatch.setattr(threads.parallel, "mine", replace(threads.parallel.mine, ranks=2))
    assert threads.count() == 1
