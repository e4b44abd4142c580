"""Processes that are killed at random moments: KILLS of them, from SEED."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator

from forked import Started

KILLS, SEED = int(os.environ.get("KILLS", 4)), int(os.environ.get("SEED", 0))


def seconds(start: Callable[[], Started]) -> float:
    """How long a run takes that nobody kills."""
    process = start()
    begun = time.perf_counter()
    err = process.communicate()[1]
    assert process.returncode == 0, err
    return time.perf_counter() - begun


def killed(start: Callable[[], Started], longest: float, least: float = 0.2) -> Iterator[tuple[int, str]]:
    """Starts runs, and kills each within `longest` seconds, until KILLS were: some end before. -> exit code, what it
    wrote to stderr."""
    moments, kills = random.Random(SEED), 0
    while kills < KILLS:
        process, begun = start(), time.perf_counter()
        try:
            process.wait(moments.uniform(least, 1) * longest)
            longest = time.perf_counter() - begun  # the machine is less busy than it was
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        yield process.wait(), process.communicate()[1]
