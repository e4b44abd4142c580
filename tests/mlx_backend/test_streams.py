"""Rows of a call that are spread over threads of a CPU."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import load
from mlx_dgemma.mlx_backend import family
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.seam.shared import spread


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
    parts = spread(rows[1], count)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4] and len(parts) == min(count, 3)
    for one, other in ((0, 3), (1, 4)):
        assert any({one, other} <= set(part) for part in parts)


def test_threads_change_no_bit_and_no_order(rows, monkeypatch):
    model, given = rows
    found = []
    for count in (1, 2, 4):
        streams = [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(1, count))]
        monkeypatch.setattr(family, "streams", lambda streams=streams: streams)
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
