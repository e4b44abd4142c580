"""One model on several GPUs: each rank has its share of the experts and of the heads, and sums up with the others.

All that is not divided every rank computes alike; what the loop above decides by, rank 0 says, so the ranks cannot
drift apart. Every rank runs the same command; rank 0 alone is heard.
"""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoint.config import LayerConfig, ModelConfig
from ..errors import Mistake


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def join(count: int) -> None:
    """Meet the other ranks, which torchrun started."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != count:
        raise Mistake(
            f"--tensor-parallel {count} needs as many processes, there are {started}: "
            f"torchrun --nproc-per-node {count} -m mlx_dgemma.generate --tensor-parallel {count} …"
        )
    if count == 1 or ranks() > 1:
        return
    devices, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if 0 < devices <= local:
        raise Mistake(f"--tensor-parallel {count} needs a GPU for each rank, this machine has {devices}")
    if devices:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if devices else "gloo")
    atexit.register(dist.destroy_process_group)
    if rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def sum_up(x: Tensor) -> Tensor:
    """Over all ranks, in place."""
    if ranks() > 1:
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """Rank 0's, in place."""
    if ranks() > 1:
        dist.broadcast(x, 0)
    return x


def divides(layer: LayerConfig) -> bool:
    """Whether a layer's key-value heads can be shared out; if not, every rank has all of its attention."""
    return layer.num_key_value_heads % ranks() == 0


def own_heads(layer: LayerConfig) -> LayerConfig:
    heads = layer.num_key_value_heads
    return replace(layer, num_key_value_heads=heads // ranks() if divides(layer) else heads)


def share(config: ModelConfig, path: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Which part of a parameter this rank holds: experts whole, heads whole."""
    everything = (slice(None),) * len(shape)
    if ranks() == 1:
        return everything
    if ".experts." in path:
        return (_part(path, shape[0]), *everything[1:])
    parts = path.split(".")
    if parts[-3] != "self_attn" or "norm" in path or not divides(config.layers[int(parts[3])]):
        return everything
    if parts[-2] == "o_proj":
        return (*everything[:-1], _part(path, shape[-1]))
    return (_part(path, shape[0]), *everything[1:])


def _part(path: str, size: int) -> slice:
    if size % ranks():
        raise Mistake(f"--tensor-parallel {ranks()} does not divide the {size} of {path}")
    own = size // ranks()
    return slice(rank() * own, (rank() + 1) * own)
