"""A Triton kernel that sums the experts' outputs of each token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather_kernel(
    y, places, weights, out, DIM: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """COLUMNS columns of one token, all K rows at once: the loads of one do not wait for those of another."""
    t, k = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    weight = tl.load(weights + t * K + k, mask=k < K, other=0)
    place = tl.load(places + t * K + k, mask=k < K, other=0).to(tl.int64)
    taken = (weight != 0)[:, None] & (column < DIM)[None, :]
    row = tl.load(y + place[:, None] * DIM + column[None, :], mask=taken, other=0).to(tl.float32)
    total = tl.sum(row * weight[:, None], 0)
    tl.store(out + t * DIM + column, total.to(out.dtype.element_ty), mask=column < DIM)


def gather(y: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """`fused.gather` by one kernel."""
    (count, top_k), dim = places.shape, y.shape[1]
    out = y.new_empty((count, dim))
    _gather_kernel[(count, triton.cdiv(dim, 1024))](
        y, places, weights, out, DIM=dim, K=top_k, LANES=triton.next_power_of_2(top_k), COLUMNS=1024, num_warps=4
    )
    return out
