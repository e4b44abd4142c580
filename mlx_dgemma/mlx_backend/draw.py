"""The next token of a text that is written left to right: one head product, and no logits leave the device."""

import mlx.core as mx

from ..seam.model import Draw
from .layers import Embedding
from .vocabulary import head, raw_logits


def next_token(
    table: Embedding, hidden: mx.array, cap: float, draw: Draw, uniforms: mx.array, allowed: mx.array | None = None
) -> mx.array:
    """Draw one token of each text, from hidden states [B, D] -> [B] int32. Lazy.

    It is the first token whose cumulative probability exceeds `uniforms` [B, 1], in vocabulary order and among those
    that `draw` leaves and `allowed` [B, V] has; with `draw.temp` 0 it is the likeliest of these."""
    logits = head(table, hidden, cap) if draw.temp else raw_logits(table, hidden)  # the softcap changes no order
    if allowed is not None:
        logits = mx.where(allowed, logits, -mx.inf)
    if not draw.temp:
        return logits.argmax(axis=-1).astype(mx.int32)
    probabilities = mx.softmax(logits / draw.temp, axis=-1)
    probabilities = mx.where(probabilities >= _least(probabilities, draw), probabilities, 0)
    sums = mx.cumsum(probabilities, axis=-1)
    token = (sums <= uniforms * sums[:, -1:]).sum(axis=-1)
    # By rounding, the share may be the whole: then the last that may be drawn is meant.
    last = mx.where(probabilities > 0, mx.arange(probabilities.shape[-1]), 0).max(axis=-1)
    return mx.minimum(token, last).astype(mx.int32)


def _least(probabilities: mx.array, draw: Draw) -> mx.array:
    """[B, 1]: how likely a token has to be. Tokens that are as likely as the last one taken are taken, too."""
    least = draw.min_p * probabilities.max(axis=-1, keepdims=True)
    if not draw.top_k and draw.top_p == 1:
        return least
    ranked = mx.sort(probabilities, axis=-1)[:, ::-1]
    if draw.top_k:
        place = min(draw.top_k, ranked.shape[-1]) - 1
        least = mx.maximum(least, ranked[:, place : place + 1])
    before = mx.cumsum(ranked, axis=-1) - ranked
    within = mx.where(before < draw.top_p, ranked, 1).min(axis=-1, keepdims=True)
    return mx.maximum(least, within)
