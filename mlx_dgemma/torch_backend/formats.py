"""MLX's quantized formats, and FP8: what the packed numbers mean.

MLX packs a row as one stream of bits, lowest first, in 32-bit words. A group of neighbours in a row shares a scale:
affine: scale * q + bias; mxfp4, mxfp8: a power of two (E8M0) times E2M1 or E4M3; nvfp4: an E4M3 scale times E2M1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.config import Quantization

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
WIDER = {2: 4, 3: 4, 5: 8, 6: 8}  # bits -> those of the fields that the kernels read


@dataclass
class Packed:
    """A weight [..., out, in] as it is stored."""

    weight: Tensor  # floats, quantized numbers in int32 words, or E4M3
    scales: Tensor | None = None  # [..., out, groups]; of E4M3 [..., out, 1] float32
    biases: Tensor | None = None  # [..., out, groups], affine only
    quantization: Quantization | None = None

    @property
    def is_fp8(self) -> bool:
        return self.weight.dtype == E4M3

    def rows(self, index: Tensor | slice | int, dtype: torch.dtype) -> Tensor:
        """`weight[index]` as floats."""
        if self.is_fp8:
            return (self.weight[index].float() * self.scales[index]).to(dtype)
        if self.quantization is None:
            return self.weight[index]
        biases = None if self.biases is None else self.biases[index]
        return dequantize(self.weight[index], self.scales[index], biases, self.quantization).to(dtype)


def check(quantization: Quantization, width: int) -> None:
    """ValueError if the groups do not divide rows of `width` numbers."""
    bits, group = quantization.bits, quantization.group_size
    if width % group or width * bits % 32:
        raise ValueError(f"groups of {group} with {bits} bits do not divide rows of {width}")


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


def widen(packed: Tensor, bits: int) -> Tensor:
    """Repack into fields of WIDER[bits]. The numbers stay the same."""
    wide = WIDER[bits]
    fields = unpack(packed, bits).unflatten(-1, (-1, 8 // wide))
    places = torch.arange(0, 8, wide, dtype=torch.uint8, device=packed.device)
    return (fields << places).sum(dim=-1, dtype=torch.uint8).view(torch.int32)


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


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round [..., width] to E4M3 -> that, and [..., 1] float32, the scale of each row: its largest number / 448."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale
