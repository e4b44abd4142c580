"""Sums over the ranks of a model that is divided, by MLX's own engines. Alone, everything here leaves arrays as they
are. All is lazy: every rank builds the same graph, so that the sums meet."""

import os

import mlx.core as mx

from ..checkpoint.shares import WHOLE, Share
from ..errors import Mistake

ENGINES = {"MLX_HOSTFILE": "ring", "MLX_IBV_DEVICES": "jaccl", "NCCL_HOST_IP": "nccl", "OMPI_COMM_WORLD_SIZE": "mpi"}
mine = WHOLE  # of this process


def join(share: Share) -> None:
    """Meet the other ranks that mlx.launch started, if `share` is of several. Mistake where that cannot be."""
    global mine
    mine = share
    if share.ranks == 1:
        return
    engine = next(ENGINES[name] for name in ENGINES if os.environ.get(name))
    try:
        group = mx.distributed.init(strict=True, backend=engine)
    except RuntimeError as error:
        raise Mistake(f"MLX's engine {engine} does not start: {error}") from None
    if (group.rank(), group.size()) != (share.rank, share.ranks):
        raise Mistake(f"MLX's engine {engine} has {group.size()} ranks, need {share.ranks}")


def sum_up(x: mx.array) -> mx.array:
    return mx.distributed.all_sum(x) if mine.ranks > 1 else x


def gathered(x: mx.array) -> mx.array:
    """All ranks' [T, n] side by side, theirs of the vocabulary: [T, ranks * n]."""
    if mine.ranks == 1:
        return x
    return mx.distributed.all_gather(x[None]).swapaxes(0, 1).reshape(len(x), -1)


def placed(x: mx.array, here: mx.array) -> mx.array:
    """Fill in from the rank that has them what `x` holds only where `here` is true."""
    return sum_up(mx.where(here, x, 0)) if mine.ranks > 1 else x


def from_first(x: mx.array) -> mx.array:
    """Rank 0's, to the bit: what is decided by it is decided alike."""
    return placed(x, mx.array(mine.rank == 0))
