"""Routing in one launch: a Triton kernel of one program, as the pairs of all tokens are counted together."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _route_kernel(
    logits, per_expert, weights, experts, tokens, places, ends, T, first, here,
    E: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens at a time: first their K experts and how many tokens each expert has, then each pair's place. Lane l
    is expert (first + l) % E, so that this rank's come first."""
    lane, column = tl.arange(0, LANES), tl.arange(0, COLUMNS)
    expert, begin = (first + lane) % E, tl.zeros((LANES,), tl.int32)
    scale = tl.load(per_expert + expert).to(tl.float32)
    for start in range(0, T, ROWS):
        row = start + tl.arange(0, ROWS)
        real = row < T
        scores = tl.load(logits + row[:, None] * E + expert[None, :], mask=real[:, None], other=0).to(tl.float32)
        # What is no number is low: K different experts are chosen whatever comes.
        scores = tl.where((scores == scores) & (lane < E)[None, :], tl.maximum(scores, -1e38), -2e38)
        top, mass, free = tl.max(scores, 1), tl.zeros((ROWS,), tl.float32), lane[None, :] < E + 0 * row[:, None]
        for k in tl.static_range(K):
            best = tl.argmax(tl.where(free, scores, float("-inf")), 1)
            chosen = lane[None, :] == best[:, None]
            free &= ~chosen
            share = tl.exp(tl.sum(tl.where(chosen, scores, 0), 1) - top)
            mass += share
            of_expert = tl.sum(tl.where(chosen, scale[None, :], 0), 1)
            tl.store(experts + row * K + k, best, mask=real)
            tl.store(weights + row * K + k, tl.where(best < here, share * of_expert, 0), mask=real)
        begin += tl.sum((~free & (lane < E)[None, :] & real[:, None]).to(tl.int32), 0)
        tl.debug_barrier()
        pair = row[:, None] * K + column[None, :]
        inside = real[:, None] & (column < K)[None, :]
        tl.store(weights + pair, tl.load(weights + pair, mask=inside, other=0) / mass[:, None], mask=inside)
    last = tl.cumsum(begin, 0)
    tl.store(ends + lane, last, mask=lane < here)
    begin = last - begin
    for start in range(0, T, ROWS):
        row = start + tl.arange(0, ROWS)
        real = row < T
        taken = lane[None, :] < 0 * row[:, None]
        for k in tl.static_range(K):
            best = tl.load(experts + row * K + k, mask=real, other=-1)
            taken |= lane[None, :] == best[:, None]
        count = taken.to(tl.int32)
        place = begin[None, :] + tl.cumsum(count, 0) - count
        for k in tl.static_range(K):
            best = tl.load(experts + row * K + k, mask=real, other=-1)
            at = tl.sum(tl.where(lane[None, :] == best[:, None], place, 0), 1)
            tl.store(places + row * K + k, at, mask=real)
            tl.store(tokens + at, row, mask=real)
        begin += tl.sum(count, 0)


def route(logits: Tensor, per_expert: Tensor, top_k: int, first: int, here: int) -> tuple[Tensor, ...]:
    """`routing.route` by one kernel: the fields of its Routes."""
    count, experts = logits.shape
    number = {"dtype": torch.int32, "device": logits.device}
    weights = torch.empty((count, top_k), dtype=torch.float32, device=logits.device)
    chosen, places = (torch.empty((count, top_k), **number) for _ in range(2))
    tokens, ends = torch.empty(count * top_k, **number), torch.empty(here, **number)
    _route_kernel[(1,)](
        logits, per_expert, weights, chosen, tokens, places, ends, count, first, here, E=experts,
        LANES=triton.next_power_of_2(experts), K=top_k, COLUMNS=triton.next_power_of_2(top_k), ROWS=64, num_warps=16,
    )  # fmt: skip
    return weights, tokens, places, ends
