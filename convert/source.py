"""How a checkpoint stores a weight, and how rows of it are read.

There are three kinds: plain; in the groups of `mx.quantize`; and NVIDIA's experts, stored singly, whose FP4 values and
E4M3 scales are what MLX calls nvfp4, times a float32 for each expert and projection.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint.config import Quantization
from ..checkpoint.folder import Tensor
from ..errors import Mistake

NVFP4 = Quantization(bits=4, group_size=16, mode="nvfp4")
# As NumPy reads them, bfloat16 as its bits; every other dtype is read as bytes.
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32}
# The type of a float's bits, the mask that removes its sign, and the smallest pattern that is Inf or NaN.
_BITS = {"F32": (np.uint32, 0x7FFFFFFF, 0x7F800000), "F16": (np.uint16, 0x7FFF, 0x7C00)}
_BITS["BF16"] = (np.uint16, 0x7FFF, 0x7F80)
_NAN_SCALES = {"mxfp4": (255,), "mxfp8": (255,), "nvfp4": (127, 255)}  # codes of E8M0 and E4M3
Raw = dict[str, np.ndarray]  # rows of a weight as they are stored: weight, scales, biases, factors


@dataclass(frozen=True)
class Stored:
    """A tensor with its name in the checkpoint."""

    name: str
    tensor: Tensor

    @property
    def where(self) -> str:
        return f"tensor {self.name} in {self.tensor.file.name}"


def row_count(shape: tuple[int, ...]) -> int:
    """Return the rows of a tensor seen as a matrix. Groups never cross a row."""
    return math.prod(shape[:-1])


class _Digest:
    """SHA-256 of a file, computed from the pieces that are read for the conversion.

    A file that is read in order is read once. What was skipped is read here.
    """

    def __init__(self, file: Path):
        self.file = file
        self.hash = hashlib.sha256()
        self.position = 0

    def feed(self, start: int, raw: np.ndarray) -> None:
        """Add the bytes from `start` on."""
        self.read_until(start)
        if start == self.position:
            self.hash.update(raw)
            self.position += raw.nbytes

    def read_until(self, end: int) -> None:
        with self.file.open("rb") as file:
            file.seek(self.position)
            while self.position < end:
                piece = file.read(min(1 << 24, end - self.position))
                if not piece:
                    raise Mistake(f"{self.file} became shorter while it was read; fetch it again")
                self.hash.update(piece)
                self.position += len(piece)


class Reader:
    """Reads tensors, and hashes the files of `expected` (file -> SHA-256) on the way."""

    def __init__(self, expected: Mapping[Path, str]):
        self.expected = dict(expected)
        self._digests = {file: _Digest(file) for file in expected}

    def bytes(self, stored: Stored, first: int, last: int) -> np.ndarray:
        """Return bytes [first, last) of the tensor."""
        file, start = stored.tensor.file, stored.tensor.start + first
        raw = np.fromfile(file, np.uint8, last - first, offset=start)
        if raw.size < last - first:
            raise Mistake(f"{file} is truncated: {stored.where} ends early; fetch it again")
        if file in self._digests:
            self._digests[file].feed(start, raw)
        return raw

    def rows(self, stored: Stored, first: int, last: int) -> np.ndarray:
        """Return rows [n, width], bfloat16 as uint16. Mistake names a tensor with NaN or Inf."""
        tensor = stored.tensor
        row_bytes = tensor.nbytes // row_count(tensor.shape)
        raw = self.bytes(stored, first * row_bytes, last * row_bytes)
        array = raw.view(_NUMPY.get(tensor.dtype, np.uint8)).reshape(last - first, -1)
        if not _is_finite(array, tensor.dtype):
            raise Mistake(f"{stored.where} holds NaN or Inf; fetch it again")
        return array

    def finish(self, file: Path) -> None:
        """Hash the rest of a file. Mistake if the hash is not the expected one."""
        digest = self._digests.pop(file)
        digest.read_until(file.stat().st_size)
        actual = digest.hash.hexdigest()
        if actual != self.expected.pop(file):
            raise Mistake(f"{file}: its SHA-256 is {actual}, and not what the hub says; delete it and fetch again")


def _is_finite(array: np.ndarray, dtype: str) -> bool:
    """Compare bit patterns: MLX's isfinite takes longer on a CPU than its quantize."""
    if dtype not in _BITS:
        return True
    unsigned, mask, infinity = _BITS[dtype]
    bits, mask = array.view(unsigned).ravel(), unsigned(mask)
    # In parts that stay in the processor's cache.
    return all((bits[i : i + 65536] & mask).max() < infinity for i in range(0, bits.size, 65536))


def to_mlx(array: np.ndarray, dtype: str) -> mx.array:
    """Return the array in MLX; `dtype` is the tensor's in the file."""
    return mx.array(array).view(mx.bfloat16) if dtype == "BF16" else mx.array(array)


@dataclass(frozen=True)
class Plain:
    """A weight that is not quantized."""

    stored: Stored

    quantization = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.tensor.shape

    @property
    def parts(self) -> tuple[Stored, ...]:
        return (self.stored,)

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        return {"weight": reader.rows(self.stored, first, last)}

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        """Return the rows as they are stored; `dtype` is not used."""
        return to_mlx(raw["weight"], self.stored.tensor.dtype)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a quantized layer: all of it in an MLX folder, one expert's projection in NVIDIA's."""

    rows: int
    weight: Stored
    scales: Stored
    biases: Stored | None = None
    factor: Stored | None = None  # float32 [], [experts] or [experts, rows of an expert]

    @property
    def parts(self) -> tuple[Stored, ...]:
        return tuple(part for part in (self.weight, self.scales, self.biases, self.factor) if part is not None)

    def factors(self, reader: Reader) -> np.ndarray:
        """Return the factor of each row, [rows]."""
        values = reader.rows(self.factor, 0, row_count(self.factor.tensor.shape)).ravel()
        return np.repeat(values.astype(np.float32), self.rows // values.size)


@dataclass(frozen=True)
class Packed:
    """A weight in the groups of `mx.quantize`."""

    shape: tuple[int, ...]  # of the unpacked weight
    quantization: Quantization
    blocks: tuple[Block, ...]

    @property
    def parts(self) -> tuple[Stored, ...]:
        return tuple(part for block in self.blocks for part in block.parts)

    def _covering(self, first: int, last: int) -> Iterator[tuple[Block, int, int]]:
        """Yield the blocks that hold rows [first, last) of the layer, and the rows to read from each."""
        start = 0
        for block in self.blocks:
            stop = start + block.rows
            if stop > first and start < last:
                yield block, max(first, start) - start, min(last, stop) - start
            start = stop

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        """Read rows [first, last). Mistake names a tensor with NaN among its scales or its values."""
        raw: dict[str, list[np.ndarray]] = defaultdict(list)
        mode = self.quantization.mode
        for block, start, stop in self._covering(first, last):
            weight, scales = reader.rows(block.weight, start, stop), reader.rows(block.scales, start, stop)
            if np.isin(scales, _NAN_SCALES.get(mode, ())).any():
                raise Mistake(f"{block.scales.where} holds NaN; fetch it again")
            if mode == "mxfp8" and (weight.view(np.uint8) & 0x7F == 0x7F).any():
                raise Mistake(f"{block.weight.where} holds NaN; fetch it again")
            raw["weight"].append(weight.view(np.uint32))
            raw["scales"].append(scales)
            if block.biases:
                raw["biases"].append(reader.rows(block.biases, start, stop))
            if block.factor:
                raw["factors"].append(block.factors(reader)[start:stop])
        return {kind: np.concatenate(parts) for kind, parts in raw.items()}

    def packed(self, raw: Raw) -> list[mx.array]:
        """Return weight, scales and, of affine, biases, as `mx.dequantize` takes them."""
        dtype = self.blocks[0].scales.tensor.dtype
        return [mx.array(raw["weight"]), *(to_mlx(raw[kind], dtype) for kind in ("scales", "biases") if kind in raw)]

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        """Dequantize the rows as a network of `dtype` does it."""
        q, (weight, *groups) = self.quantization, self.packed(raw)
        if q.mode == "affine":
            groups = [array.astype(getattr(mx, dtype)) for array in groups]
        rows = mx.dequantize(weight, *groups, group_size=q.group_size, bits=q.bits, mode=q.mode)
        return rows.astype(mx.float32) * mx.array(raw["factors"])[:, None] if "factors" in raw else rows


@dataclass(frozen=True)
class Factors:
    """The global scales of `packed`, which is kept as it is: a parameter of its own, [experts] or [experts, rows]."""

    packed: Packed
    shape: tuple[int, ...]

    quantization = None

    @property
    def parts(self) -> tuple[Stored, ...]:
        return tuple(block.factor for block in self.packed.blocks)

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        rows = np.concatenate([block.factors(reader) for block in self.packed.blocks])
        count = math.prod(self.shape)
        return {"weight": rows[:: rows.size // count].reshape(row_count(self.shape), -1)[first:last]}

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        return mx.array(raw["weight"])


Weight = Plain | Packed | Factors


def nbytes(weight: Weight) -> int:
    """Return the bytes of all tensors that store a weight."""
    return sum(part.tensor.nbytes for part in weight.parts)
