"""Attention, scale 1, of new tokens over a pool of caches; a canvas also attends to all of itself.

A query attends to the tokens of its text at positions [lo, hi). There are no other masks: causal, causal in a window,
and a canvas behind its text differ in nothing else. On a GPU a kernel goes by the lengths that are on the device;
elsewhere keys are taken in blocks, with a running maximum.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import device
from .fused import rms_norm, rotated_norm
from .tokens import KeyRange

SCORES = 64_000_000  # bytes of scores, at most, in one block of keys
LOWEST = -1e30  # of a running maximum: finite, so that differences stay numbers

Pair = tuple[Tensor, Tensor]  # keys and values


def heads(
    qkv: Tensor, sizes: tuple[int, ...], q_weight: Tensor, k_weight: Tensor, rotation: Tensor, eps: float
) -> list[Tensor]:
    """qkv [T, the sum of sizes] -> queries, keys and values [T, H, D] each: RMSNorm of each head, and but for values
    its weight, and RoPE by `rotation` [2, T, D / 2], the cosines and the sines. With two sizes values are raw keys."""
    if device.by_kernel(qkv):
        from .attention_kernels import heads as by_kernel

        return by_kernel(qkv, sizes, q_weight, k_weight, rotation, eps)
    raw = [part.unflatten(-1, (-1, len(q_weight))) for part in qkv.split(sizes, dim=-1)]
    rotated = [rotated_norm(x, weight, rotation, eps) for x, weight in zip(raw, (q_weight, k_weight), strict=False)]
    return [*rotated, rms_norm(raw[-1], None, eps)]


class Attend(nn.Module):
    """A module, so that forward hooks can observe it."""

    def forward(self, queries: Tensor, cache: Pair, new: Pair, keys: KeyRange) -> Tensor:
        """[N, Q, H, D] -> [N, Q, H, D]. `cache` are the pool's keys and values [slots, room + 1, G, D], position p of a
        text at p % room; `new` are those of the queries' tokens, [N, Q, G, D], which only a canvas reads. A query
        without keys gets zeros."""
        if device.by_kernel(queries):
            from .attention_kernels import attend

            return attend(queries, cache, new, keys)
        return in_blocks(queries, cache, new, keys)


def in_blocks(queries: Tensor, cache: Pair, new: Pair, keys: KeyRange) -> Tensor:
    """`Attend` by plain operations: a softmax over keys that come in blocks, and the mean of values by it."""
    # Head h reads key head h // (heads / groups).
    grouped = queries.unflatten(2, (cache[0].shape[2], -1)).permute(0, 2, 3, 1, 4).float()  # [N, G, R, Q, D]
    top = queries.new_full((*grouped.shape[:-1], 1), LOWEST, dtype=torch.float32)
    mass, out = torch.zeros_like(top), torch.zeros_like(grouped)
    size = max(1, SCORES // (4 * queries.shape[:3].numel()))
    for *pair, visible in _blocks(size, queries.shape[1], cache, new, keys):
        key, value = (x.permute(0, 2, 1, 3)[:, :, None].float() for x in pair)
        scores = torch.where(visible[:, None, None], grouped @ key.transpose(-1, -2), 10 * LOWEST)
        before, top = top, torch.maximum(top, scores.amax(dim=-1, keepdim=True))
        weights, fade = torch.exp(scores - top), torch.exp(before - top)
        mass = mass * fade + weights.sum(dim=-1, keepdim=True)
        out = out * fade + weights @ value
    return (out / mass.clamp(min=1e-30)).permute(0, 3, 1, 2, 4).reshape(queries.shape).to(queries.dtype)


def _blocks(size: int, count: int, cache: Pair, new: Pair, keys: KeyRange) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield keys and values [N, S, G, D], and which of them each of `count` queries sees: [N, Q or 1, S] bool."""
    start = keys.lo.amin(dim=1, keepdim=True)
    for first in range(0, keys.width, size):
        positions = start + torch.arange(first, min(first + size, keys.width), device=start.device)  # [N, S]
        place = keys.slot[:, None], positions % (cache[0].shape[1] - 1)
        visible = (positions[:, None] >= keys.lo[..., None]) & (positions[:, None] < keys.hi[..., None])
        yield cache[0][place], cache[1][place], visible
    if keys.canvas is not None:
        yield *new, torch.arange(count, device=start.device) < keys.canvas[:, None, None]
