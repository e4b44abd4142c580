"""Attention, scale 1, of new tokens over a pool of caches; a canvas also attends to all of itself.

`lo` and `hi` are the tokens of the text that a query attends to: those at positions [lo, hi). There are no other masks:
causal, causal in a window, and a canvas behind its text differ in nothing else. On a GPU a kernel goes by the lengths
that are on the device; elsewhere keys are taken in blocks, with a running maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import device

SCORES = 64_000_000  # bytes of scores, at most, in one block of keys
LOWEST = -1e30  # of a running maximum: finite, so that differences stay numbers


@dataclass
class KeyRange:
    """The keys that Q queries of each of N sequences attend to, in layers of one kind."""

    slot: Tensor  # [N] int32, of the pool
    lo: Tensor  # [N, Q] int32
    hi: Tensor  # [N, Q] int32
    width: int  # at least hi.max() - lo.min() of every sequence: known on the host, as shapes are
    canvas: Tensor | None  # [N] int32: tokens of the canvas; None: texts, whose keys are in the cache


def attend(queries: Tensor, cache: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], keys: KeyRange) -> Tensor:
    """[N, Q, H, D] -> [N, Q, H, D]. `cache` are the pool's keys and values [slots, room + 1, G, D], position p of a
    text at p % room; `new` are those of the queries' tokens, [N, Q, G, D], which only a canvas reads. A query without
    keys gets zeros."""
    if device.by_kernel(queries):
        from .kernels import attend as kernel

        return kernel(queries, cache, new, keys)
    return in_blocks(queries, cache, new, keys)


class Attend(nn.Module):
    """`attend` as a module, so that forward hooks can observe it."""

    def forward(
        self, queries: Tensor, cache: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], keys: KeyRange
    ) -> Tensor:
        return attend(queries, cache, new, keys)


class _Softmax:
    """A softmax over keys that come in blocks, and the mean of values by it."""

    def __init__(self, queries: Tensor, groups: int):
        self.shape = queries.shape
        # Head h reads key head h // (heads / groups).
        self.queries = queries.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).float()  # [N, G, R, Q, D]
        self.top = queries.new_full((*self.queries.shape[:-1], 1), LOWEST, dtype=torch.float32)
        self.mass, self.out = torch.zeros_like(self.top), torch.zeros_like(self.queries)

    def add(self, keys: Tensor, values: Tensor, visible: Tensor) -> None:
        """keys, values [N, S, G, D]; visible [N, Q or 1, S] bool."""
        keys, values = (x.permute(0, 2, 1, 3)[:, :, None].float() for x in (keys, values))
        scores = torch.where(visible[:, None, None], self.queries @ keys.transpose(-1, -2), 10 * LOWEST)
        before, self.top = self.top, torch.maximum(self.top, scores.amax(dim=-1, keepdim=True))
        weights, fade = torch.exp(scores - self.top), torch.exp(before - self.top)
        self.mass = self.mass * fade + weights.sum(dim=-1, keepdim=True)
        self.out = self.out * fade + weights @ values

    def mean(self, dtype: torch.dtype) -> Tensor:
        mean = self.out / self.mass.clamp(min=1e-30)
        return mean.permute(0, 3, 1, 2, 4).reshape(self.shape).to(dtype)


def in_blocks(queries: Tensor, cache: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], keys: KeyRange) -> Tensor:
    """`attend` by plain operations, block by block of keys."""
    cached_keys, cached_values = cache
    room, softmax = cached_keys.shape[1] - 1, _Softmax(queries, cached_keys.shape[2])
    block = max(1, SCORES // (4 * queries.shape[:3].numel()))
    start = keys.lo.amin(dim=1, keepdim=True)
    for first in range(0, keys.width, block):
        positions = start + torch.arange(first, min(first + block, keys.width), device=start.device)  # [N, S]
        visible = (positions[:, None] >= keys.lo[..., None]) & (positions[:, None] < keys.hi[..., None])
        place = (keys.slot[:, None], positions % room)
        softmax.add(cached_keys[place], cached_values[place], visible)
    if keys.canvas is not None:
        count = torch.arange(queries.shape[1], device=start.device)
        softmax.add(*new, count[None, None] < keys.canvas[:, None, None])
    return softmax.mean(queries.dtype)
