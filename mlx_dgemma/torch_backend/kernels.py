"""Triton kernels: products with weights that stay packed, also expert by expert, a packed table's mean, unpacking.

At 256 tokens a pass these are bound by memory, if a weight takes few instructions. So `formats.tiled` lays codes out
such that a 32-bit operation makes two neighbours at once, as bfloat16, where a matrix unit wants them. A tile of a
product is COLUMNS of the weight's rows by ROWS rows of x; it goes through both, BLOCK numbers at a time.
`TRITON_INTERPRET=1` runs kernels on a CPU, which is how they are tested without a GPU.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import device
from .formats import BLOCK, Packed, Rounded

MODES = {"affine": 0, "mxfp4": 1, "nvfp4": 2, "mxfp8": 3}
PLAIN = 4
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _masked(words, mask, bits):
    """words & mask | bits, in one instruction: LLVM would make two halves of it, to be put together again."""
    if INTERPRETED:
        masked = (words & mask) | bits
    else:
        masked = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [words, mask, bits], dtype=tl.int32, is_pure=True, pack=1
        )
    return masked


@triton.jit
def _halves(pairs, KIND: tl.constexpr):
    """[N, W] words of two bfloat16 -> [N, 2 W] of KIND, bfloat16 or float32."""
    if tl.float32 == KIND:
        low, high = (pairs << 16).to(KIND, bitcast=True), (pairs & -0x10000).to(KIND, bitcast=True)
    else:
        low = (pairs & 0xFFFF).to(tl.int16).to(KIND, bitcast=True)
        high = ((pairs >> 16) & 0xFFFF).to(tl.int16).to(KIND, bitcast=True)
    return tl.reshape(tl.join(low, high), (pairs.shape[0], 2 * pairs.shape[1]))


@triton.jit
def _codes(words, J: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr):
    """The J-th piece [N, 2 W] of tiled words [N, W] as numbers, scales left out: bfloat16 holds each of them."""
    if MODE == 0:  # four bits of mantissa below the bits of 128 are a whole number above it
        low = _halves(_masked(words >> (BITS * J), 0x000F000F, 0x43004300), KIND)
        if BITS == 4:
            numbers = low - 128.0
        else:
            high = _halves(_masked(words >> (8 * J + 4), 0x000F000F, 0x43004300), KIND)
            numbers = (high * 16.0 - 2176.0) + low
    elif BITS == 4:  # E2M1's exponent and mantissa at the place of bfloat16's are the number times 2^-126
        size = words << (6 - 4 * J) if J < 2 else words >> (4 * J - 6)
        pairs = _masked(words << (12 - 4 * J), -0x7FFF8000, _masked(size, 0x01C001C0, 0))
        numbers = _halves(pairs, KIND) * 8.507059173023462e37
    else:  # and E4M3's times 2^-120
        size = words << 4 if J == 0 else words >> 4
        pairs = _masked(words << (8 - 8 * J), -0x7FFF8000, _masked(size, 0x07F007F0, 0))
        numbers = _halves(pairs, KIND) * 1.329227995784916e36
    return numbers


@triton.jit
def _scale(word, group, MODE: tl.constexpr, KIND: tl.constexpr):
    """[N] words that hold four groups' codes each -> the scales of `group`."""
    code = (word >> (group % 4 * 8)) & 0xFF
    if MODE == 2:  # E4M3, as above
        scale = (code & 0x7F) << 20 | (code & 0x80) << 24
        scale = (scale.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(KIND)
    elif tl.bfloat16 == KIND:  # E8M0 is an exponent; the least, 2^-127, is taken for 0
        scale = (code << 7).to(tl.int16).to(KIND, bitcast=True)
    else:
        scale = (code << 23).to(tl.float32, bitcast=True).to(KIND)
    return scale


@triton.jit
def _stored(
    weight, row, start, N: tl.constexpr, K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr,
    DEPTH: tl.constexpr = 64,
):  # fmt: skip
    """Load rows `row` of a weight [N, K], DEPTH columns from `start` on, as they are stored."""
    if MODE == 4:
        at = start + tl.arange(0, DEPTH)
        stored = tl.load(weight + row[:, None] * K + at[None, :], mask=(at < K)[None, :] if K % DEPTH else None)
    else:
        WORDS: tl.constexpr = 2 * BITS
        stored = tl.load(weight + (start // 64 * N + row[:, None]) * WORDS + tl.arange(0, WORDS)[None, :])
    return stored


@triton.jit
def _piece(
    stored, scales, row, start, J: tl.constexpr, N: tl.constexpr,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The J-th of PIECES of `stored` as KIND, with the scales of its group: a piece is never wider than a group."""
    if MODE == 4:
        numbers = stored.to(KIND)
    else:
        numbers = _codes(stored, J, MODE, BITS, tl.float32 if tl.float32 == KIND else tl.bfloat16).to(KIND)
        group = (start + J * 4 * BITS) // GROUP
        if MODE == 0:  # a word is scale and bias
            word = tl.load(scales + group * N + row)
            WHOLE: tl.constexpr = tl.int32 if tl.float32 == KIND else tl.int16
            factor, shift = word.to(WHOLE), (word >> KIND.primitive_bitwidth).to(WHOLE)
            factor, shift = factor.to(KIND, bitcast=True)[:, None], shift.to(KIND, bitcast=True)[:, None]
            numbers = numbers * factor + shift
        else:
            numbers *= _scale(tl.load(scales + group // 4 * N + row), group, MODE, KIND)[:, None]
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
def _scaled(total, factors, scales, real, FACTORS: tl.constexpr, KIND: tl.constexpr):
    """total [weight rows, rows of x] times `factors` of the former, and where x is E4M3 `scales` of the latter."""
    if FACTORS:
        total *= tl.load(factors)[:, None]
    if tl.float8e4nv == KIND:
        total *= tl.load(scales, mask=real, other=0)[None, :]
    return total


@triton.jit
def _product_kernel(
    x, weight, scales, factors, y, ends, tokens, weight_stride, scales_stride,
    N: tl.constexpr, K: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, PIECES: tl.constexpr,
    GATHERED: tl.constexpr, GATED: tl.constexpr, FACTORS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr = 64,
):  # fmt: skip
    """y[rows of an expert] = x[its rows, or tokens[its rows] if GATHERED] @ its weight.T, times `factors` of the
    weight's rows. GATED: y = gelu(the first half) * the second. Strides are an expert's. Where x is E4M3, as its weight
    then is, `scales` are of its rows."""
    expert, row, end = _tile(tl.program_id(0), ends, E, EXPERTS, ROWS)
    if expert >= E:
        return
    OUT: tl.constexpr = N // 2 if GATED else N
    KIND: tl.constexpr = x.dtype.element_ty
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    out, real = tl.minimum(column, OUT - 1), row < end
    weight += expert.to(tl.int64) * weight_stride
    scales += expert.to(tl.int64) * scales_stride
    source = tl.load(tokens + row, mask=real, other=0) if GATHERED else row
    given_rows = x + source[None, :].to(tl.int64) * K
    total = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    if GATED:
        other = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    EACH: tl.constexpr = DEPTH // PIECES
    for start in range(0, K, DEPTH):
        stored = _stored(weight, out, start, N, K, MODE, BITS, DEPTH)
        if GATED:
            others = _stored(weight, OUT + out, start, N, K, MODE, BITS, DEPTH)
        for j in tl.static_range(PIECES):
            at = (start + j * EACH + tl.arange(0, EACH))[:, None]
            given = tl.load(given_rows + at, mask=real[None, :] & (at < K) if K % DEPTH else real[None, :], other=0.0)
            numbers = _piece(stored, scales, out, start, j, N, MODE, BITS, GROUP, KIND)
            total = tl.dot(numbers, given, total, input_precision="ieee")
            if GATED:
                numbers = _piece(others, scales, OUT + out, start, j, N, MODE, BITS, GROUP, KIND)
                other = tl.dot(numbers, given, other, input_precision="ieee")
    factors += expert * N + out
    total = _scaled(total, factors, scales + source, real, FACTORS, KIND)
    if GATED:  # gelu by tanh is a sigmoid
        other = _scaled(other, factors + OUT, scales + source, real, FACTORS, KIND)
        total *= tl.sigmoid(1.5957691216057308 * (total + 0.044715 * total * total * total)) * other
    place = y + row[:, None].to(tl.int64) * OUT + column[None, :]
    tl.store(place, tl.trans(total).to(y.dtype.element_ty), mask=real[:, None] & (column < OUT)[None, :])


def shape(rows: int, experts: int, out: int, stored: dict[str, int], *, gated: bool = False) -> dict[str, int]:
    """Choose tiles for so many rows in all: those that were fastest on an H100 at the published shapes. A weight is
    unpacked anew by each tile of rows, so these are tall; two sums of 128 rows leave the registers.

    Args:
        out: columns of the result.
        stored: `stored_as` of the weight.
    """
    each = rows // experts
    if rows <= 16:  # a token or two: a tile of columns for each multiprocessor, if they are narrow
        tiles = rows if experts > 1 else 1
        wide = next((n for n in (128, 64, 32) if tiles * triton.cdiv(out, n) >= 132), 16)
        return {"ROWS": 16, "COLUMNS": wide, "num_warps": max(1, min(4, wide // 16)), "num_stages": 5}
    if experts == 1 and out >= 128 * 128:
        tall, wide = min(256, max(16, triton.next_power_of_2(rows))), 128
    elif experts == 1:
        tall, wide = min(128, max(16, triton.next_power_of_2(rows))), 128 if rows >= 1024 else 64
    else:
        tall = min(64, max(16, triton.next_power_of_2(each + each // 2)))
        plain = stored["BITS"] == 16
        wide = 64 if plain or out <= 64 or (gated and stored["MODE"] == 0) else 128
    stages = 3 if wide * tall >= 128 * 64 or (experts > 1 and tall > 32) else 4
    return {"ROWS": tall, "COLUMNS": wide, "num_warps": 8 if wide * tall >= 128 * 128 else 4, "num_stages": stages}


def fp8_shape(rows: int) -> dict[str, int]:
    """The same for so many rows an expert in E4M3, where nothing is unpacked. Measured with 16 and with 128."""
    if rows <= 32:
        return {"ROWS": 32, "COLUMNS": 64, "DEPTH": 128, "num_warps": 4, "num_stages": 3}
    return {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 4}


def stored_as(packed: Packed) -> dict[str, int]:
    """The kernels' constants for a weight's format."""
    quantization = packed.quantization
    if quantization is None:
        return {"MODE": PLAIN, "BITS": 16, "GROUP": 64, "PIECES": 1}
    bits = quantization.bits
    return {"MODE": MODES[quantization.mode], "BITS": bits, "GROUP": quantization.group_size, "PIECES": 16 // bits}


def _words(packed: Packed) -> Tensor:
    """The scales of tiled weights as the words that a kernel loads: [..., groups, N, 2 floats or 4 codes]."""
    width = torch.int64 if packed.scales.dtype == torch.float32 else torch.int32
    return packed.scales.view(width)


def grouped_product(
    x: Tensor | Rounded, packed: Packed, ends: Tensor, *, tokens: Tensor | None = None, gated: bool = False,
    factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Multiply expert by expert.

    Args:
        x: [T, K], rows sorted by expert, or with `tokens` [R] int32 those that row by row are to be taken. Rounded for
            weights in E4M3.
        packed: [E, N, K], tiled where it is quantized.
        ends: [E] int32, where each expert's rows end.
        gated: return gelu(the first half of N) * the second.
        factors: [E, N] float32, of the weights' rows.

    Returns:
        [T or R, N or N / 2], bfloat16 where x is Rounded. Rows behind the last end stay as they are.
    """
    x, scales = x if isinstance(x, Rounded) else (x, x)
    rows, experts, width, out = len(x if tokens is None else tokens), len(ends), x.shape[1], packed.out
    strides = (packed.weight.stride(0) if packed.weight.ndim > 2 and experts > 1 else 0, 0)
    if packed.quantization is not None:
        scales = _words(packed)
        strides = (packed.weight[0].numel(), scales[0].numel()) if experts > 1 else (0, 0)
    elif packed.is_fp8:
        factors = packed.scales
    columns = out // 2 if gated else out
    stored = stored_as(packed)
    tiles = fp8_shape(rows // experts) if packed.is_fp8 else shape(rows, experts, columns, stored, gated=gated)
    y = x.new_empty((rows, columns), dtype=torch.bfloat16 if packed.is_fp8 else x.dtype)
    # At most: each expert has one tile that is not full.
    height = triton.cdiv(rows, tiles["ROWS"]) if experts == 1 else rows // tiles["ROWS"] + experts
    _product_kernel[(height, triton.cdiv(columns, tiles["COLUMNS"]))](
        x.contiguous(), packed.weight, scales, x if factors is None else factors.contiguous(), y, ends,
        ends if tokens is None else tokens, *strides, N=out, K=width, E=experts,
        EXPERTS=triton.next_power_of_2(experts), GATHERED=tokens is not None, GATED=gated,
        FACTORS=factors is not None, **stored, **tiles,
    )  # fmt: skip
    return y


@functools.cache
def _one_group(rows: int, device: torch.device) -> Tensor:
    return torch.full((1,), rows, dtype=torch.int32, device=device)


def quantized_product(x: Tensor, packed: Packed) -> Tensor:
    """x [T, K] -> [T, N]: one expert."""
    return grouped_product(x, packed, _one_group(len(x), x.device))


@triton.jit
def _mean_kernel(
    shares, weight, scales, y, T, PART, V: tl.constexpr, D: tl.constexpr,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, PIECES: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y[part] = shares[:, part] @ weight[part], the parts PART rows of the table each: ROWS rows by BLOCK columns."""
    row, first, part = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * 64, tl.program_id(2)
    real, total = (row < T)[:, None], tl.zeros((ROWS, 64), dtype=tl.float32)
    KIND: tl.constexpr = shares.dtype.element_ty
    for start in range(part * PART, tl.minimum((part + 1) * PART, V), DEPTH):
        at = start + tl.arange(0, DEPTH)
        given = tl.load(shares + row[:, None].to(tl.int64) * V + at[None, :], mask=real & (at < V)[None, :], other=0)
        at = tl.minimum(at, V - 1)
        stored = _stored(weight, at, first, V, D, MODE, BITS)
        numbers = _piece(stored, scales, at, first, 0, V, MODE, BITS, GROUP, KIND)
        numbers = tl.join(numbers, _piece(stored, scales, at, first, PIECES // 2, V, MODE, BITS, GROUP, KIND))
        if PIECES == 4:
            others = _piece(stored, scales, at, first, 1, V, MODE, BITS, GROUP, KIND)
            others = tl.join(others, _piece(stored, scales, at, first, 3, V, MODE, BITS, GROUP, KIND))
            numbers = tl.permute(tl.join(numbers, others), (0, 2, 3, 1))
        else:
            numbers = tl.permute(numbers, (0, 2, 1))
        total = tl.dot(given, tl.reshape(numbers, (DEPTH, 64)), total, input_precision="ieee")
    column = first + tl.arange(0, 64)
    place = (part.to(tl.int64) * T + row[:, None]) * D + column[None, :]
    tl.store(y + place, total, mask=real & (column < D)[None, :])


def mean(shares: Tensor, table: Packed) -> Tensor:
    """shares [T, V] @ a quantized table [V, D] -> [T, D]. Parts of the table at once: T and D alone are too few."""
    (count, vocabulary), hidden = shares.shape, table.width
    tall = min(256, max(16, triton.next_power_of_2(count)))
    blocks = triton.cdiv(count, tall) * triton.cdiv(hidden, BLOCK)
    parts = max(1, min(16, device.multiprocessors() * 2 // blocks, vocabulary // 256))
    each = triton.cdiv(triton.cdiv(vocabulary, parts), 64) * 64
    y = shares.new_empty((parts, count, hidden), dtype=torch.float32)
    _mean_kernel[(triton.cdiv(count, tall), triton.cdiv(hidden, BLOCK), parts)](
        shares, table.weight, _words(table), y, count, each, V=vocabulary, D=hidden, **stored_as(table),
        ROWS=tall, DEPTH=64, num_warps=8 if tall > 64 else 4, num_stages=3,
    )  # fmt: skip
    return y.sum(dim=0).to(shares.dtype)


@triton.jit
def _unpack_kernel(
    weight, scales, factors, y, first, rows, weight_stride, scales_stride, N: tl.constexpr, K: tl.constexpr,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, PIECES: tl.constexpr, FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """y[expert, k, row] = the weight at [expert, first + row, k], times `factors` of its rows."""
    expert, start = tl.program_id(2).to(tl.int64), tl.program_id(1) * 64
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    source, real = first + tl.minimum(row, rows - 1), row < rows
    weight += expert * weight_stride
    scales += expert * scales_stride
    stored = _stored(weight, source, start, N, K, MODE, BITS)
    EACH: tl.constexpr = 64 // PIECES
    for j in tl.static_range(PIECES):
        numbers = _piece(stored, scales, source, start, j, N, MODE, BITS, GROUP, y.dtype.element_ty)
        if FACTORS:
            numbers *= tl.load(factors + expert * N + source)[:, None]
        at = start + j * EACH + tl.arange(0, EACH)
        place = y + (expert * K + at[None, :]) * rows + row[:, None]
        tl.store(place, numbers.to(y.dtype.element_ty), mask=real[:, None] & (at < K)[None, :])


def unpacked(
    packed: Packed, dtype: torch.dtype, *, rows: slice = slice(None), factors: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Plain or tiled weights [N, K] or [E, N, K] -> those at `rows` of N as floats, times `factors` [E, N] float32.

    `dtype` is that of the scales where these are floats. In memory the last two axes lie the other way: so the products
    of a gradient want them."""
    (*outer, out, width), (first, end, _) = packed.shape, rows.indices(packed.out)
    experts = outer[0] if outer else 1
    scales = packed.weight if packed.quantization is None else _words(packed)
    y = torch.empty((*outer, width, end - first), dtype=dtype, device=packed.weight.device)
    _unpack_kernel[(triton.cdiv(end - first, 128), triton.cdiv(width, BLOCK), experts)](
        packed.weight, scales, scales if factors is None else factors.contiguous(), y, first, end - first,
        packed.weight.numel() // experts, scales.numel() // experts, N=out, K=width, **stored_as(packed),
        FACTORS=factors is not None, ROWS=128, num_warps=4,
    )  # fmt: skip
    return y.transpose(-2, -1)
