"""A checkpoint's folder -> the weight of each parameter, strictly: every tensor is one's, or dropped on purpose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.config import ModelConfig, parse_config
from ..checkpoint.folder import Tensor, read_configs, read_tensors
from ..checkpoint.names import GLOBAL_SCALE, MODELOPT_EXPERT, is_dropped, is_vision
from ..errors import Mistake
from ..mlx_backend.layers import Linear
from ..mlx_backend.network import Network
from ..mlx_backend.weights import match, quantize_where_stored
from .source import NVFP4, Block, Packed, Plain, Stored, Weight, row_count


def _without_modelopt(folder: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """config.json without NVIDIA's entry; the tensors say the rest. Mistake if it is another format of theirs."""
    found = stored.get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") != "modelopt":
        return stored
    algorithm = found.get("quant_algo", "NVFP4")
    if algorithm not in ("NVFP4", "W4A16_NVFP4"):
        raise Mistake(f"{folder / 'config.json'}: quant_algo {algorithm!r} of modelopt cannot be read, only NVFP4")
    return {k: v for k, v in stored.items() if k != "quantization_config"}


def _check_whole(tensors: Mapping[str, Tensor]) -> None:
    """The tensors of a file lie in it without a gap and without an overlap, to its end, as the format demands."""
    files: dict[Path, list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in tensors.items():
        files[tensor.file].append((tensor.start, tensor.nbytes, name))
    for file, places in files.items():
        places.sort()
        position = places[0][0]
        for start, size, name in places:
            if start != position:
                raise Mistake(f"{file} has a damaged header: tensor {name} is at {start}, need {position}")
            position += size
        if file.stat().st_size != position:
            raise Mistake(f"{file} has {file.stat().st_size} bytes, its header tells of {position}; fetch it again")


def _modelopt_experts(tensors: dict[str, Tensor], expected: Mapping[str, mx.array]) -> dict[str, Packed]:
    """Takes the experts that are stored one by one out of `tensors`. Mistake names what is missing or misshapen."""
    found: dict[tuple[str, int, str], dict[str, Stored]] = defaultdict(dict)
    for name in list(tensors):
        if hit := MODELOPT_EXPERT.fullmatch(name):
            key = (hit["experts"], int(hit["expert"]), hit["projection"])
            found[key][hit["kind"]] = Stored(name, tensors.pop(name))
    made = {}
    for experts in sorted({key[0] for key in found}):
        for fused, projections in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            path = f"{experts}.{fused}.weight"
            if path not in expected:
                raise Mistake(f"tensors {experts}.* are not part of this model")
            count, out, width = shape = expected[path].shape
            rows, blocks = out // len(projections), []
            for expert in range(count):
                for projection in projections:
                    parts = found.pop((experts, expert, projection), {})
                    blocks.append(_block(f"{experts}.{expert}.{projection}_proj", parts, rows, width))
            made[path] = Packed(shape, NVFP4, tuple(blocks))
    for experts, expert, projection in found:
        raise Mistake(f"tensors {experts}.{expert}.{projection}_proj.* are not part of this model")
    return made


def _block(prefix: str, parts: Mapping[str, Stored], rows: int, width: int) -> Block:
    needed = {
        "weight": ("U8", (rows, width // 2)),
        "weight_scale": ("F8_E4M3", (rows, width // 16)),
        GLOBAL_SCALE: ("F32", ()),
    }
    for kind, (dtype, shape) in needed.items():
        if kind not in parts:
            raise Mistake(f"tensor {prefix}.{kind} is missing from the checkpoint")
        tensor = parts[kind].tensor
        found = tensor.shape if kind != GLOBAL_SCALE or tensor.nbytes != 4 else ()  # [] and [1] are the same
        if (tensor.dtype, found) != (dtype, shape):
            raise Mistake(f"{parts[kind].where} is {tensor.dtype} {list(tensor.shape)}, need {dtype} {list(shape)}")
    return Block(rows, parts["weight"], parts["weight_scale"], None, parts[GLOBAL_SCALE])


def read_source(folder: Path, text_only: bool) -> tuple[dict, ModelConfig, dict[str, Weight], list[str]]:
    """config.json, what it says, the weight of each parameter, and the names of what is dropped."""
    stored, generation = read_configs(folder)
    stored = _without_modelopt(folder, stored)
    config = parse_config(stored, generation)
    tensors = read_tensors(folder)
    _check_whole(tensors)
    dropped = {name for name in tensors if is_dropped(name) or (text_only and is_vision(name))}
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    text = {name: tensor for name, tensor in kept.items() if not is_vision(name)}
    network = Network(config)  # whose arrays are lazy: shapes, no memory
    expected = dict(tree_flatten(network.parameters()))
    weights: dict[str, Weight] = dict(_modelopt_experts(text, expected))
    stand_ins = {path: Tensor(folder / "experts", "F32", tuple(expected[path].shape), 0, 0) for path in weights}
    quantize_where_stored(network, config, text)
    paths = match(network, {**text, **stand_ins})
    modules = dict(network.named_modules())
    for path, array in expected.items():
        if path in weights:
            continue
        module = modules.get(path.removesuffix(".weight"))
        parts = {
            kind: paths.get(f"{path.removesuffix('.weight')}.{kind}") for kind in ("scales", "biases", GLOBAL_SCALE)
        }
        parts = {kind: Stored(*found) for kind, found in parts.items() if found and isinstance(module, Linear)}
        own = Stored(*paths[path])
        if parts:
            block = Block(row_count(array.shape), own, parts["scales"], parts.get("biases"), parts.get(GLOBAL_SCALE))
            weights[path] = Packed(tuple(array.shape), module.quantization, (block,))
        else:
            weights[path] = Plain(own)
    vision = {name: Plain(Stored(name, tensor)) for name, tensor in kept.items() if is_vision(name)}
    return stored, config, weights | vision, sorted(dropped)
