"""A checkpoint's tensors, one after another, into safetensors files: planned, read in pieces, quantized, written.

The plan is made from headers, and with it every place in every file is known before a weight is read: a piece goes
where it belongs, and nothing larger than a piece is in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoint import INDEX, ITEM, Tensor, read_configs, read_tensors
from ..config import DEFAULT_ROPE, ModelConfig, Quantization, parse_config
from ..mistake import Mistake
from ..mlx_backend.layers import Linear
from ..mlx_backend.network import Network
from ..mlx_backend.weights import match
from .names import is_vision
from .recipes import Recipe, entries

SHARD = 5_000_000_000  # bytes a file of weights may have
PIECE = 64_000_000  # bytes of a source tensor that are in memory at a time, if a row has no more
FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # ours and MLX's word -> safetensors'


@dataclass(frozen=True)
class Output:
    name: str
    dtype: str  # in safetensors' words
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Job:
    """One tensor of the source, and what is made of it: itself, or weight, scales and biases."""

    name: str
    tensor: Tensor
    dtype: str | None  # that its floats are cast to, in MLX's words; None: kept as they are
    quantization: Quantization | None
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def where(self) -> str:
        return f"tensor {self.name} in {self.tensor.file.name}"


@dataclass(frozen=True)
class Plan:
    config: dict[str, Any]  # config.json, to be written
    shards: tuple[tuple[Job, ...], ...]
    undivided: tuple[str, ...]  # a line for each layer that the recipe wanted quantized and that stays as it is

    @property
    def jobs(self) -> list[Job]:
        return [job for shard in self.shards for job in shard]

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)

    @property
    def source_bytes(self) -> int:
        return sum(job.tensor.nbytes for job in self.jobs)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / sum(math.prod(job.tensor.shape) for job in self.jobs)


def hub_config(stored: Mapping[str, Any], config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json in the hub's layout, whichever one `stored` has; `config` is what `stored` says.

    Mistake names a layer whose heads that layout cannot express: it knows one kind for all sliding layers and one
    for all full layers.
    """
    text = {k: v for k, v in stored["text_config"].items() if k not in ("per_layer_config", "torch_dtype")}
    full = next(layer for layer in config.layers if not layer.sliding)  # there is one: the last layer is full
    sliding = next((layer for layer in config.layers if layer.sliding), full)
    ropes = text.get("rope_parameters") or {}
    text |= {
        "head_dim": sliding.head_dim,
        "num_key_value_heads": sliding.num_key_value_heads,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_key_value_heads,
        "layer_types": ["sliding_attention" if layer.sliding else "full_attention" for layer in config.layers],
        "rope_parameters": {kind: ropes.get(kind) or default for kind, default in DEFAULT_ROPE.items()},
        "final_logit_softcapping": config.final_logit_softcapping,
        "dtype": dtype,
    }
    dropped = ("torch_dtype", "_name_or_path", "quantization", "quantization_config")
    result = {k: v for k, v in stored.items() if k not in dropped} | {
        "canvas_length": config.canvas_length,
        "eos_token_id": stored.get("eos_token_id") or list(config.stop_ids),
        "tie_word_embeddings": True,
        "dtype": dtype,
        "text_config": text,
    }
    vision = stored.get("vision_config") or {}
    rope = vision.get("rope_parameters") or {}
    if rope.get("rope_type") == "axial":  # transformers 5.23's name for it, as which it also reads the hub's
        result["vision_config"] = {**vision, "rope_parameters": {**rope, "rope_type": "default"}}
    for index, (ours, theirs) in enumerate(zip(config.layers, parse_config(result).layers, strict=True)):
        if ours != theirs:
            raise Mistake(
                f"config.json: layer {index} has {ours.num_key_value_heads} key-value heads of {ours.head_dim}, others "
                f"of its kind not ({theirs.num_key_value_heads} of {theirs.head_dim}); the hub's layout cannot say it"
            )
    return result


def _recipe_of_layers(network: Network, recipe: Recipe) -> tuple[dict[str, Quantization | None], list[str]]:
    """The recipe for every layer that can be quantized, and a line for each whose rows its groups do not divide."""
    layers, undivided, modules = {}, [], dict(network.named_modules())
    for path in (path.removesuffix(".weight") for path, _ in tree_flatten(network.parameters())):
        module = modules.get(path)
        if isinstance(module, Linear):
            wanted, width = recipe(path), module.weight.shape[-1]
            if wanted and width % wanted.group_size:
                undivided.append(
                    f"{path} stays unquantized: groups of {wanted.group_size} do not divide its rows of {width}"
                )
                wanted = None
            layers[path] = wanted
    return layers, undivided


def _outputs(path: str, shape: tuple[int, ...], quantization: Quantization | None, dtype: str) -> tuple[Output, ...]:
    def output(name: str, kind: str, width: int) -> Output:
        own = (*shape[:-1], width)
        return Output(name, kind, own, math.prod(own) * ITEM[kind])

    if quantization is None:
        return (output(path, FLOATS[dtype], shape[-1]),)
    layer, groups = path.removesuffix(".weight"), shape[-1] // quantization.group_size
    return (
        output(path, "U32", shape[-1] * quantization.bits // 32),
        output(f"{layer}.scales", FLOATS[dtype], groups),
        output(f"{layer}.biases", FLOATS[dtype], groups),
    )


def _shards(jobs: list[Job], limit: int) -> tuple[tuple[Job, ...], ...]:
    shards: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if shards[-1] and size + job.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.nbytes
    return tuple(map(tuple, shards))


def plan(folder: Path, recipe: Recipe, default: Quantization | None, dtype: str | None, shard: int = SHARD) -> Plan:
    """From headers alone. `default` is for layers that config.json does not name; `dtype` None: the checkpoint's.

    Raises:
        Mistake: the source is not a whole DiffusionGemma checkpoint that is not yet quantized.
    """
    stored, generation = read_configs(folder)
    config = parse_config(stored, generation)
    if config.quantization or config.quantized_paths:
        raise Mistake(f"{folder} is quantized already: need the original checkpoint")
    dtype = dtype or config.dtype
    if dtype not in FLOATS:
        raise Mistake(f"config.json: dtype {dtype} is not one we write; give --dtype, one of {', '.join(FLOATS)}")
    tensors, network = read_tensors(folder), Network(config)  # whose arrays are lazy: shapes, no memory
    paths = match(network, {name: tensor for name, tensor in tensors.items() if not is_vision(name)})
    layers, undivided = _recipe_of_layers(network, recipe)
    jobs = [
        Job(name, tensors[name], dtype, q, _outputs(path, tensors[name].shape, q, dtype))
        for path, (name, _) in paths.items()
        for q in [layers.get(path.removesuffix(".weight"))]
    ]
    for name in filter(is_vision, tensors):
        tensor = tensors[name]
        jobs.append(Job(name, tensor, None, None, (Output(name, tensor.dtype, tensor.shape, tensor.nbytes),)))
    jobs.sort(key=lambda job: (job.tensor.file, job.tensor.start))  # the disk is read from front to back
    written = hub_config(stored, config, dtype)
    if default is not None:
        written["quantization"] = written["quantization_config"] = entries(default, layers)
    return Plan(written, _shards(jobs, shard), tuple(undivided))


def _read(job: Job, first: int, last: int) -> np.ndarray:
    """Bytes [first, last) of the tensor."""
    raw = np.fromfile(job.tensor.file, np.uint8, last - first, offset=job.tensor.start + first)
    if raw.size < last - first:
        raise Mistake(f"{job.tensor.file} is truncated: {job.where} ends early; fetch it again")
    return raw


def _floats(raw: np.ndarray, dtype: str) -> mx.array:
    if dtype == "BF16":
        return mx.array(raw.view(np.uint16)).view(mx.bfloat16)
    return mx.array(raw.view(np.float32 if dtype == "F32" else np.float16))


def _finite(raw: np.ndarray, dtype: str) -> bool:
    """Looks at exponents: MLX's isfinite on the CPU takes longer than its quantize."""
    if dtype == "F32":
        return bool(np.isfinite(raw.view(np.float32)).all())
    return (raw.view(np.uint16) & 0x7FFF).max(initial=0) < (0x7F80 if dtype == "BF16" else 0x7C00)


def _convert(job: Job, raw: np.ndarray) -> list[np.ndarray]:
    """Rows of the source -> the same rows of every output."""
    if job.tensor.dtype not in FLOATS.values():
        return [raw]
    if not _finite(raw, job.tensor.dtype):
        raise Mistake(f"{job.where} holds NaN or Inf; fetch it again")
    array = _floats(raw, job.tensor.dtype)
    if job.dtype:
        array = array.astype(getattr(mx, job.dtype))
    if job.dtype == "float16" and job.tensor.dtype != "F16" and not mx.isfinite(array).all().item():
        raise Mistake(f"{job.where} has values too large for float16; try --dtype bfloat16")
    arrays = [array]
    if q := job.quantization:
        rows = array.reshape(-1, job.tensor.shape[-1])
        arrays = mx.quantize(rows, group_size=q.group_size, bits=q.bits, mode=q.mode)
    mx.eval(arrays)  # per piece, so that no graph holds more than one
    return [np.asarray(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a) for a in arrays]


def _pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Bytes [first, last) of whole entries along the first axis (experts, words, rows): groups never cross one."""
    entry = tensor.nbytes // max(tensor.shape[0], 1) if tensor.shape else tensor.nbytes
    step = max(PIECE // max(entry, 1), 1) * entry
    edges = [*range(0, tensor.nbytes, step or 1), tensor.nbytes]
    yield from pairwise(edges)


def _header(jobs: tuple[Job, ...]) -> tuple[bytes, dict[str, int]]:
    """The start of a safetensors file, and where in the file each tensor's bytes begin."""
    outputs = [output for job in jobs for output in job.outputs]
    outputs.sort(key=lambda o: (-ITEM.get(o.dtype, 0), o.name))  # wide ones first: every tensor is aligned
    table: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for output in outputs:
        offsets = [end, end := end + output.nbytes]
        table[output.name] = {"dtype": output.dtype, "shape": output.shape, "data_offsets": offsets}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {o.name: start + table[o.name]["data_offsets"][0] for o in outputs}


def write_shard(path: Path, jobs: tuple[Job, ...]) -> Iterator[int]:
    """Bytes of the source, each time some were worked off."""
    header, places = _header(jobs)
    with path.open("xb") as file:
        file.write(header)
        for job in jobs:
            for first, last in _pieces(job.tensor):
                for output, part in zip(job.outputs, _convert(job, _read(job, first, last)), strict=True):
                    file.seek(places[output.name])
                    file.write(np.ascontiguousarray(part))
                    places[output.name] += part.nbytes
                yield last - first
            mx.clear_cache()  # the next tensor's pieces have other sizes


def write(plan: Plan, folder: Path) -> Iterator[int]:
    """config.json, the weights and their index. Yields as `write_shard` does."""
    (folder / "config.json").write_text(json.dumps(plan.config, indent=4, sort_keys=True) + "\n")
    count = len(plan.shards)
    weight_map = {}
    for number, jobs in enumerate(plan.shards, 1):
        name = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        yield from write_shard(folder / name, jobs)
        weight_map |= {output.name: name for job in jobs for output in job.outputs}
    index = {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=4) + "\n")
