"""Attention, scale 1, of new tokens at the end of all keys: causal, causal in a window, or a canvas that sees all.

MLX's fused kernels do not take heads of 256 and 512 when there are many queries, so scores would be whole in memory:
16 heads of 512 tokens over 100,000 keys are 3.3 GB. Above `SCORES` keys are taken in blocks, with a running maximum.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from . import arithmetic
from .arithmetic import bring, matmul, weight

SCORES = 256_000_000  # bytes of scores, at most
COPIES = 16  # of a block of scores on the CPU device, generously: NumPy's temporaries, and what the allocators keep


def visible(queries: int, keys: int, window: int | None, first: int = 0, last: int | None = None) -> mx.array | None:
    """[queries, last - first] bool: which keys a causal query sees; None where all of them are seen by all."""
    last = keys if last is None else last
    oldest, newest = keys - queries, keys - 1  # positions of the first and the last query
    if last - 1 <= oldest and (window is None or first > newest - window):
        return None
    query, key = mx.arange(oldest, keys)[:, None], mx.arange(first, last)[None]
    return (key <= query) if window is None else (key <= query) & (key > query - window)


def attend(queries: Any, keys: mx.array, values: mx.array, *, causal: bool, window: int | None) -> Any:
    """[1, H, n, D] over [1, G, S, D] -> [1, H, n, D], of the namespace; the last n of S keys are the queries' own.

    A canvas (not `causal`) sees all it is shown: the reference, too, gives it the last window - 1 tokens and no window
    of its own."""
    queries = bring(queries)
    heads, n, total = queries.shape[1], queries.shape[2], keys.shape[2]
    block = max(1, SCORES // (4 * heads * n) // (COPIES if arithmetic.namespace() is np else 1))
    if arithmetic.namespace() is mx and block >= total:
        mask: Any = visible(n, total, window) if causal else None
        if mask is not None and (window is None or total <= window):
            mask = "causal"
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, mask=mask)
    return _in_blocks(queries, keys, values, block, causal, window)


def _in_blocks(queries: Any, keys: mx.array, values: mx.array, block: int, causal: bool, window: int | None) -> Any:
    xp = arithmetic.namespace()
    (_, heads, n, dim), (_, groups, total, _) = queries.shape, keys.shape
    grouped = queries.reshape(groups, -1, dim)  # head h looks at key head h // (heads / groups)
    top, mass, out = -1e30, 0.0, 0.0
    for first in range(0, total, block):
        last = min(first + block, total)
        scores = matmul(grouped, bring(keys[0, :, first:last]).swapaxes(-1, -2))
        seen = visible(n, total, window, first, last) if causal else None
        if seen is not None:
            scores = xp.where(bring(seen), scores.reshape(heads, n, -1), -1e31).reshape(groups, -1, last - first)
        before, top = top, xp.maximum(top, scores.max(axis=-1, keepdims=True))
        scores -= top
        weights, fade = weight(xp, scores, spent=True), xp.exp(before - top)
        mass = mass * fade + weights.sum(axis=-1, keepdims=True)
        out = out * fade + matmul(weights, bring(values[0, :, first:last]))
    return (out / mass).astype(queries.dtype).reshape(1, heads, n, dim)
