"""A checkpoint's folder: its JSON files, and where each tensor lies. It reads headers, never a weight.

A safetensors file is eight bytes of header length, a JSON header, then the tensors' bytes.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound

FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # MLX's and torch's name -> safetensors'
INDEX = "model.safetensors.index.json"
ITEM = {"F64": 8, "I64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1}  # bytes
Place = tuple[str, Sequence[int], Sequence[int]]  # dtype as safetensors names it, shape, bytes from the header's end
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file."""

    name: str
    file: Path
    dtype: str  # safetensors' name: F32, BF16, U32 …
    shape: tuple[int, ...]
    start: int  # byte of the file where it begins
    nbytes: int

    @property
    def where(self) -> str:
        return f"tensor {self.name} in {self.file.name}"


def read_json(path: Path) -> Any:
    """Parse a JSON file. NotFound if it is missing, Mistake if it is not JSON; both name it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing: need a folder with a DiffusionGemma checkpoint") from None
    except (ValueError, RecursionError) as error:  # of the encoding, or of JSON
        raise Mistake(f"{path} is not JSON ({error}): fetch the file again (is it a Git LFS pointer?)") from None


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file by name. Mistake if it is damaged or shorter than its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER
            header = file.read(length) if length < min(size, _MAX_HEADER) else b""
    except FileNotFoundError:
        raise NotFound(f"{path} is missing: fetch the checkpoint again") from None
    if not header or len(header) < length:
        raise Mistake(f"{path} is truncated or no safetensors file: {size} bytes and no whole header")
    tensors = {}
    try:
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                start = 8 + length + first
                tensors[name] = Tensor(name, path, entry["dtype"], tuple(entry["shape"]), start, last - first)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{path} has a damaged header: {error}") from None
    _check_places(path, tensors, 8 + length, size)
    return tensors


def _check_places(path: Path, tensors: Mapping[str, Tensor], position: int, size: int) -> None:
    """Raise Mistake unless the tensors fill a file of `size` bytes from `position` to its end, without a gap."""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        name, shape, nbytes = tensor.name, list(tensor.shape), tensor.nbytes
        needed = math.prod(shape) * ITEM.get(tensor.dtype, 0)
        if needed not in (0, nbytes):
            raise Mistake(f"{path}: tensor {name} has {nbytes} bytes, its shape {shape} needs {needed}")
        if tensor.start != position:
            raise Mistake(f"{path} has a damaged header: tensor {name} is at {tensor.start}, need {position}")
        position += nbytes
        if position > size:
            raise Mistake(f"{path} is truncated: tensor {name} ends at byte {position} of {size}; fetch it again")
    if position != size:
        raise Mistake(f"{path} has {size} bytes, its header tells of {position}; fetch it again")


def file_start(tensors: Mapping[str, Place], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes that precede the tensors in a safetensors file: the header with its length."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape, offsets) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return struct.pack("<Q", len(text)) + text


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, vision included, by name. Errors name the tensor and the file."""
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map", {}) if index.exists() else {}
    files = [folder / name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.exists()]:
        raise NotFound(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; fetch the checkpoint again")
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise NotFound(f"{folder} has no weights: need model.safetensors, or shards and {INDEX}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise Mistake(f"tensor {name} is in {tensors[name].file.name} and in {file.name}")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors:
            raise Mistake(f"tensor {name} is not in {file}, where {INDEX} says it is")
    return tensors


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return config.json and, if there is one, generation_config.json, parsed."""
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if not isinstance(config, dict):
        raise Mistake(f"{folder / 'config.json'} holds no JSON object")
    return config, read_json(generation) if generation.exists() else config.get("generation_config")
