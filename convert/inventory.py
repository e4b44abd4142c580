"""A checkpoint's folder -> the weight of each parameter. Every tensor belongs to one, or is dropped on purpose."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..checkpoint import inside, parameters
from ..checkpoint.config import ModelConfig, parse_config
from ..checkpoint.folder import Tensor, adapter_files, read_configs, read_tensors
from ..checkpoint.names import DROPPED, GLOBAL_SCALE, MODELOPT_EXPERT, is_vision
from ..checkpoint.tied import without_copies
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
    dropped: tuple[str, ...]  # names of tensors, and of files of adapters, that nothing is made of


def read_source(folder: Path, text_only: bool) -> Source:
    """Read the headers. Mistake: the folder is not a whole DiffusionGemma checkpoint, or a link leads out of it."""
    inside.check(folder)
    stored, generation = read_configs(folder)
    config = _without_modelopt(folder, stored)
    model = parse_config(config, generation)
    tensors, copies = without_copies(read_tensors(folder))
    left_out = [name for name in tensors if name.endswith(DROPPED) or (text_only and is_vision(name))]
    for name in left_out:
        del tensors[name]
    weights = {name: Weight.plain(tensors.pop(name)) for name in list(tensors) if is_vision(name)}
    network = Network(model)  # its arrays are lazy: shapes that take no memory
    shapes = {path: tuple(array.shape) for path, array in tree_flatten(network.parameters())}
    layers = linears(network)
    names = [path.removesuffix(".weight") for path in shapes]
    widths = {path: shapes[f"{path}.weight"][-1] for path in names if path in layers}
    experts = _modelopt_experts(tensors, shapes)
    stand_ins = {path: Tensor(path, folder / "experts", "F32", shapes[path], 0, 0) for path in experts}
    parameters.quantize_where_stored(layers, model, tensors)
    matched = match(network, tensors | stand_ins)
    for path, shape in shapes.items():
        weights[path] = experts.get(path) or _weight(path, shape, matched, layers.get(path.removesuffix(".weight")))
    return Source(config, model, weights, widths, tuple(sorted([*left_out, *copies, *adapter_files(folder)])))


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
    names = {name: match["experts"] for name in tensors if (match := MODELOPT_EXPERT.fullmatch(name))}
    stored = {name: tensors.pop(name) for name in names}
    expected, prefixes = {}, {}
    for path, projections in product(sorted(set(names.values())), (("gate", "up"), ("down",))):
        weight = f"{path}.{'_'.join(projections)}_proj.weight"
        count, out, width = shapes.get(weight, (0, 0, 0))
        rows = out // len(projections)
        prefixes[weight] = [f"{path}.{i}.{name}_proj" for i, name in product(range(count), projections)]
        for prefix in prefixes[weight]:
            expected[f"{prefix}.weight"] = (rows, width // 2), ("U8",)
            expected[f"{prefix}.weight_scale"] = (rows, width // 16), ("F8_E4M3",)
            scalar = stored.get(f"{prefix}.{GLOBAL_SCALE}")  # [] and [1] are the same
            expected[f"{prefix}.{GLOBAL_SCALE}"] = scalar.shape if scalar and scalar.nbytes == 4 else (), ("F32",)
    parts = parameters.match(expected, stored)
    experts = {}
    for weight, singles in prefixes.items():
        rows = math.prod(shapes[weight][:-1]) // len(singles)
        kinds = ("weight", "weight_scale", None, GLOBAL_SCALE)
        blocks = (Block(rows, *(parts.get(f"{single}.{kind}") for kind in kinds)) for single in singles)
        experts[weight] = Weight(shapes[weight], NVFP4, tuple(blocks))
    return experts
