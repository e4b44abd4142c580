"""What a checkpoint holds of each parameter, and some rows of it when they are asked for.

Three kinds: plain; in the groups of `mx.quantize`; NVIDIA's experts, one by one, whose FP4 values and E4M3 scales are
what MLX calls nvfp4, times one float32 for each expert and projection.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint.config import Quantization
from ..checkpoint.folder import Tensor
from ..errors import Mistake

FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # ours and MLX's word -> safetensors'
NVFP4 = Quantization(bits=4, group_size=16, mode="nvfp4")
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32}  # all others: bytes
_NAN_SCALES = {"mxfp4": (255,), "mxfp8": (255,), "nvfp4": (127, 255)}  # codes of E8M0 and E4M3
Raw = dict[str, np.ndarray]  # rows of a weight, as they were read: weight, scales, biases, factors
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Stored:
    """A tensor with its name in the checkpoint."""

    name: str
    tensor: Tensor

    @property
    def where(self) -> str:
        return f"tensor {self.name} in {self.tensor.file.name}"


def row_count(shape: tuple[int, ...]) -> int:
    """Of anything seen as a matrix; groups never cross a row."""
    return math.prod(shape[:-1])


def expected_sha256(file: Path) -> str | None:
    """What the hub says of a file it fetched: the blob's name in its cache, or the note beside a --local-dir."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    lines = note.read_text().split() if note.is_file() else []
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


class _Digest:
    """SHA-256 of a file, of which pieces are handed in as they are read for another reason.

    Read in order, a file is read once. What was left out, or is handed in early, is read again here.
    """

    def __init__(self, file: Path):
        self.file = file
        self.hash = hashlib.sha256()
        self.position = 0
        self.size = file.stat().st_size

    def feed(self, start: int, raw: np.ndarray | None) -> None:
        with self.file.open("rb") as file:
            file.seek(self.position)
            while self.position < start:
                piece = file.read(min(1 << 24, start - self.position))
                if not piece:
                    raise Mistake(f"{self.file} became shorter while it was read; fetch it again")
                self.hash.update(piece)
                self.position += len(piece)
        if raw is not None and start == self.position:
            self.hash.update(raw)
            self.position += raw.nbytes


class Reader:
    """Bytes of tensors; `expected` says which files are to be hashed on the way."""

    def __init__(self, expected: Mapping[Path, str]):
        self.expected = dict(expected)
        self._digests = {file: _Digest(file) for file in expected}

    def bytes(self, stored: Stored, first: int, last: int) -> np.ndarray:
        """Bytes [first, last) of the tensor."""
        file, start = stored.tensor.file, stored.tensor.start + first
        raw = np.fromfile(file, np.uint8, last - first, offset=start)
        if raw.size < last - first:
            raise Mistake(f"{file} is truncated: {stored.where} ends early; fetch it again")
        if file in self._digests:
            self._digests[file].feed(start, raw)
        return raw

    def finish(self, file: Path) -> None:
        """Every tensor that is wanted from `file` was read. Mistake if its hash is not what the hub says."""
        digest = self._digests.pop(file)
        digest.feed(digest.size, None)
        found = digest.hash.hexdigest()
        if found != self.expected.pop(file):
            raise Mistake(f"{file}: its SHA-256 is {found}, and not what the hub says; delete it and fetch again")

    def rows(self, stored: Stored, first: int, last: int) -> np.ndarray:
        """[n, width]; bfloat16 as uint16. Mistake names a tensor with NaN or Inf."""
        tensor = stored.tensor
        each = tensor.nbytes // row_count(tensor.shape)
        raw = self.bytes(stored, first * each, last * each)
        array = raw.view(_NUMPY.get(tensor.dtype, np.uint8)).reshape(last - first, -1)
        if not _finite(array, tensor.dtype):
            raise Mistake(f"{stored.where} holds NaN or Inf; fetch it again")
        return array


def _finite(array: np.ndarray, dtype: str) -> bool:
    """Looks at exponents: MLX's isfinite on the CPU takes longer than its quantize."""
    if dtype not in ("F32", "BF16", "F16"):
        return True
    code, largest = (np.uint32, 0x7F800000) if dtype == "F32" else (np.uint16, 0x7F80 if dtype == "BF16" else 0x7C00)
    bits, unsigned = array.view(code).ravel(), code(0x7FFFFFFF if dtype == "F32" else 0x7FFF)
    # In parts that stay in the processor's cache.
    return all((bits[i : i + 65536] & unsigned).max() < largest for i in range(0, bits.size, 65536))


def to_mlx(array: np.ndarray, dtype: str) -> mx.array:
    return mx.array(array).view(mx.bfloat16) if dtype == "BF16" else mx.array(array)


@dataclass(frozen=True)
class Plain:
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
        """As they are stored."""
        return to_mlx(raw["weight"], self.stored.tensor.dtype)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a quantized layer: all of it in an MLX folder, one expert's projection in NVIDIA's."""

    rows: int
    weight: Stored
    scales: Stored
    biases: Stored | None = None
    factor: Stored | None = None  # float32 [], [experts] or [experts, rows of one]

    @property
    def parts(self) -> tuple[Stored, ...]:
        return tuple(p for p in (self.weight, self.scales, self.biases, self.factor) if p is not None)

    def factors(self, reader: Reader) -> np.ndarray:
        """One a row."""
        values = reader.rows(self.factor, 0, row_count(self.factor.tensor.shape)).ravel()
        return np.repeat(values.astype(np.float32), self.rows // values.size)


@dataclass(frozen=True)
class Packed:
    shape: tuple[int, ...]  # unpacked
    quantization: Quantization
    blocks: tuple[Block, ...]

    @property
    def parts(self) -> tuple[Stored, ...]:
        return tuple(part for block in self.blocks for part in block.parts)

    def _cover(self, first: int, last: int) -> Iterator[tuple[Block, int, int]]:
        """The blocks that hold rows [first, last), and which of their own rows those are."""
        start = 0
        for block in self.blocks:
            stop = start + block.rows
            if stop > first and start < last:
                yield block, max(first, start) - start, min(last, stop) - start
            start = stop

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        mode = self.quantization.mode
        for block, start, stop in self._cover(first, last):
            found["weight"].append(reader.rows(block.weight, start, stop).view(np.uint32))
            scales = reader.rows(block.scales, start, stop)
            if mode in _NAN_SCALES and np.isin(scales, _NAN_SCALES[mode]).any():
                raise Mistake(f"{block.scales.where} holds NaN; fetch it again")
            found["scales"].append(scales)
            if block.biases:
                found["biases"].append(reader.rows(block.biases, start, stop))
            if block.factor:
                found["factors"].append(block.factors(reader)[start:stop])
        if mode == "mxfp8" and any((w.view(np.uint8) & 0x7F == 0x7F).any() for w in found["weight"]):
            raise Mistake(f"{self.blocks[0].weight.where} holds NaN; fetch it again")
        return {kind: np.concatenate(parts) for kind, parts in found.items()}

    def packed(self, raw: Raw) -> list[mx.array]:
        """Weight, scales and, of affine, biases, as `mx.dequantize` takes them."""
        dtype = self.blocks[0].scales.tensor.dtype
        rest = [to_mlx(raw[kind], dtype) for kind in ("scales", "biases") if kind in raw]
        return [mx.array(raw["weight"]), *rest]

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        """Dequantized as a network of `dtype` does it."""
        q, (weight, *rest) = self.quantization, self.packed(raw)
        if q.mode == "affine":
            rest = [array.astype(getattr(mx, dtype)) for array in rest]
        made = mx.dequantize(weight, *rest, group_size=q.group_size, bits=q.bits, mode=q.mode)
        return made.astype(mx.float32) * mx.array(raw["factors"])[:, None] if "factors" in raw else made


@dataclass(frozen=True)
class Factors:
    """The global scales of a Packed that is kept as it is, as a parameter of its own: [experts], or a number a row."""

    of: Packed
    shape: tuple[int, ...]

    quantization = None

    @property
    def parts(self) -> tuple[Stored, ...]:
        return tuple(block.factor for block in self.of.blocks)

    def read(self, reader: Reader, first: int, last: int) -> Raw:
        rows = np.concatenate([block.factors(reader) for block in self.of.blocks])
        count = math.prod(self.shape)
        return {"weight": rows[:: rows.size // count].reshape(row_count(self.shape), -1)[first:last]}

    def floats(self, raw: Raw, dtype: str) -> mx.array:
        return mx.array(raw["weight"])


Weight = Plain | Packed | Factors


def nbytes(weight: Weight) -> int:
    """Of all its tensors."""
    return sum(part.tensor.nbytes for part in weight.parts)
