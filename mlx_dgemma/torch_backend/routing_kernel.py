"""Routing in two launches: one kernel chooses each token's experts, one sorts the pairs of all tokens by expert. Both
take a block of ROWS tokens a program; the first counts how many of its tokens each expert has, for the second."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _choose_kernel(
    logits, per_expert, weights, experts, counts, T, first, here,
    E: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The K experts of each of ROWS tokens, their weights, and how many tokens each expert has. Lane l is expert
    (first + l) % E, so that this rank's come first."""
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
    taken = (scores == float("-inf")) & real[:, None]
    tl.store(counts + tl.program_id(0) * LANES + lane, tl.sum(taken.to(tl.int32), 0))


@triton.jit
def _place_kernel(
    experts, counts, tokens, places, ends, T, blocks, here,
    LANES: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The place of each pair of ROWS tokens: behind those of lower experts, and of the same in blocks before."""
    lane, block = tl.arange(0, LANES), tl.arange(0, BLOCKS)
    total, before = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        at = start + block
        count = tl.load(counts + at[:, None] * LANES + lane[None, :], mask=(at < blocks)[:, None], other=0)
        total += tl.sum(count, 0)
        before += tl.sum(tl.where((at < tl.program_id(0))[:, None], count, 0), 0)
    last = tl.cumsum(total, 0)
    if tl.program_id(0) == 0:
        tl.store(ends + lane, last, mask=lane < here)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real, taken = row < T, lane[None, :] < 0 * row[:, None]
    for k in tl.static_range(K):
        taken |= lane[None, :] == tl.load(experts + row * K + k, mask=real, other=-1)[:, None]
    count = taken.to(tl.int32)
    place = (last - total + before)[None, :] + tl.cumsum(count, 0) - count
    for k in tl.static_range(K):
        best = tl.load(experts + row * K + k, mask=real, other=-1)
        at = tl.sum(tl.where(lane[None, :] == best[:, None], place, 0), 1)
        tl.store(places + row * K + k, at, mask=real)
        tl.store(tokens + at, row, mask=real)


def route(logits: Tensor, per_expert: Tensor, top_k: int, first: int, here: int) -> tuple[Tensor, ...]:
    """`routing.route` by kernels: the fields of its Routes."""
    count, experts = logits.shape
    number = {"dtype": torch.int32, "device": logits.device}
    weights = torch.empty((count, top_k), dtype=torch.float32, device=logits.device)
    chosen, places = (torch.empty((count, top_k), **number) for _ in range(2))
    tokens, ends = torch.empty(count * top_k, **number), torch.empty(here, **number)
    rows, lanes = 8 if count <= 512 else 32, triton.next_power_of_2(experts)
    blocks, sizes = triton.cdiv(count, rows), {"LANES": lanes, "K": top_k, "ROWS": rows, "num_warps": 4}
    counts = torch.empty((blocks, lanes), **number)
    _choose_kernel[(blocks,)](
        logits, per_expert, weights, chosen, counts, count, first, here, E=experts,
        COLUMNS=triton.next_power_of_2(top_k), **sizes,
    )  # fmt: skip
    _place_kernel[(blocks,)](chosen, counts, tokens, places, ends, count, blocks, here, BLOCKS=32, **sizes)
    return weights, tokens, places, ends
