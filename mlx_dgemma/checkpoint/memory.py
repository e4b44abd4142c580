"""Memory and disk: what this process may take, what it has taken, whether a checkpoint fits. All sizes are bytes."""

import resource
import shutil
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import Mistake
from .config import ModelConfig

PUBLISHED = {  # hub id -> memory that the text model takes: README's table of sizes
    "mlx-community/diffusiongemma-26B-A4B-it-4bit": 15.4e9,
    "mlx-community/diffusiongemma-26B-A4B-it-8bit": 26.8e9,
    "google/diffusiongemma-26B-A4B-it": 50.5e9,
}

_SMALLER = (
    "no published checkpoint would fit: close other programs, or convert to fewer bits (benchmark predict --memory)"
)
GROWTH = 1.5  # of the buffers of K and V that a text outgrows
CHUNK, SCORES = 512, 256e6  # tokens of text encoded at once, and bytes of their scores at most (mlx_backend)

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def gigabytes(size: float) -> str:
    """Format a size for a message: "15.4 GB", or "2.1 MB" below 100 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def available() -> int:
    """Return what the weights of a new process may take: what is free or can be freed, within the limits of this
    process and of its container."""
    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits = [] if limit == resource.RLIM_INFINITY else [limit]
    return min([psutil.virtual_memory().available, *limits, *_free_in_groups()])


def _free_in_groups() -> Iterator[int]:
    """Yield what is free in each control group that this process is in (Linux: cgroups(7), versions 1 and 2)."""
    lines = GROUPS.read_text().splitlines() if GROUPS.exists() else []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers == "":
            mounts, names = (MOUNT, MOUNT / "unified"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = (MOUNT / "memory",)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(mount) and (free := _free(folder, *names)) is not None:
                    yield free


def _free(group: Path, limit: str, used: str, reclaimed: str) -> int | None:
    """Return the limit of a group less what it uses, but for files that can be read again; None without a limit."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(most - taken + int(files.get(reclaimed, 0)), 0)
    except (OSError, ValueError):  # there is no such group here, or its limit is "max"
        return None


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raise Mistake if `folder` is on a disk with less room than is needed for `what`."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise Mistake(f"too little disk for {what}: needs {gigabytes(needed)}, {gigabytes(free)} are free in {folder}")


def peak() -> int:
    """Return the most that the process has held at a time, all its allocators together."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def metal_limit(memory: float) -> float:
    """Return what macOS lets the GPU of a Mac with so much memory hold (Metal: `recommendedMaxWorkingSetSize`): two
    thirds up to 32 GiB, three quarters from 36 on. Newer chips with 16 GiB report three quarters, too."""
    return memory * (2 / 3 if memory <= 32 * 2**30 else 3 / 4)


def working_memory(config: ModelConfig, tokens: int, item: int = 2) -> int:
    """Return what a text of so many tokens takes beside the weights, at most: K and V of `item` bytes a number, in
    buffers that grow by half; and a pass, which has four float32 tables of a canvas's logits (its slices of the
    vocabulary and what MLX's allocator keeps are less), or the scores and activations of a chunk of text."""
    rows, pair = CHUNK + config.canvas_length, 2 * config.hidden_size + 3 * config.moe_intermediate_size
    activations = 2 * item * rows * (4 * config.hidden_size + config.top_k_experts * pair)
    scores = min(SCORES, 2 * item * rows * config.num_attention_heads * max(tokens, CHUNK))
    logits = 4 * 4 * config.canvas_length * config.vocab_size
    return int(GROWTH * item * config.cache_numbers(tokens)) + max(logits, int(scores) + activations)


def longest_text(config: ModelConfig, room: float, item: int = 2) -> int:
    """Return how many tokens a text may have for which `room` is enough beside the weights; below 0: none."""
    tokens = range(config.max_position_embeddings + 1)
    return bisect_right(tokens, room, key=lambda count: working_memory(config, count, item)) - 1


def limit_context(config: ModelConfig, weights: int, most: int, what: str, item: int = 2) -> ModelConfig:
    """Return `config` with the longest context that fits into `most` bytes beside `weights`. Mistake where not even a
    canvas behind a canvas of text fits."""
    tokens, least = longest_text(config, most - weights, item), 2 * config.canvas_length
    if tokens < least:
        rest = working_memory(config, least, item)
        raise Mistake(
            f"--max-memory {most / 1e9:g} is too little for {what}: it needs {gigabytes(weights + rest)} "
            f"({gigabytes(weights)} of weights, {gigabytes(rest)} of a pass and {least} tokens); give more, or take "
            "weights of fewer bits: see benchmark predict --memory"
        )
    return replace(config, max_position_embeddings=tokens)


def check_memory(needed: int, what: str, free: int | None = None, more: str = "") -> None:
    """Raise Mistake if checkpoint `what` needs more than `free` (default: `available()`), and name one that fits, and
    what would give `more` memory."""
    free = available() if free is None else free
    if needed <= free:
        return
    fitting = [name for name, size in PUBLISHED.items() if size <= free and size < needed]
    advice = f"{fitting[-1]} would fit" if fitting else _SMALLER
    raise Mistake(
        f"too little memory for {what}: needs {gigabytes(needed)}, {gigabytes(free)} are free; {advice}{more}"
    )
