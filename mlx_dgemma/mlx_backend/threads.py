"""Rows that threads of a CPU denoise side by side.

MLX evaluates a graph on one thread, and most of its CPU operations use no other. So each part of the rows is built and
evaluated by a thread of its own, in a stream of its own. What the parts are given must have been evaluated: no other
thread than the one that made it can compute a lazy array.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import mlx.core as mx
import numpy as np

from ..seam.model import Row
from . import family, parallel

MAX_THREADS = 4  # each holds the arrays of a pass
Result = TypeVar("Result")


def count() -> int:
    """Of a GPU one: it has a queue. Of several ranks one: sums of two threads would meet each other's."""
    return 1 if family.current().gpu or parallel.mine.ranks > 1 else min(os.cpu_count() or 1, MAX_THREADS)


def spread(rows: Sequence[Row], count: int) -> list[list[int]]:
    """Numbers of `rows` in at most `count` parts of about as many tokens. Rows of one cache stay together: their text
    is encoded once."""
    by_cache: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_cache.setdefault(id(row.cache), []).append(i)
    parts: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for together in by_cache.values():
        part = int(np.argmin(tokens))
        parts[part] += together
        tokens[part] += sum(len(rows[i].canvas) for i in together) + len(rows[together[0]].pending)
    return [part for part in parts if part]


@cache
def _others() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS - 1, "rows")


def run(work: Callable[[Sequence[Row]], Result], parts: Sequence[Sequence[Row]]) -> list[Result]:
    """`work` of each part, the first in the caller's thread. All have ended when what went wrong in one is raised."""

    def on_cpu(part: Sequence[Row]) -> Result:
        with mx.stream(mx.cpu):  # the caller's default device need not be this thread's
            return work(part)

    others = [_others().submit(on_cpu, part) for part in parts[1:]]
    try:
        first = [work(part) for part in parts[:1]]
    finally:
        wait(others)
    return first + [other.result() for other in others]
