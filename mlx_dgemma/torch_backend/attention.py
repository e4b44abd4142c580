"""Attention, scale 1, of new tokens over a pool of caches, each query seeing one stretch of its cache and, a canvas,
all of itself.

`lo` and `hi` say which tokens of the text a query sees: those at positions [lo, hi). That is all there is of masks:
causal, causal in a window, and a canvas behind its text differ in nothing else. On a GPU a kernel goes by the lengths
that are on the device; elsewhere keys are taken in blocks, with a running maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import device

SCORES = 64_000_000  # bytes of scores, at most, in one block of keys
LOWEST = -1e30  # of a running maximum: finite, so that differences stay numbers


@dataclass
class Sight:
    """What the queries of a block of N sequences see of layers of one kind."""

    slot: Tensor  # [N] int32, of the pool
    lo: Tensor  # [N, Q] int32
    hi: Tensor  # [N, Q] int32
    width: int  # at least hi.max() - lo.min() of every sequence: known on the host, as shapes are
    own: Tensor | None  # [N] int32: how many tokens of its own a canvas has; None: they are in the cache


def attend(queries: Tensor, cache: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], sight: Sight) -> Tensor:
    """[N, Q, H, D] -> [N, Q, H, D]. `cache` are the pool's keys and values [slots, room + 1, G, D], position p of a
    text at p % room; `own` are a canvas's, [N, Q, G, D]. A query that sees nothing gets zeros."""
    if device.by_kernel(queries):
        from .kernels import attend as kernel

        return kernel(queries, cache, own, sight)
    return _in_blocks(queries, cache, own, sight)


class _Softmax:
    """A softmax over keys that come in blocks, and the mean of values by it."""

    def __init__(self, queries: Tensor, groups: int):
        self.shape = queries.shape
        # Head h looks at key head h // (heads / groups).
        self.queries = queries.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).float()  # [N, G, R, Q, D]
        self.top = queries.new_full((*self.queries.shape[:-1], 1), LOWEST, dtype=torch.float32)
        self.mass, self.out = torch.zeros_like(self.top), torch.zeros_like(self.queries)

    def add(self, keys: Tensor, values: Tensor, seen: Tensor) -> None:
        """keys, values [N, S, G, D]; seen [N, Q or 1, S] bool."""
        keys, values = (x.permute(0, 2, 1, 3)[:, :, None].float() for x in (keys, values))
        scores = torch.where(seen[:, None, None], self.queries @ keys.transpose(-1, -2), 10 * LOWEST)
        before, self.top = self.top, torch.maximum(self.top, scores.amax(dim=-1, keepdim=True))
        weights, fade = torch.exp(scores - self.top), torch.exp(before - self.top)
        self.mass = self.mass * fade + weights.sum(dim=-1, keepdim=True)
        self.out = self.out * fade + weights @ values

    def mean(self, dtype: torch.dtype) -> Tensor:
        mean = self.out / self.mass.clamp(min=1e-30)
        return mean.permute(0, 3, 1, 2, 4).reshape(self.shape).to(dtype)


def _in_blocks(queries: Tensor, cache: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], sight: Sight) -> Tensor:
    keys, values = cache
    room, softmax = keys.shape[1] - 1, _Softmax(queries, keys.shape[2])
    block = max(1, SCORES // (4 * queries.shape[:3].numel()))
    start = sight.lo.amin(dim=1, keepdim=True)
    for first in range(0, sight.width, block):
        positions = start + torch.arange(first, min(first + block, sight.width), device=start.device)  # [N, S]
        seen = (positions[:, None] >= sight.lo[..., None]) & (positions[:, None] < sight.hi[..., None])
        place = (sight.slot[:, None], positions % room)
        softmax.add(keys[place], values[place], seen)
    if sight.own is not None:
        count = torch.arange(queries.shape[1], device=start.device)
        softmax.add(*own, count[None, None] < sight.own[:, None, None])
    return softmax.mean(queries.dtype)
