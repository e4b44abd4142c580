"""The next token of a text that is written left to right: one head product, and no logits leave the device."""

from __future__ import annotations

import mlx.core as mx

from ..writing.sampling import Sampling
from .layers import Embedding
from .vocabulary import head


def next_token(table: Embedding, hidden: mx.array, cap: float, sampling: Sampling, uniforms: mx.array) -> mx.array:
    """hidden [B, D], uniforms [B, 1] -> [B] int32: the likeliest, or the first whose cumulative probability, in
    vocabulary order and among those that may be drawn, exceeds the uniform. Lazy."""
    if not sampling.temp:
        return table.product(hidden).argmax(axis=-1).astype(mx.int32)  # the softcap changes no order
    probabilities = mx.softmax(head(table, hidden, cap) / sampling.temp, axis=-1)
    probabilities = mx.where(probabilities >= _least(probabilities, sampling), probabilities, 0)
    sums = mx.cumsum(probabilities, axis=-1)
    found = (sums <= uniforms * sums[:, -1:]).sum(axis=-1)
    # By rounding, the share may be the whole: then the last that may be drawn is meant.
    last = mx.where(probabilities > 0, mx.arange(probabilities.shape[-1]), 0).max(axis=-1)
    return mx.minimum(found, last).astype(mx.int32)


def _least(probabilities: mx.array, sampling: Sampling) -> mx.array:
    """[B, 1]: how likely a token has to be. Tokens as likely as the last one taken are taken, too."""
    least = sampling.min_p * probabilities.max(axis=-1, keepdims=True)
    if not sampling.top_k and sampling.top_p == 1:
        return least
    ranked = mx.sort(probabilities, axis=-1)[:, ::-1]
    if sampling.top_k:
        place = min(sampling.top_k, ranked.shape[-1]) - 1
        least = mx.maximum(least, ranked[:, place : place + 1])
    before = mx.cumsum(ranked, axis=-1) - ranked
    within = mx.where(before < sampling.top_p, ranked, 1).min(axis=-1, keepdims=True)
    return mx.maximum(least, within)
