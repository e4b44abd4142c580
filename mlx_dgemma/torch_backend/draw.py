"""The next token of a text that is written left to right: one head product, and no logits leave the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..seam.model import Draw, TokenSet
from .sweep import BARRED


def restrict(logits: Tensor, token_sets: Sequence[TokenSet | None]) -> Tensor:
    """Bar each row of logits [B, V] outside its set, where it has a set."""
    restricted = logits.clone()
    for row, token_set in enumerate(token_sets):
        if token_set is not None:
            ids = torch.from_numpy(token_set.ids).to(logits.device)
            restricted[row] = BARRED
            restricted[row, ids] = logits[row, ids]
    return restricted


def next_token(logits: Tensor, draw: Draw, uniforms: Tensor) -> Tensor:
    """logits [B, V], uniforms [B, 1] -> [B]: the likeliest, or the first whose cumulative probability, in vocabulary
    order and among those that may be drawn, exceeds the uniform."""
    if not draw.temp:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / draw.temp, dim=-1)
    probabilities = torch.where(probabilities >= _least(probabilities, draw), probabilities, 0)
    sums = probabilities.cumsum(dim=-1)
    drawn = (sums <= uniforms * sums[:, -1:]).sum(dim=-1)
    # By rounding, the share may be the whole: then the last that may be drawn is meant.
    places = torch.arange(logits.shape[-1], device=logits.device)
    return torch.minimum(drawn, torch.where(probabilities > 0, places, 0).amax(dim=-1))


def _least(probabilities: Tensor, draw: Draw) -> Tensor:
    """[B, 1]: the least probability of a token that may be drawn. All that are as likely as the last one may be."""
    least = draw.min_p * probabilities.amax(dim=-1, keepdim=True)
    if not draw.top_k and draw.top_p == 1:
        return least
    ranked = probabilities.sort(dim=-1, descending=True).values
    if draw.top_k:
        place = min(draw.top_k, ranked.shape[-1]) - 1
        least = torch.maximum(least, ranked[:, place : place + 1])
    before = ranked.cumsum(dim=-1) - ranked
    within = torch.where(before < draw.top_p, ranked, 1.0).amin(dim=-1, keepdim=True)
    return torch.maximum(least, within)
