"""Routing in two launches: one kernel chooses each token's experts, one sorts the pairs of all tokens by expert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _choose_kernel(
    logits, per_expert, weights, experts, T, first, here,
    E: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The K experts of each of ROWS tokens, and their weights. Lane l is expert (first + l) % E, so that this rank's
    come first."""
    lane, column = tl.arange(0, LANES), tl.arange(0, COLUMNS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real, expert = row < T, (first + lane) % E
    scores = tl.load(logits + row[:, None] * E + expert[None, :], mask=real[:, None], other=0).to(tl.float32)
    # What is no number is low: K different experts are chosen whatever comes.
    scores = tl.where((scores == scores) & (lane < E)[None, :], tl.maximum(scores, -1e38), -2e38)
    top, mass = tl.max(scores, 1), tl.zeros((ROWS,), tl.float32)
    chosen, shares = tl.zeros((ROWS, COLUMNS), tl.int32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.static_range(K):
        score, best = tl.max(scores, 1, return_indices=True)
        scores = tl.where(lane[None, :] == best[:, None], float("-inf"), scores)
        share, here_k = tl.exp(score - top), column[None, :] == k
        mass += share
        share *= tl.load(per_expert + (first + best) % E).to(tl.float32)
        chosen = tl.where(here_k, best[:, None], chosen)
        shares = tl.where(here_k, tl.where(best < here, share, 0)[:, None], shares)
    pair, inside = row[:, None] * K + column[None, :], real[:, None] & (column < K)[None, :]
    tl.store(experts + pair, chosen, mask=inside)
    tl.store(weights + pair, shares / mass[:, None], mask=inside)


@triton.jit
def _taken(experts, row, real, lane, K: tl.constexpr):
    """[ROWS, LANES]: 1 where a row's token goes to a lane's expert."""
    taken = lane[None, :] < 0 * row[:, None]
    for k in tl.static_range(K):
        taken |= lane[None, :] == tl.load(experts + row * K + k, mask=real, other=-1)[:, None]
    return taken.to(tl.int32)


@triton.jit
def _place_kernel(experts, tokens, places, ends, T, here, LANES: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr):
    """One program: how many tokens each expert has, then the place of each pair, ROWS tokens at a time."""
    lane, total = tl.arange(0, LANES), tl.zeros((LANES,), tl.int32)
    for start in range(0, T, ROWS):
        row = start + tl.arange(0, ROWS)
        total += tl.sum(_taken(experts, row, row < T, lane, K), 0)
    last = tl.cumsum(total, 0)
    tl.store(ends + lane, last, mask=lane < here)
    begin = last - total
    for start in range(0, T, ROWS):
        row = start + tl.arange(0, ROWS)
        real = row < T
        count = _taken(experts, row, real, lane, K)
        place = begin[None, :] + tl.cumsum(count, 0) - count
        for k in tl.static_range(K):
            best = tl.load(experts + row * K + k, mask=real, other=-1)
            at = tl.sum(tl.where(lane[None, :] == best[:, None], place, 0), 1)
            tl.store(places + row * K + k, at, mask=real)
            tl.store(tokens + at, row, mask=real)
        begin += tl.sum(count, 0)


def route(logits: Tensor, per_expert: Tensor, top_k: int, first: int, here: int) -> tuple[Tensor, ...]:
    """`routing.route` by kernels: the fields of its Routes."""
    count, experts = logits.shape
    number = {"dtype": torch.int32, "device": logits.device}
    weights = torch.empty((count, top_k), dtype=torch.float32, device=logits.device)
    chosen, places = (torch.empty((count, top_k), **number) for _ in range(2))
    tokens, ends = torch.empty(count * top_k, **number), torch.empty(here, **number)
    sizes = {"LANES": triton.next_power_of_2(experts), "K": top_k}
    _choose_kernel[(triton.cdiv(count, 8),)](
        logits, per_expert, weights, chosen, count, first, here, E=experts,
        COLUMNS=triton.next_power_of_2(top_k), ROWS=8, num_warps=4, **sizes,
    )  # fmt: skip
    _place_kernel[(1,)](chosen, tokens, places, ends, count, here, ROWS=64, num_warps=16, **sizes)
    return weights, tokens, places, ends
