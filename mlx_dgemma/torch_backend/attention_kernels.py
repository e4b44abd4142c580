"""Triton kernels of attention: heads out of a product, normed and rotated; and attention over the pool of caches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import device
from .tokens import KeyRange


@triton.jit
def _heads_kernel(
    qkv, q_weight, k_weight, rotation, out, T, eps,
    H: tl.constexpr, G: tl.constexpr, DIM: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """One head of one token: out [T, H + 2 G, DIM] from qkv [T, H + G (+ G if VALUES), DIM]."""
    t, h, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, DIM // 2)
    source = h if VALUES else tl.where(h < H + G, h, h - G)  # without values of their own, they are the raw keys
    place = qkv + (t * (H + G * (2 if VALUES else 1)) + source) * DIM + d
    low, high = tl.load(place).to(tl.float32), tl.load(place + DIM // 2).to(tl.float32)
    rate = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / DIM + eps)
    low, high = low * rate, high * rate
    if h < H + G:
        weight = (q_weight if h < H else k_weight) + d
        low = (low * tl.load(weight).to(tl.float32)).to(out.dtype.element_ty).to(tl.float32)
        high = (high * tl.load(weight + DIM // 2).to(tl.float32)).to(out.dtype.element_ty).to(tl.float32)
        cos = tl.load(rotation + t * (DIM // 2) + d)
        sin = tl.load(rotation + (T + t) * (DIM // 2) + d)
        low, high = low * cos - high * sin, high * cos + low * sin
    place = out + (t * (H + 2 * G) + h) * DIM + d
    tl.store(place, low.to(out.dtype.element_ty))
    tl.store(place + DIM // 2, high.to(out.dtype.element_ty))


def heads(
    qkv: Tensor, sizes: tuple[int, ...], q_weight: Tensor, k_weight: Tensor, rotation: Tensor, eps: float
) -> list[Tensor]:
    """`attention.heads` by one kernel."""
    dim, count = len(q_weight), len(qkv)
    h, g = sizes[0] // dim, sizes[1] // dim
    out = qkv.new_empty((count, h + 2 * g, dim))
    _heads_kernel[(count, h + 2 * g)](
        qkv, q_weight, k_weight, rotation, out, count, eps, H=h, G=g, DIM=dim, VALUES=len(sizes) == 3, num_warps=1
    )
    return list(out.split((h, g, g), dim=1))


@triton.jit
def _add_keys(queries, keys, values, offset, real, visible, top, mass, out, DIM: tl.constexpr):
    """One block of keys into the running softmax: offset [S] of their rows, real [S], visible [Q, S]."""
    d = tl.arange(0, DIM)
    k = tl.load(keys + offset[:, None] + d[None, :], mask=real[:, None], other=0)
    scores = tl.dot(queries, tl.trans(k), input_precision="ieee")
    scores = tl.where(visible, scores, -1e31)
    now = tl.maximum(top, tl.max(scores, 1))
    weights, fade = tl.exp(scores - now[:, None]), tl.exp(top - now)
    v = tl.load(values + offset[:, None] + d[None, :], mask=real[:, None], other=0)
    out = tl.dot(weights.to(v.dtype), v, out * fade[:, None], input_precision="ieee")
    return now, mass * fade + tl.sum(weights, 1), out


@triton.jit
def _attention_kernel(
    q, keys, values, canvas_keys, canvas_values, slot, lo, hi, canvas, out, top_out, mass_out,
    queries, room, q_stride, new_stride,
    G: tl.constexpr, R: tl.constexpr, DIM: tl.constexpr, CANVAS: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """ROWS rows, each a query of one of the R heads that share a key head, over one part of their keys, KEYS at a time.
    The last part of several is a canvas's keys, where there are any. Strides are a token's."""
    n, g, part = tl.program_id(1) // G, tl.program_id(1) % G, tl.program_id(2)
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, h, d, s = index // R, g * R + index % R, tl.arange(0, DIM), tl.arange(0, KEYS)
    real = row < queries
    place = (n * queries + row).to(tl.int64)
    query = tl.load(q + (place * q_stride + h * DIM)[:, None] + d[None, :], mask=real[:, None], other=0)
    low = tl.load(lo + n * queries + row, mask=real, other=2147483647)
    high = tl.load(hi + n * queries + row, mask=real, other=0)
    first, last = tl.min(low, 0), tl.max(high, 0)
    CONTEXTS: tl.constexpr = PARTS - 1 if CANVAS and PARTS > 1 else PARTS
    each = (last - first + CONTEXTS - 1) // CONTEXTS
    begin = first + part * each
    stop = tl.minimum(begin + each, last)
    top = tl.full((ROWS,), -1e30, dtype=tl.float32)
    mass = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, DIM), dtype=tl.float32)
    base = tl.load(slot + n).to(tl.int64) * (room + 1)
    for start in range(begin, stop, KEYS):
        at = start + s
        visible = (at[None, :] >= low[:, None]) & (at[None, :] < high[:, None]) & (at < stop)[None, :]
        offset = ((base + at % room) * G + g) * DIM
        top, mass, total = _add_keys(query, keys, values, offset, at < stop, visible, top, mass, total, DIM)
    if CANVAS:  # noqa: SIM102, only this is known when it is compiled
        if part == PARTS - 1:
            count = tl.load(canvas + n)
            for start in range(0, count, KEYS):
                at = start + s
                offset = (n * queries + at).to(tl.int64) * new_stride + g * DIM
                visible = (at < count)[None, :] & real[:, None]
                top, mass, total = _add_keys(
                    query, canvas_keys, canvas_values, offset, at < count, visible, top, mass, total, DIM
                )
    mean = total / tl.maximum(mass, 1e-30)[:, None]
    place = place * (G * R) + h
    if PARTS > 1:
        place += part.to(tl.int64) * tl.num_programs(1) * queries * R
        tl.store(top_out + place, top, mask=real)
        tl.store(mass_out + place, mass, mask=real)
    tl.store(out + place[:, None] * DIM + d[None, :], mean.to(out.dtype.element_ty), mask=real[:, None])


def shape(dim: int, rows: int, *, roomy: bool) -> dict[str, int]:
    """Choose a tile for `rows` rows of `dim` numbers in all. Its rows, keys and values fit the 99 KB of shared memory
    that small GPUs have; `roomy`: the 227 KB of Hopper, where these were fastest. Its sums fit the registers."""
    if dim <= 256:
        if roomy and rows >= 128 * 2 * device.multiprocessors():
            return {"ROWS": 128, "KEYS": 32, "num_warps": 8, "num_stages": 3}
        return {"ROWS": 64, "KEYS": 32, "num_warps": 4, "num_stages": 2}
    if roomy:
        return {"ROWS": 64, "KEYS": 32, "num_warps": 8, "num_stages": 2}
    return {"ROWS": 32, "KEYS": 32, "num_warps": 8, "num_stages": 1}


@triton.jit
def _combine_kernel(means, top, mass, out, rows, DIM: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr):
    """One row of out [rows, DIM] from means [PARTS, rows, DIM], top and mass [PARTS, rows], all parts at once."""
    row, part, d = tl.program_id(0).to(tl.int64), tl.arange(0, LANES), tl.arange(0, DIM)
    place, real = part * rows + row, part < PARTS
    mean = tl.load(means + place[:, None] * DIM + d[None, :], mask=real[:, None], other=0)
    tops = tl.load(top + place, mask=real, other=float("-inf"))
    shares = tl.load(mass + place, mask=real, other=0) * tl.exp(tops - tl.max(tops, 0))
    shares /= tl.maximum(tl.sum(shares, 0), 1e-30)
    tl.store(out + row * DIM + d, tl.sum(mean * shares[:, None], 0).to(out.dtype.element_ty))


def combined(means: Tensor, top: Tensor, mass: Tensor, dtype: torch.dtype) -> Tensor:
    """Means [parts, ..., D] over parts of the keys -> [..., D] over all of them, by each part's mass and top [parts,
    ...]. All three are float32 and contiguous."""
    parts, dim, rows = len(means), means.shape[-1], top[0].numel()
    out = means.new_empty(means.shape[1:], dtype=dtype)
    _combine_kernel[(rows,)](
        means, top, mass, out, rows, DIM=dim, PARTS=parts, LANES=triton.next_power_of_2(parts),
        num_warps=max(1, dim // 256),
    )  # fmt: skip
    return out


def attend(queries: Tensor, cache: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], keys: KeyRange) -> Tensor:
    """`attention.Attend` by a kernel. Keys are split into parts where tiles are fewer than multiprocessors."""
    count, length, heads, dim = queries.shape
    roomy = device.shared_memory() >= 200_000 and queries.element_size() == 2
    groups, tile = cache[0].shape[2], shape(dim, count * length * heads, roomy=roomy)
    grid = triton.cdiv(length * heads // groups, tile["ROWS"]), count * groups
    wanted = triton.cdiv(device.multiprocessors(), grid[0] * grid[1])
    parts = 1 if wanted == 1 else min(8, wanted + (keys.canvas is not None))
    size = queries.shape if parts == 1 else (parts, *queries.shape)
    out = queries.new_empty(size, dtype=queries.dtype if parts == 1 else torch.float32)
    top, mass = (queries.new_empty(size[:-1], dtype=torch.float32) for _ in range(2))
    _attention_kernel[(*grid, parts)](
        queries, *cache, *new, keys.slot, keys.lo, keys.hi, keys.slot if keys.canvas is None else keys.canvas,
        out, top, mass, length, cache[0].shape[1] - 1, queries.stride(1), new[0].stride(1),
        G=groups, R=heads // groups, DIM=dim, CANVAS=keys.canvas is not None, PARTS=parts, **tile,
    )  # fmt: skip
    return out if parts == 1 else combined(out, top, mass, queries.dtype)
