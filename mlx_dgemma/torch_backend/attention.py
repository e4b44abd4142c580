"""Attention, scale 1, of new tokens over a pool of caches; a canvas also attends to all of itself.

A query attends to the tokens of its text at positions [lo, hi). There are no other masks: causal, causal in a window,
and a canvas behind its text differ in nothing else. On a GPU a kernel goes by the lengths that are on the device;
elsewhere it is torch's own, with a mask.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from . import device
from .fused import rms_norm, rotated_norm
from .tokens import KeyRange

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
        return plain(queries, cache, new, keys)


def plain(queries: Tensor, cache: Pair, new: Pair, keys: KeyRange) -> Tensor:
    """`Attend` in float32 by torch's own attention, over the keys of `keys.width` positions, a canvas's behind them."""
    slots, room = keys.slot[:, None], cache[0].shape[1] - 1
    places = slots * (room + 1) + keys.positions % room
    pair = [pool.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape) for pool in cache]
    if keys.canvas is not None:
        pair = [torch.cat(both, dim=1) for both in zip(pair, new, strict=True)]
    q, k, v = (x.transpose(1, 2).float() for x in (queries, *pair))
    out = scaled_dot_product_attention(q, k, v, attn_mask=keys.mask[:, None], scale=1.0, enable_gqa=True)
    return out.transpose(1, 2).to(queries.dtype)
