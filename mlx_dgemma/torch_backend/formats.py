"""MLX's quantized formats, and FP8: what the packed numbers mean.

MLX packs a row as one stream of bits, lowest first, in 32-bit words. A group of neighbours in a row shares a scale:
affine: scale * q + bias; mxfp4, mxfp8: a power of two (E8M0) times E2M1 or E4M3; nvfp4: an E4M3 scale times E2M1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ..checkpoint.config import Quantization

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
FIELDS = {2: 4, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}  # bits -> those of the fields that the kernels read
BLOCK = 64  # columns whose codes share words in tiles
PIECE = 1 << 22  # words that are laid out at a time: on the way they take many times their memory


@dataclass
class Packed:
    """A weight [..., out, in] as it is stored."""

    weight: Tensor  # floats, quantized numbers in int32 words, or E4M3
    scales: Tensor | None = None  # [..., out, groups]; of E4M3 [..., out, 1] float32
    biases: Tensor | None = None  # [..., out, groups], affine only
    quantization: Quantization | None = None
    width: int | None = None  # of a row, where the arrays are `tiled`

    @property
    def is_fp8(self) -> bool:
        return self.weight.dtype == E4M3

    @property
    def out(self) -> int:
        return self.weight.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., out, in], however it is stored."""
        if self.width is not None:
            return (*self.weight.shape[:-3], self.out, self.width)
        stored = self.quantization
        return (*self.weight.shape[:-1], self.weight.shape[-1] * 32 // (stored.bits if stored else 32))

    def rows(self, index: Tensor | slice | int, dtype: torch.dtype) -> Tensor:
        """`weight[index]` as floats."""
        if self.is_fp8:
            return (self.weight[index].float() * self.scales[index]).to(dtype)
        if self.quantization is None:
            # Its gradient adds up in an order of its own, however often a row is chosen.
            return embedding(index, self.weight) if isinstance(index, Tensor) else self.weight[index]
        if self.width is not None:
            if self.weight.ndim == 4:  # of experts
                return Packed(self.weight[index], self.scales[index], None, self.quantization, self.width).rows(
                    ..., dtype
                )
            return untiled(self, index).rows(..., dtype)
        biases = None if self.biases is None else self.biases[index]
        return dequantize(self.weight[index], self.scales[index], biases, self.quantization).to(dtype)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """[..., words] int32 -> [..., words * 32 / bits] uint8."""
    octets = packed.contiguous().view(torch.uint8)
    if 8 % bits == 0:
        places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        return ((octets[..., None] >> places) & (2**bits - 1)).flatten(-2)
    # Eight numbers fill `bits` bytes.
    octets, places = octets.unflatten(-1, (-1, bits)).long(), torch.arange(8, device=packed.device)
    word = (octets << 8 * places[:bits]).sum(dim=-1)
    return ((word[..., None] >> bits * places) & (2**bits - 1)).flatten(-2).to(torch.uint8)


def _packed(fields: Tensor, bits: int) -> Tensor:
    """[..., width] uint8 -> [..., words] int32, of fields of 4 or 8 bits."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=fields.device)
    return (fields.unflatten(-1, (-1, 8 // bits)) << places).sum(dim=-1, dtype=torch.uint8).view(torch.int32)


def tiled(packed: Packed) -> Packed:
    """Lay quantized weights [..., N, K] out for the kernels, some rows or experts at a time. The numbers stay the same.

    Words [..., blocks, N, words]: those that a tile reads one after another lie together. Of F fields in a word, field
    j + h F / 2 of word t is column j 2 words + 2 t + h of the block: so a shift and a mask leave two neighbours in the
    halves of a word. Scales [..., groups, N, 2], affine: scale and bias; else codes [..., groups / 4, N, 4]."""
    stored, width = packed.quantization, packed.scales.shape[-1] * packed.quantization.group_size
    count, size, whole = len(packed.weight), max(1, PIECE // packed.weight[0].numel()), None
    axis = -2 if packed.weight.ndim == 2 else 0  # where the pieces lie
    for first in range(0, count, size):
        part = slice(first, first + size)
        biases = None if packed.biases is None else packed.biases[part]
        made = _tiles(Packed(packed.weight[part], packed.scales[part], biases, stored), width)
        if whole is None:
            whole = [a.new_empty([count if n == axis % a.ndim else m for n, m in enumerate(a.shape)]) for a in made]
        for array, piece in zip(whole, made, strict=True):
            array.narrow(axis, first, piece.shape[axis]).copy_(piece)
    stored = Quantization(bits=FIELDS[stored.bits], group_size=stored.group_size, mode=stored.mode)
    return Packed(*whole, None, stored, width)


def _tiles(packed: Packed, width: int) -> tuple[Tensor, Tensor]:
    """The words and the scales of `tiled`, not yet one behind the other in memory."""
    stored = packed.quantization
    bits = FIELDS[stored.bits]
    codes = torch.nn.functional.pad(unpack(packed.weight, stored.bits), (0, -width % BLOCK))
    blocks = codes.unflatten(-1, (-1, 16 // bits, 2 * bits, 2))  # block, j, t, h
    words = _packed(blocks.transpose(-3, -2).transpose(-2, -1).flatten(-4), bits).unflatten(-1, (-1, 2 * bits))
    if packed.biases is not None:
        scales = torch.stack((packed.scales, packed.biases), dim=-1)
        scales = torch.nn.functional.pad(scales, (0, 0, 0, -width % BLOCK // stored.group_size))
    else:
        scales = torch.nn.functional.pad(packed.scales, (0, -packed.scales.shape[-1] % 4)).unflatten(-1, (-1, 4))
    return words.transpose(-3, -2), scales.transpose(-3, -2)


def untiled(packed: Packed, index: Tensor | slice) -> Packed:
    """Undo `tiled`, for the rows at `index` of the last weights."""
    stored, width = packed.quantization, packed.width
    index = slice(None) if index is ... else index
    words, scales = (array[:, index].movedim(0, -2) for array in (packed.weight, packed.scales))
    fields = unpack(words, stored.bits).unflatten(-1, (2 * stored.bits, 2, 16 // stored.bits))  # t, h, j
    codes = fields.movedim(-1, -3).flatten(-4)[..., :width]
    groups, words = width // stored.group_size, _packed(codes, stored.bits)
    if stored.mode == "affine":
        return Packed(words, *scales[..., :groups, :].unbind(-1), stored)
    return Packed(words, scales.flatten(-2)[..., :groups], None, stored)


def _numbers(packed: Tensor, quantization: Quantization) -> Tensor:
    if quantization.mode == "mxfp8":
        return packed.contiguous().view(E4M3).float()
    stored = unpack(packed, quantization.bits)
    if quantization.mode == "affine":
        return stored.float()
    # E2M1: sign, two bits of exponent, one of mantissa.
    exponent, half = (stored >> 1) & 3, (stored & 1) * 0.5
    size = torch.where(exponent == 0, half, (1 + half) * torch.exp2(exponent - 1.0))
    return torch.where(stored >= 8, -size, size)


def _scales(scales: Tensor, quantization: Quantization) -> Tensor:
    if quantization.mode == "affine":
        return scales.float()
    if quantization.mode == "nvfp4":
        return scales.view(E4M3).float()
    return torch.exp2(scales.float() - 127)


def dequantize(packed: Tensor, scales: Tensor, biases: Tensor | None, quantization: Quantization) -> Tensor:
    """[..., words] int32, [..., groups] and for affine [..., groups] -> [..., width] float32."""
    numbers = _numbers(packed, quantization).unflatten(-1, (-1, quantization.group_size))
    numbers = numbers * _scales(scales, quantization)[..., None]
    return (numbers if biases is None else numbers + biases.float()[..., None]).flatten(-2)


class Rounded(NamedTuple):
    numbers: Tensor  # [..., width] E4M3
    scale: Tensor  # [..., 1] float32, of each row

    def exact(self) -> Tensor:
        return self.numbers.float() * self.scale


def to_fp8(x: Tensor) -> Rounded:
    """Round [..., width] to E4M3. The scale of a row is its largest number / 448."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return Rounded((x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale)
