"""A checkpoint's folder: its JSON files, and where each tensor lies. Reads headers, never a weight.

safetensors: eight bytes of header length, a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound

INDEX = "model.safetensors.index.json"
ITEM = {"F64": 8, "I64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1}  # bytes
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True)
class Tensor:
    file: Path
    dtype: str  # in safetensors' words: F32, BF16, U32 …
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    nbytes: int


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def read_json(path: Path) -> Any:
    """FileNotFoundError without the file, ValueError if it is not JSON; both name it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing: need a folder with a DiffusionGemma checkpoint") from None
    except ValueError as error:  # of the encoding, or of JSON
        raise Mistake(f"{path} is not JSON ({error}): fetch the file again (is it a Git LFS pointer?)") from None


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. ValueError if the file is damaged or shorter than it says."""
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
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {}
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            tensors[name] = Tensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + first, last - first)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{path} has a damaged header: {error}") from None
    for name, tensor in tensors.items():
        needed = math.prod(tensor.shape) * ITEM.get(tensor.dtype, 0)
        if needed not in (0, tensor.nbytes):
            raise Mistake(
                f"{path}: tensor {name} has {tensor.nbytes} bytes, its shape {list(tensor.shape)} needs {needed}"
            )
        if tensor.start + tensor.nbytes > size:
            raise Mistake(
                f"{path} is truncated: tensor {name} ends at byte {tensor.start + tensor.nbytes}, the file has {size}; "
                "fetch it again"
            )
    return tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, vision included, by name. Errors name the tensor and the file."""
    index = folder / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map", {})
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise NotFound(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; fetch the checkpoint again")
    else:
        weight_map = {}
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
    """config.json and, where there is one, generation_config.json."""
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if not isinstance(config, dict):
        raise Mistake(f"{folder / 'config.json'} holds no JSON object")
    return config, read_json(generation) if generation.exists() else config.get("generation_config")
