"""One model on several GPUs: each rank has its share of the experts and of the heads, and sums up with the others.

Every rank runs the same command, and computes alike what is not divided. What the loop above decides by, its numbers
and its clock, is rank 0's on every rank, so that they cannot part. Rank 0 alone prints; another rank prints only why it
failed.
"""

import atexit
import io
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoint.config import LayerConfig, ModelConfig
from ..errors import Mistake


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def join() -> None:
    """Meet the other ranks that torchrun started."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1 or ranks() > 1:
        return
    devices, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if 0 < devices <= local:
        raise Mistake(f"{count} ranks need a GPU each, this machine has {devices}: torchrun --nproc-per-node {devices}")
    if devices:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if devices else "gloo")
    atexit.register(dist.destroy_process_group)
    _name_failures(rank())


class _Failures(io.TextIOBase):
    """A stderr that lets through only what is printed while a Mistake is handled, each line after the rank's number."""

    def __init__(self, stream: TextIO, number: int):
        self.stream, self.number = stream, number

    def write(self, text: str) -> int:
        if isinstance(sys.exception(), Mistake):
            self.stream.write(f"rank {self.number}: {text}" if text.strip() else text)
        return len(text)


def _name_failures(number: int) -> None:
    """Print an unforeseen error of this rank after its number; silence a rank that is not the first otherwise."""
    stderr = sys.stderr

    def report(kind: type[BaseException], error: BaseException, trace: object) -> None:
        print(f"rank {number}: {''.join(traceback.format_exception(error))}", end="", file=stderr, flush=True)
        atexit.unregister(dist.destroy_process_group)  # which may wait for the others, and they for this one

    sys.excepthook = report
    if number:
        sys.stdout, sys.stderr = open(os.devnull, "w"), _Failures(stderr, number)  # noqa: SIM115


@contextmanager
def _collective() -> Iterator[None]:
    """Raise a Mistake if another rank is gone, which is noticed when it is waited for."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition(". ")[0]
        raise Mistake(f"another rank stopped, its own message says why ({reason})") from error


def sum_up(x: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if ranks() > 1:
        with _collective():
            dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """Replace `x` by rank 0's, in place."""
    if ranks() > 1:
        with _collective():
            dist.broadcast(x, 0)
    return x


def now(device: torch.device) -> float:
    """Seconds on rank 0's clock. All ranks must ask together."""
    seconds = time.perf_counter()
    if ranks() == 1:
        return seconds
    return from_first(torch.tensor(seconds, dtype=torch.float64, device=device)).item()


def file_of_rank(path: Path) -> Path:
    """Return where this rank keeps its share of what is saved as `path`: rank 0 there, the others beside it."""
    return path.with_name(f"{path.name}.rank{rank()}") if rank() else path


def divides(layer: LayerConfig) -> bool:
    """Return whether a layer's key-value heads can be shared out; if not, every rank has all of its attention."""
    return layer.num_key_value_heads % ranks() == 0


def local_heads(layer: LayerConfig) -> LayerConfig:
    """`layer` with the key-value heads that this rank has."""
    heads = layer.num_key_value_heads
    return replace(layer, num_key_value_heads=heads // ranks() if divides(layer) else heads)


def share(config: ModelConfig, path: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the part of a parameter that this rank holds: experts whole, heads whole."""
    part = [slice(None)] * len(shape)
    experts, heads = ".experts." in path, ".self_attn." in path and "norm" not in path
    if ranks() == 1 or not (experts or (heads and divides(config.layers[int(path.split(".")[3])]))):
        return tuple(part)
    axis = -1 if ".o_proj." in path else 0
    if shape[axis] % ranks():
        raise Mistake(f"{ranks()} ranks do not divide the {shape[axis]} of {path}: start another number of them")
    size = shape[axis] // ranks()
    part[axis] = slice(rank() * size, (rank() + 1) * size)
    return tuple(part)
