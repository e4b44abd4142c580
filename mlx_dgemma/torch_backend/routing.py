"""Routing: the experts of each token, by its router's logits, and all pairs of token and expert sorted by expert."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import device

MAX_TOKENS = 4096  # tokens for the kernels: each program reads the counts of all blocks, which has no gain beyond


class Routes(NamedTuple):
    """The R = T * K pairs of a token and one of its K experts. Those of another rank's experts come last."""

    weights: Tensor  # [T, K] float32; 0 where the expert is another rank's
    tokens: Tensor  # [R] int32, the token of each sorted pair
    places: Tensor  # [T, K] int32, where each token's pairs are among the sorted ones
    ends: Tensor  # [E] int32, where the pairs of each of this rank's E experts end


def route(logits: Tensor, per_expert: Tensor, top_k: int, first: int, here: int) -> Routes:
    """Route by logits [T, E] to `top_k` experts, of which `here` from `first` on are this rank's. The softmax over the
    chosen is the reference's softmax over all, divided by the sum of the chosen; an expert's scale comes on top."""
    if device.by_kernel(logits) and len(logits) <= MAX_TOKENS:
        from .routing_kernel import route as by_kernel

        return Routes(*by_kernel(logits, per_expert, top_k, first, here))
    chosen, experts = logits.topk(top_k, dim=-1)
    weights = chosen.float().softmax(dim=-1) * per_expert.float()[experts]
    local = (experts - first) % logits.shape[1]
    ascending, order = local.flatten().sort(stable=True)
    ends = torch.searchsorted(ascending, torch.arange(here, device=logits.device), right=True, out_int32=True)
    ranks = torch.arange(len(order), dtype=torch.int32, device=logits.device)
    places = torch.empty_like(ranks).scatter_(0, order, ranks).view(experts.shape)
    return Routes(torch.where(local < here, weights, 0), (order // top_k).int(), places, ends)
