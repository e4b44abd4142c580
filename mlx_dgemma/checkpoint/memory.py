"""Memory of this process: what it may take, and what it has taken. Bytes."""

from __future__ import annotations

import resource
import sys

from ..errors import Mistake


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def available() -> int:
    """What a new process's weights may take: what the system has free or can free, less than any limit set on us."""
    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    free = psutil.virtual_memory().available
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def check_memory(needed: int, what: str, free: int | None = None) -> None:
    """Mistake unless `needed` bytes are free (`free`, or what a process may take)."""
    free = available() if free is None else free
    if needed > free:
        raise Mistake(f"too little memory for {what}: needs {gigabytes(needed)}, {gigabytes(free)} are free")


def peak() -> int:
    """What the process has held at most, all its allocators together."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
