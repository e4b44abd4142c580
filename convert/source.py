"""How a checkpoint stores a weight, and how rows of it are read.

A weight is plain, or in the groups of `mx.quantize`. NVIDIA stores experts singly: their FP4 values and E4M3 scales are
what MLX calls nvfp4, times a float32 for each expert and projection.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import mlx.core as mx
import numpy as np

from ..checkpoint.config import Quantization
from ..checkpoint.folder import Tensor
from ..errors import Mistake

NVFP4 = Quantization(bits=4, group_size=16, mode="nvfp4")
# As NumPy reads them, bfloat16 as its bits; every other dtype is read as bytes.
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32}
# The mask that removes a float's sign, and the smallest pattern that is Inf or NaN.
_BITS = {"F32": (0x7FFFFFFF, 0x7F800000), "F16": (0x7FFF, 0x7C00), "BF16": (0x7FFF, 0x7F80)}
_NAN_SCALES = {"mxfp4": (255,), "mxfp8": (255,), "nvfp4": (127, 255)}  # codes of E8M0 and E4M3
Raw = dict[str, np.ndarray]  # rows of a weight as they are stored: weight, scales, biases, factors


def row_count(shape: tuple[int, ...]) -> int:
    """Return the rows of a tensor seen as a matrix. Groups never cross a row."""
    return math.prod(shape[:-1])


class Reader:
    """Reads tensors, and hashes the files of `expected` (file -> SHA-256) on the way, once where it reads in order."""

    def __init__(self, expected: Mapping[Path, str]):
        self.expected = dict(expected)
        self._digests = {file: hashlib.sha256() for file in expected}
        self._positions = dict.fromkeys(expected, 0)  # bytes that are hashed

    def bytes(self, tensor: Tensor, first: int, last: int) -> np.ndarray:
        """Return bytes [first, last) of the tensor."""
        file, start = tensor.file, tensor.start + first
        raw = np.fromfile(file, np.uint8, last - first, offset=start)
        if raw.size < last - first:
            raise Mistake(f"{file} is truncated: {tensor.where} ends early; fetch it again")
        if file in self.expected:
            self._hash_until(file, start)
            if self._positions[file] == start:
                self._hash(file, raw)
        return raw

    def _hash(self, file: Path, raw: np.ndarray) -> None:
        self._digests[file].update(raw)
        self._positions[file] += raw.nbytes

    def _hash_until(self, file: Path, end: int) -> None:
        """Hash what was skipped before byte `end`."""
        while (position := self._positions[file]) < end:
            piece = np.fromfile(file, np.uint8, min(1 << 24, end - position), offset=position)
            if not piece.size:
                raise Mistake(f"{file} became shorter while it was read; fetch it again")
            self._hash(file, piece)

    def rows(self, tensor: Tensor, first: int, last: int) -> np.ndarray:
        """Return rows [n, width], bfloat16 as uint16. Mistake names a tensor with NaN or Inf."""
        row_bytes = tensor.nbytes // row_count(tensor.shape)
        raw = self.bytes(tensor, first * row_bytes, last * row_bytes)
        if tensor.dtype in _BITS and not _is_finite(
            raw.view(np.uint32 if tensor.dtype == "F32" else np.uint16), *_BITS[tensor.dtype]
        ):
            raise Mistake(f"{tensor.where} holds NaN or Inf; fetch it again")
        return raw.view(_NUMPY.get(tensor.dtype, np.uint8)).reshape(last - first, -1)

    def finish(self, file: Path) -> None:
        """Hash the rest of a file. Mistake if the hash is not the expected one."""
        self._hash_until(file, file.stat().st_size)
        actual = self._digests[file].hexdigest()
        if actual != self.expected.pop(file):
            raise Mistake(f"{file}: its SHA-256 is {actual}, and not what the hub says; delete it and fetch again")


def _is_finite(bits: np.ndarray, mask: int, infinity: int) -> bool:
    """Compare bit patterns: MLX's isfinite takes longer on a CPU than its quantize."""
    mask = bits.dtype.type(mask)
    # In parts that stay in the processor's cache.
    return all((bits[i : i + 65536] & mask).max() < infinity for i in range(0, bits.size, 65536))


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a weight: all of it in most folders, one expert's projection in NVIDIA's."""

    rows: int
    weight: Tensor
    scales: Tensor | None = None
    biases: Tensor | None = None
    factor: Tensor | None = None  # float32 [], [experts] or [experts, rows of an expert]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(part for part in (self.weight, self.scales, self.biases, self.factor) if part is not None)

    def factors(self, reader: Reader) -> np.ndarray:
        """Return the factor of each row, [rows]."""
        values = reader.rows(self.factor, 0, row_count(self.factor.shape)).ravel()
        return np.repeat(values.astype(np.float32), self.rows // values.size)


@dataclass(frozen=True)
class Weight:
    """A parameter as it is stored: plain or, with `quantization`, in the groups of `mx.quantize`."""

    shape: tuple[int, ...]  # when it is not packed
    quantization: Quantization | None
    blocks: tuple[Block, ...]

    @classmethod
    def plain(cls, tensor: Tensor) -> Self:
        return cls(tensor.shape, None, (Block(row_count(tensor.shape), tensor),))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(part for block in self.blocks for part in block.parts)

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        """Read rows [first, last). Mistake names a tensor with NaN or Inf."""
        blocks, end = [], 0
        for block in self.blocks:
            start, end = end, end + block.rows
            if start < last and first < end:
                blocks.append(self._read(block, reader, max(first - start, 0), min(last, end) - start))
        if len(blocks) == 1:
            return blocks[0]
        return {kind: np.concatenate([block[kind] for block in blocks]) for kind in blocks[0]}

    def _read(self, block: Block, reader: Reader, first: int, last: int) -> Raw:
        weight = reader.rows(block.weight, first, last)
        if self.quantization is None:
            return {"weight": weight}
        mode, scales = self.quantization.mode, reader.rows(block.scales, first, last)
        if np.isin(scales, _NAN_SCALES.get(mode, ())).any():
            raise Mistake(f"{block.scales.where} holds NaN; fetch it again")
        if mode == "mxfp8" and (weight.view(np.uint8) & 0x7F == 0x7F).any():
            raise Mistake(f"{block.weight.where} holds NaN; fetch it again")
        raw = {"weight": weight.view(np.uint32), "scales": scales}
        if block.biases:
            raw["biases"] = reader.rows(block.biases, first, last)
        if block.factor:
            raw["factors"] = block.factors(reader)[first:last]
        return raw

    def arrays(self, raw: Raw) -> list[mx.array]:
        """Return the rows in MLX: the weight, or what `mx.dequantize` takes, weight, scales and, of affine, biases."""
        arrays = [mx.array(raw[kind]) for kind in ("weight", "scales", "biases") if kind in raw]
        return [array.view(mx.bfloat16) if array.dtype == mx.uint16 else array for array in arrays]

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        """Return plain rows as they are stored, and quantized ones as a network of `dtype` dequantizes them."""
        weight, *groups = self.arrays(raw)
        if (q := self.quantization) is None:
            return weight
        if q.mode == "affine":
            groups = [array.astype(getattr(mx, dtype)) for array in groups]
        rows = mx.dequantize(weight, *groups, group_size=q.group_size, bits=q.bits, mode=q.mode)
        return rows.astype(mx.float32) * mx.array(raw["factors"])[:, None] if "factors" in raw else rows


@dataclass(frozen=True)
class Factors(Weight):
    """The global scales of a packed weight that is kept: a separate parameter, [experts] or [experts, rows]."""

    @classmethod
    def of(cls, packed: Weight) -> Self:
        experts, rows = packed.shape[:2]
        stored = sum(math.prod(block.factor.shape) for block in packed.blocks)
        # A factor a row where gate and up differ, otherwise a factor an expert.
        return cls((experts,) if stored == experts else (experts, rows), None, packed.blocks)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(block.factor for block in self.blocks)

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        rows = np.concatenate([block.factors(reader) for block in self.blocks])
        count = math.prod(self.shape)
        return {"weight": rows[:: rows.size // count].reshape(row_count(self.shape), -1)[first:last]}

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        return mx.array(raw["weight"])
