"""A checkpoint's folder -> the weight of each parameter. Every tensor belongs to one, or is dropped on purpose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..checkpoint.config import ModelConfig, parse_config
from ..checkpoint.folder import Tensor, read_configs, read_tensors
from ..checkpoint.names import DROPPED, GLOBAL_SCALE, MODELOPT_EXPERT, is_vision
from ..checkpoint.parameters import quantize_where_stored
from ..errors import Mistake
from ..mlx_backend.layers import Linear
from ..mlx_backend.network import Network
from ..mlx_backend.weights import linears, match
from .source import NVFP4, Block, Weight, row_count


@dataclass(frozen=True)
class Source:
    config: dict[str, Any]  # config.json, without NVIDIA's entry
    model: ModelConfig
    weights: dict[str, Weight]  # by the parameter's path; vision tensors by their name
    widths: dict[str, int]  # path of each layer that can be quantized -> elements of a row
    dropped: tuple[str, ...]  # names of tensors that nothing is made of


def read_source(folder: Path, text_only: bool) -> Source:
    """Read the headers. Mistake: the folder is not a whole DiffusionGemma checkpoint."""
    stored, generation = read_configs(folder)
    config = _without_modelopt(folder, stored)
    model, tensors = parse_config(config, generation), read_tensors(folder)
    dropped = tuple(sorted(name for name in tensors if name.endswith(DROPPED) or (text_only and is_vision(name))))
    for name in dropped:
        del tensors[name]
    weights = {name: Weight.plain(tensors.pop(name)) for name in list(tensors) if is_vision(name)}
    network = Network(model)  # its arrays are lazy: shapes that take no memory
    shapes = {path: tuple(array.shape) for path, array in tree_flatten(network.parameters())}
    layers = linears(network)
    names = [path.removesuffix(".weight") for path in shapes]
    widths = {path: shapes[f"{path}.weight"][-1] for path in names if path in layers}
    experts = _modelopt_experts(tensors, shapes)
    stand_ins = {path: Tensor(path, folder / "experts", "F32", shapes[path], 0, 0) for path in experts}
    quantize_where_stored(layers, model, tensors)
    matched = match(network, tensors | stand_ins)
    for path, shape in shapes.items():
        weights[path] = experts.get(path) or _weight(path, shape, matched, layers.get(path.removesuffix(".weight")))
    return Source(config, model, weights, widths, dropped)


def _weight(path: str, shape: tuple[int, ...], matched: Mapping[str, Tensor], layer: Linear | None) -> Weight:
    if layer is None or layer.quantization is None:
        return Weight.plain(matched[path])
    kinds = ("weight", "scales", "biases", GLOBAL_SCALE)
    parts = [matched.get(f"{path.removesuffix('weight')}{kind}") for kind in kinds]
    return Weight(shape, layer.quantization, (Block(row_count(shape), *parts),))


def _without_modelopt(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json without NVIDIA's entry: the tensors say the rest. Mistake if it is not NVFP4."""
    entry = config.get("quantization_config")
    if not isinstance(entry, dict) or entry.get("quant_method") != "modelopt":
        return config
    algorithm = entry.get("quant_algo", "NVFP4")
    if algorithm not in ("NVFP4", "W4A16_NVFP4"):
        raise Mistake(f"{folder / 'config.json'}: quant_algo {algorithm!r} of modelopt cannot be read, only NVFP4")
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _modelopt_experts(tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight]:
    """Take the experts that are stored singly out of `tensors`. Mistake names what is missing or misshapen."""
    stored: dict[tuple[str, int, str], dict[str, Tensor]] = defaultdict(dict)
    for name in list(tensors):
        if match := MODELOPT_EXPERT.fullmatch(name):
            key = (match["experts"], int(match["expert"]), match["projection"])
            stored[key][match["kind"]] = tensors.pop(name)
    packed = {}
    for experts in sorted({key[0] for key in stored}):
        for fused, projections in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            path = f"{experts}.{fused}.weight"
            if path not in shapes:
                raise Mistake(f"tensors {experts}.* are not part of this model")
            count, out, width = shapes[path]
            blocks = []
            for expert, projection in product(range(count), projections):
                parts, prefix = stored.pop((experts, expert, projection), {}), f"{experts}.{expert}.{projection}_proj"
                blocks.append(_block(prefix, parts, out // len(projections), width))
            packed[path] = Weight(shapes[path], NVFP4, tuple(blocks))
    for experts, expert, projection in stored:
        raise Mistake(f"tensors {experts}.{expert}.{projection}_proj.* are not part of this model")
    return packed


def _block(prefix: str, parts: Mapping[str, Tensor], rows: int, width: int) -> Block:
    """Check the three tensors of one expert's projection."""
    needed = {"weight": ("U8", (rows, width // 2)), "weight_scale": ("F8_E4M3", (rows, width // 16))}
    for kind, (dtype, shape) in {**needed, GLOBAL_SCALE: ("F32", ())}.items():
        if kind not in parts:
            raise Mistake(f"tensor {prefix}.{kind} is missing from the checkpoint")
        tensor = parts[kind]
        scalar = kind == GLOBAL_SCALE and tensor.nbytes == 4  # [] and [1] are the same
        if tensor.dtype != dtype or not (scalar or tensor.shape == shape):
            raise Mistake(f"{tensor.where} is {tensor.dtype} {list(tensor.shape)}, need {dtype} {list(shape)}")
    return Block(rows, parts["weight"], parts["weight_scale"], None, parts[GLOBAL_SCALE])
