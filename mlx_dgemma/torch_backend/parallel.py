"""Sums over the ranks of a model that is divided. Alone, everything here leaves things as they are."""

import atexit
import os

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoint.shares import WHOLE, Share
from ..errors import Mistake

mine = WHOLE  # of this process


def join(share: Share) -> None:
    """Take the GPU that is this process's, and meet the other ranks that torchrun started if `share` is of several."""
    global mine
    mine = share
    devices, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if 0 < devices <= local:
        raise Mistake(f"{local + 1} ranks here need a GPU each, this machine has {devices}: start {devices}")
    if devices and not dist.is_initialized():
        torch.cuda.set_device(local)
    if share.ranks == 1 or dist.is_initialized():
        return
    dist.init_process_group("nccl" if devices else "gloo")
    atexit.register(dist.destroy_process_group)


def sum_up(x: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if mine.ranks > 1:
        dist.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """All ranks' `x`, each of its part of the vocabulary, side by side in the last dimension."""
    if mine.ranks == 1:
        return x
    parts = torch.zeros((mine.ranks, *x.shape), dtype=x.dtype, device=x.device)
    parts[mine.rank] = x
    return torch.cat(tuple(sum_up(parts)), dim=-1)


def placed(x: Tensor, where: Tensor) -> Tensor:
    """Fill in from the rank that has them what `x` [T, ...] holds only at `where` [T] here."""
    if mine.ranks == 1:
        return x
    return sum_up(torch.where(where.view(-1, *[1] * (x.ndim - 1)), x, 0))
