"""A checkpoint's folder: its JSON files, and where each tensor lies. It reads headers, never a weight.

A safetensors file is eight bytes of header length, a JSON header, then the tensors' bytes.
"""

import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound
from .description import INDEX as INDEX_SCHEMA
from .description import Schema, check, check_depth

FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # MLX's and torch's name -> safetensors'
INDEX = "model.safetensors.index.json"
_FOREIGN = (".gguf", ".bin", ".pt", ".pth")  # weights in other formats
ITEM = {  # dtype -> bytes
    **dict.fromkeys(["F64", "I64", "U64"], 8),
    **dict.fromkeys(["F32", "I32", "U32"], 4),
    **dict.fromkeys(["BF16", "F16", "I16", "U16"], 2),
    **dict.fromkeys(["BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"], 1),
}
Place = tuple[str, Sequence[int], Sequence[int]]  # dtype as safetensors names it, shape, bytes from the header's end
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character, in JSON: wrong where the other half is missing
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


def is_file(path: Path) -> bool:
    """Return whether there is such a file. Mistake if something else has its name: reading a pipe may never end."""
    if not path.is_file() and os.path.lexists(path):
        raise Mistake(f"{path} is no file that can be read: fetch it again")
    return path.is_file()


def read_bytes(path: Path) -> bytes:
    """Read a small file. NotFound if it is missing, Mistake if it cannot be read or is none; both name it."""
    if not is_file(path):
        raise NotFound(f"{path} is missing: need a folder with a DiffusionGemma checkpoint")
    try:
        if (size := path.stat().st_size) > _MAX_HEADER:
            raise Mistake(f"{path} has {size} bytes, and at most {_MAX_HEADER} are read: fetch it again")
        return path.read_bytes()
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path, schema: Schema | None = None) -> Any:
    """Parse a JSON file. NotFound if it is missing, Mistake if it is not JSON or not as `schema` describes it."""
    data = read_bytes(path)
    try:
        value = _parse(data)
    except (ValueError, RecursionError) as error:  # of the encoding, or of JSON
        raise Mistake(f"{path} is not JSON ({error}): fetch the file again (is it a Git LFS pointer?)") from None
    if schema is None:
        check_depth(value, str(path))
    else:
        check(value, schema, str(path))
    return value


def _parse(data: bytes) -> Any:
    """Parse JSON as every program reads it: without NaN, and without half a character. ValueError, RecursionError."""
    value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)
    if _HALF.search(data):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file by name. Mistake if it is damaged or shorter than its header says."""
    if not is_file(path):
        raise NotFound(f"{path} is missing: fetch the checkpoint again")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER
            header = file.read(length) if length < min(size, _MAX_HEADER) else b""
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror}") from None
    if not header or len(header) < length:
        raise Mistake(f"{path} is truncated or no safetensors file: {size} bytes and no whole header")
    try:
        table = _parse(header)
        check_depth(table, "it")
        tensors = {name: _tensor(path, name, table[name], 8 + length) for name in table if name != "__metadata__"}
        if not all(isinstance(value, str) for value in (table.get("__metadata__") or {}).values()):  # MLX writes null
            raise ValueError("__metadata__ is no object of texts")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Mistake(f"{path} has a damaged header: {error}") from None
    _check_places(path, tensors, 8 + length, size)
    return tensors


def _tensor(path: Path, name: str, entry: Mapping[str, Any], start: int) -> Tensor:
    """Return an entry of a header that ends before byte `start`. ValueError, LookupError or TypeError: it is none."""
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(
        type(size) is int and 0 <= size < 2**48 for size in (*shape, first, last)
    ):
        raise ValueError(f"tensor {name} has a shape and offsets that are no sizes")
    if entry["dtype"] not in ITEM or last < first or len(entry) > 3:
        raise ValueError(f"tensor {name} has an unknown dtype or entry, or ends before it starts")
    return Tensor(name, path, entry["dtype"], tuple(shape), start + first, last - first)


def _check_places(path: Path, tensors: Mapping[str, Tensor], position: int, size: int) -> None:
    """Raise Mistake unless the tensors fill a file of `size` bytes from `position` to its end, without a gap."""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        name, shape, nbytes = tensor.name, list(tensor.shape), tensor.nbytes
        needed = math.prod(shape) * ITEM[tensor.dtype]
        if needed != nbytes:
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


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that lie in a folder. Hidden ones are none (macOS leaves ._NAME beside NAME on other
    file systems), nor are those of adapters."""
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("."))
    return [file for file in files if "adapter" not in file.name]


def adapter_files(folder: Path) -> list[str]:
    """Return the names of files of adapters that lie in a folder. They are not read."""
    return sorted(file.name for file in folder.glob("*adapter*.safetensors") if not file.name.startswith("."))


def _read_index(folder: Path) -> dict[str, str]:
    """Return which file each tensor is in. Mistake if a name leads out of the folder."""
    weight_map = read_json(folder / INDEX, INDEX_SCHEMA)["weight_map"]
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
        if not plain or name.startswith("."):
            raise Mistake(f"{folder / INDEX}: need the name of a file in the folder for {tensor:.80}, got {name!r:.80}")
    return weight_map


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, vision included, by name. Errors name the tensor and the file."""
    weight_map = _read_index(folder) if is_file(folder / INDEX) else {}
    files = [folder / name for name in sorted(set(weight_map.values()))] or weight_files(folder)
    if missing := [file.name for file in files if not os.path.lexists(file)]:
        names = f"{', '.join(missing):.200}"
        raise NotFound(f"{folder} lacks {names}, which {INDEX} names; fetch the checkpoint again")
    if not files:
        adapters = adapter_files(folder)
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _FOREIGN)
        only = f"no weights but {others[0]}, which is not read" if others else "no weights"
        only = f"only {', '.join(adapters)}, an adapter for a model that lies elsewhere" if adapters else only
        raise NotFound(f"{folder} has {only}: need model.safetensors, or shards and {INDEX}")
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
    return config, read_json(generation) if is_file(generation) else config.get("generation_config")
