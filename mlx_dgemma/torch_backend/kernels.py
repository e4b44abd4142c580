"""Triton kernels: products with weights that stay packed, expert by expert, and attention over the pool of caches.

At 256 tokens a pass both are bound by memory: each weight is read once, at the bits it has, and long texts are attended
to with heads of 256 and 512. `TRITON_INTERPRET=1` runs them on a CPU, which is how they are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formats import Packed
from .tokens import KeyRange

MODES = {"affine": 0, "mxfp4": 1, "nvfp4": 2, "mxfp8": 3}
PLAIN, E4M3 = 4, 5


@triton.jit
def _e2m1(code):
    """4 bits: sign, two of exponent, one of mantissa."""
    exponent, half = (code >> 1) & 3, (code & 1).to(tl.float32) * 0.5
    size = tl.where(exponent == 0, half, (1 + half) * tl.exp2(exponent.to(tl.float32) - 1))
    return tl.where(code >= 8, -size, size)


@triton.jit
def _e4m3(code):
    """8 bits: sign, four of exponent, three of mantissa."""
    exponent, mantissa = (code >> 3) & 15, (code & 7).to(tl.float32)
    small, large = mantissa * 0.001953125, (8 + mantissa) * tl.exp2(exponent.to(tl.float32) - 10)
    size = tl.where(exponent == 0, small, large)
    return tl.where(code >= 128, -size, size)


@triton.jit
def _numbers(codes, MODE: tl.constexpr, BITS: tl.constexpr):
    if MODE == 0:  # a whole number in the mantissa of 2^23: four times as fast as a conversion
        return (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    elif BITS == 4:
        return _e2m1(codes)
    else:
        return _e4m3(codes)


@triton.jit
def _scale(code, MODE: tl.constexpr):
    if MODE == 0:
        return code.to(tl.float32)
    elif MODE == 2:
        return _e4m3(code.to(tl.int32))
    else:
        return tl.exp2(code.to(tl.float32) - 127)


@triton.jit
def _over_groups(per_group, ROWS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr):
    """[ROWS, GROUPS] -> [ROWS, GROUPS * EACH]."""
    return tl.reshape(tl.broadcast_to(per_group[:, :, None], (ROWS, GROUPS, EACH)), (ROWS, GROUPS * EACH))


@triton.jit
def _matrix(
    weight, scales, biases, row, inside, start,
    WIDTH: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[ROWS, DEPTH] of a matrix that is WIDTH wide: rows `row`, as far as they are `inside` [ROWS, 1], from column
    `start` on. A byte of 4-bit weights holds two neighbours, the first in its lower half."""
    PACK: tl.constexpr = 8 // BITS
    at = start // PACK + tl.arange(0, DEPTH // PACK)
    there = inside & (at < WIDTH // PACK)[None, :] if WIDTH % DEPTH else inside
    stored = tl.load(weight + row[:, None] * (WIDTH // PACK) + at[None, :], mask=there, other=0)
    # Branches on constants, and one return: Triton knows no early one.
    if MODE == 4:
        numbers = stored
    else:
        codes = stored.to(tl.int32)
        if PACK == 2:
            codes = tl.interleave(codes & 15, codes >> 4)
        if MODE == 5:  # the scale is the row's, and can wait
            numbers = _e4m3(codes)
        else:
            GROUPS: tl.constexpr = DEPTH // GROUP
            group = start // GROUP + tl.arange(0, GROUPS)
            there = inside & (group < WIDTH // GROUP)[None, :] if WIDTH % DEPTH else inside
            place = row[:, None] * (WIDTH // GROUP) + group[None, :]
            factor = _scale(tl.load(scales + place, mask=there, other=0), MODE)
            numbers = _numbers(codes, MODE, BITS) * _over_groups(factor, ROWS, GROUPS, GROUP)
            if MODE == 0:
                shift = tl.load(biases + place, mask=there, other=0).to(tl.float32)
                numbers += _over_groups(shift, ROWS, GROUPS, GROUP)
    return numbers


@triton.jit
def _tile(pid, ends, E: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """The pid-th tile of up to ROWS rows, when each expert's rows are cut into tiles: its expert, rows, and their end.
    Behind the last tile the expert is none of E."""
    expert = tl.arange(0, EXPERTS)
    end = tl.load(ends + expert, mask=expert < E, other=0)
    start = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < E), other=0)
    tiles = tl.where(expert < E, (end - start + ROWS - 1) // ROWS, 0)
    current = tl.sum((tl.cumsum(tiles, 0) <= pid).to(tl.int32), 0)
    before = tl.sum(tl.where(expert < current, tiles, 0), 0)
    first = tl.sum(tl.where(expert == current, start, 0), 0) + (pid - before) * ROWS
    return current, first + tl.arange(0, ROWS), tl.sum(tl.where(expert == current, end, 0), 0)


@triton.jit
def _product_kernel(
    x, weight, scales, biases, y, ends,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y[rows of an expert] = x @ its weight.T."""
    expert, row, end = _tile(tl.program_id(0), ends, E, EXPERTS, ROWS)
    if expert >= E:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = (row < end)[:, None], (column < N)[:, None]
    out = expert.to(tl.int64) * N + column  # rows of the weight
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, K, DEPTH):
        at = start + tl.arange(0, DEPTH)
        there = real & (at < K)[None, :] if K % DEPTH else real
        given = tl.load(x + row[:, None].to(tl.int64) * K + at[None, :], mask=there, other=0)
        numbers = _matrix(weight, scales, biases, out, inside, start, K, MODE, BITS, GROUP, COLUMNS, DEPTH)
        total = tl.dot(given, tl.trans(numbers.to(given.dtype)), total, input_precision="ieee")
    if MODE == 5:
        total = total * tl.load(scales + out, mask=column < N, other=0)[None, :]
    there = real & (column < N)[None, :]
    tl.store(y + row[:, None].to(tl.int64) * N + column[None, :], total.to(y.dtype.element_ty), mask=there)


def _shape(rows: int) -> dict[str, int]:
    """Choose tiles for so many rows an expert: few tiles a weight, since each unpacks it anew, and few idle rows."""
    tall = min(64, max(16, triton.next_power_of_2(rows + rows // 2)))
    return {"ROWS": tall, "COLUMNS": 64, "num_warps": 4, "num_stages": 3 if tall == 64 else 4}


def grouped_product(x: Tensor, packed: Packed, ends: Tensor) -> Tensor:
    """x [T, K], rows sorted by expert, ends [E] int32 -> [T, N]. Rows behind the last end stay as they are."""
    rows, experts = len(x), len(ends)
    weight, quantization, out = packed.weight, packed.quantization, packed.weight.shape[-2]
    scales = x if packed.scales is None else packed.scales  # any pointer, where none is read
    mode, bits, group = E4M3 if packed.is_fp8 else PLAIN, 8, 64
    if quantization is not None:
        mode, bits, group = MODES[quantization.mode], quantization.bits, quantization.group_size
    if mode != PLAIN:
        weight = weight.view(torch.uint8)
    shape = _shape(rows // experts)
    y, width = x.new_empty((rows, out)), x.shape[1]
    tiles = -(-rows // shape["ROWS"]) + experts  # at most: each expert has one that is not full
    grid = (tiles if experts > 1 else tiles - 1, triton.cdiv(out, shape["COLUMNS"]))
    _product_kernel[grid](
        x.contiguous(), weight, scales, scales if packed.biases is None else packed.biases, y, ends,
        N=out, K=width, E=experts, EXPERTS=triton.next_power_of_2(experts), MODE=mode, BITS=bits, GROUP=group,
        DEPTH=max(group, 64 if width % 128 else 128), **shape,
    )  # fmt: skip
    return y


def quantized_product(x: Tensor, packed: Packed) -> Tensor:
    """x [T, K] -> [T, N]: one expert."""
    return grouped_product(x, packed, torch.full((1,), len(x), dtype=torch.int32, device=x.device))


@triton.jit
def _mean_kernel(
    shares, weight, scales, biases, y, T, V, PART,
    D: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y[part] = shares[:, part] @ weight[part], the parts PART rows of the table each."""
    row, first = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS
    column, part, real = first + tl.arange(0, COLUMNS), tl.program_id(2), (row < T)[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(part * PART, tl.minimum((part + 1) * PART, V), DEPTH):
        at = (start + tl.arange(0, DEPTH)).to(tl.int64)
        inside = at < V
        given = tl.load(shares + row[:, None].to(tl.int64) * V + at[None, :], mask=real & inside[None, :], other=0)
        numbers = _matrix(weight, scales, biases, at, inside[:, None], first, D, MODE, BITS, GROUP, DEPTH, COLUMNS)
        total = tl.dot(given, numbers.to(given.dtype), total, input_precision="ieee")
    place = (part.to(tl.int64) * T + row[:, None]) * D + column[None, :]
    tl.store(y + place, total, mask=real & (column < D)[None, :])


def mean(shares: Tensor, table: Packed) -> Tensor:
    """shares [T, V] @ a quantized table [V, D] -> [T, D]. Parts of the table at once: T and D alone are too few."""
    (count, vocabulary), quantization = shares.shape, table.quantization
    group, columns = quantization.group_size, max(64, quantization.group_size)
    hidden = table.scales.shape[-1] * group
    parts = min(16, triton.cdiv(vocabulary, 64))
    each = triton.cdiv(triton.cdiv(vocabulary, parts), 64) * 64
    y = shares.new_empty((parts, count, hidden), dtype=torch.float32)
    _mean_kernel[(triton.cdiv(count, 64), triton.cdiv(hidden, columns), parts)](
        shares, table.weight.view(torch.uint8), table.scales, table.scales if table.biases is None else table.biases,
        y, count, vocabulary, each, D=hidden, MODE=MODES[quantization.mode], BITS=quantization.bits, GROUP=group,
        ROWS=64, COLUMNS=columns, DEPTH=64, num_warps=4, num_stages=3,
    )  # fmt: skip
    return y.sum(dim=0).to(shares.dtype)


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
    q, keys, values, canvas_keys, canvas_values, slot, lo, hi, canvas, out, top_out, mass_out, queries, room,
    H: tl.constexpr, G: tl.constexpr, DIM: tl.constexpr, CANVAS: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one head over one part of their keys. Part 0 takes a canvas's keys, too."""
    n, h, part = tl.program_id(1) // H, tl.program_id(1) % H, tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real, g, d, s = row < queries, h // (H // G), tl.arange(0, DIM), tl.arange(0, KEYS)
    place = ((n * queries + row).to(tl.int64) * H + h)[:, None] * DIM + d[None, :]
    query = tl.load(q + place, mask=real[:, None], other=0)
    low = tl.load(lo + n * queries + row, mask=real, other=2147483647)
    high = tl.load(hi + n * queries + row, mask=real, other=0)
    first, last = tl.min(low, 0), tl.max(high, 0)
    each = (last - first + PARTS - 1) // PARTS
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
        if part == 0:
            count = tl.load(canvas + n)
            for start in range(0, count, KEYS):
                at = start + s
                offset = ((n * queries + at).to(tl.int64) * G + g) * DIM
                visible = (at < count)[None, :] & real[:, None]
                top, mass, total = _add_keys(
                    query, canvas_keys, canvas_values, offset, at < count, visible, top, mass, total, DIM
                )
    mean = total / tl.maximum(mass, 1e-30)[:, None]
    if PARTS == 1:
        tl.store(out + place, mean.to(out.dtype.element_ty), mask=real[:, None])
    else:
        of_part = part.to(tl.int64) * tl.num_programs(1) * queries + (n * queries + row) * H + h
        tl.store(out + of_part[:, None] * DIM + d[None, :], mean, mask=real[:, None])
        tl.store(top_out + of_part, top, mask=real)
        tl.store(mass_out + of_part, mass, mask=real)


LONG = 4096  # tokens of context that one part of a split attention has, at least


def attend(queries: Tensor, cache: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], keys: KeyRange) -> Tensor:
    """`attention.Attend` by a kernel. A long text is split into parts, so that few queries keep the whole GPU busy."""
    count, length, heads, dim = queries.shape
    parts = max(1, min(8, keys.width // LONG))
    # A block of queries, keys and values fits the 99 KB of shared memory that smaller GPUs have.
    rows, block, stages = 64 if dim <= 256 and count * length > 256 else 32, 32, 1 if dim > 256 else 2
    out = torch.empty_like(queries) if parts == 1 else queries.new_empty((parts, *queries.shape), dtype=torch.float32)
    top, mass = (queries.new_empty((parts, count, length, heads), dtype=torch.float32) for _ in range(2))
    grid = (triton.cdiv(length, rows), count * heads, parts)
    _attention_kernel[grid](
        queries.contiguous(), *cache, *(x.contiguous() for x in new), keys.slot, keys.lo, keys.hi,
        keys.slot if keys.canvas is None else keys.canvas, out, top, mass, length, cache[0].shape[1] - 1,
        H=heads, G=cache[0].shape[2], DIM=dim, CANVAS=keys.canvas is not None, PARTS=parts, ROWS=rows, KEYS=block,
        num_warps=8, num_stages=stages,
    )  # fmt: skip
    if parts == 1:
        return out
    shares = mass * (top - top.amax(dim=0)).exp()
    shares = shares / shares.sum(dim=0).clamp(min=1e-30)
    return (out * shares[..., None]).sum(dim=0).to(queries.dtype)
