"""The next token of a text that is written left to right: one head product, and no logits leave the device."""

from __future__ import annotations

import torch

from ..writing.sampling import Sampling


def next_token(logits: torch.Tensor, sampling: Sampling, uniforms: torch.Tensor) -> torch.Tensor:
    """logits [B, V], uniforms [B, 1] -> [B]: the likeliest, or the first whose cumulative probability, in vocabulary
    order and among those that may be drawn, exceeds the uniform."""
    if not sampling.temp:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / sampling.temp, dim=-1)
    probabilities = torch.where(probabilities >= _least(probabilities, sampling), probabilities, 0)
    sums = probabilities.cumsum(dim=-1)
    found = (sums <= uniforms * sums[:, -1:]).sum(dim=-1)
    # By rounding, the share may be the whole: then the last that may be drawn is meant.
    places = torch.arange(logits.shape[-1], device=logits.device)
    return torch.minimum(found, torch.where(probabilities > 0, places, 0).amax(dim=-1))


def _least(probabilities: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[B, 1]: how likely a token has to be. Tokens as likely as the last one taken are taken, too."""
    least = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
    if not sampling.top_k and sampling.top_p == 1:
        return least
    ranked = probabilities.sort(dim=-1, descending=True).values
    if sampling.top_k:
        place = min(sampling.top_k, ranked.shape[-1]) - 1
        least = torch.maximum(least, ranked[:, place : place + 1])
    before = ranked.cumsum(dim=-1) - ranked
    within = torch.where(before < sampling.top_p, ranked, 1.0).amin(dim=-1, keepdim=True)
    return torch.maximum(least, within)
