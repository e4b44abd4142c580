"""Attention, scale 1, of new tokens at the end of all keys: causal, causal in a window, or a canvas that sees all.

MLX's fused kernels do not take heads of 256 and 512 when there are many queries, so scores would be whole in memory:
16 heads of 512 tokens over 100,000 keys are 3.3 GB. Above `SCORES` keys are taken in blocks, with a running maximum.
"""

import mlx.core as mx

from .layers import by_power, compiled, exp

SCORES = 256_000_000  # bytes of float32 scores, at most
BLOCK = 64_000_000  # bytes of a block's scores: the allocator holds several arrays as large
FUSED = 8  # queries up to which MLX has fused kernels for heads as wide as these


def visible(queries: int, keys: int, window: int | None, first: int = 0, last: int | None = None) -> mx.array | None:
    """[queries, last - first] bool: which keys a causal query sees; None where all of them are seen by all."""
    last = keys if last is None else last
    oldest, newest = keys - queries, keys - 1  # positions of the first and the last query
    if last - 1 <= oldest and (window is None or first > newest - window):
        return None
    query, key = mx.arange(oldest, keys)[:, None], mx.arange(first, last)[None]
    return (key <= query) if window is None else (key <= query) & (key > query - window)


@compiled
def _weighed(scores: mx.array, top: mx.array) -> tuple[mx.array, mx.array]:
    """Weights in float32, and in the dtype of `scores`."""
    weights = exp(scores.astype(mx.float32) - top)
    return weights, weights.astype(scores.dtype)


def attend(queries: mx.array, keys: mx.array, values: mx.array, *, causal: bool, window: int | None) -> mx.array:
    """[1, H, n, D] over [1, G, S, D] -> [1, H, n, D]; the queries are the last n of the S tokens.

    A canvas (not `causal`) sees all keys: the reference, too, gives it the last window - 1 tokens, and no window within
    the canvas."""
    heads, n, total = queries.shape[1], queries.shape[2], keys.shape[2]
    if 4 * heads * n * total > SCORES:
        return _in_blocks(queries, keys, values, max(1, BLOCK // (4 * heads * n)), causal, window)
    if not causal and n > FUSED:
        # As MLX would, but for a product with the scale, which is 1.
        grouped = queries.reshape(1, keys.shape[1], -1, queries.shape[-1])  # head h looks at key head h // (H / G)
        scores = grouped @ keys.swapaxes(-1, -2)
        if not by_power(scores):
            return (mx.softmax(scores, axis=-1, precise=True) @ values).reshape(queries.shape)
        weights = exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights @ values / weights.sum(axis=-1, keepdims=True)).reshape(queries.shape)
    mask = visible(n, total, window) if causal else None
    if mask is not None and (window is None or total <= window):
        mask = "causal"
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, mask=mask)


def _in_blocks(
    queries: mx.array, keys: mx.array, values: mx.array, block: int, causal: bool, window: int | None
) -> mx.array:
    (_, heads, n, dim), (_, groups, total, _) = queries.shape, keys.shape
    grouped = queries.reshape(groups, -1, dim)  # head h looks at key head h // (heads / groups)
    top, mass, out = mx.array(-1e30), 0.0, 0.0
    for first in range(0, total, block):
        last = min(first + block, total)
        scores = grouped @ keys[0, :, first:last].swapaxes(-1, -2)
        seen = visible(n, total, window, first, last) if causal else None
        if seen is not None:
            scores = mx.where(seen, scores.reshape(heads, n, -1), -mx.inf).reshape(groups, -1, last - first)
        before, top = top, mx.maximum(top, scores.max(axis=-1, keepdims=True).astype(mx.float32))
        weights, narrow = _weighed(scores, top)
        fade = exp(before - top)
        mass = mass * fade + weights.sum(axis=-1, keepdims=True)
        out = out * fade + (narrow @ values[0, :, first:last]).astype(mx.float32)
    return (out / mass).astype(queries.dtype).reshape(1, heads, n, dim)
