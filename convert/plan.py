"""What is to be written, from headers alone: every tensor, its file and its place in it, before a weight is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.config import DEFAULT_ROPE, ModelConfig, Quantization, parse_config
from ..checkpoint.folder import ITEM
from ..checkpoint.names import GLOBAL_SCALE, is_vision, published_name, weight_class
from ..errors import Mistake
from ..mlx_backend.layers import Linear
from ..mlx_backend.network import Network
from .inventory import read_source
from .recipes import Recipe, entries
from .source import FLOATS, Factors, Packed, Weight, nbytes, row_count

SHARD = 5_000_000_000  # bytes a file of weights may have


@dataclass(frozen=True)
class Output:
    name: str
    dtype: str  # in safetensors' words
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Job:
    """One parameter of the source, and what is made of it: itself, or weight, scales and biases."""

    path: str
    weight: Weight
    dtype: str | None  # that its floats are cast to, in MLX's words; None: every byte is kept
    quantization: Quantization | None
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def source_bytes(self) -> int:
        return nbytes(self.weight)

    @property
    def rows(self) -> int:
        return row_count(self.weight.shape)

    @property
    def where(self) -> str:
        return self.weight.parts[0].where


@dataclass(frozen=True)
class Plan:
    source: Path
    config: dict[str, Any]  # config.json, to be written
    model: ModelConfig  # what it says
    shards: tuple[tuple[Job, ...], ...]
    undivided: tuple[str, ...]  # a line for each layer that the recipe wanted quantized and that stays as it is
    dropped: tuple[str, ...]  # the source's tensors that nothing is made of
    metadata: Mapping[str, str]  # of every file

    @property
    def jobs(self) -> list[Job]:
        return [job for shard in self.shards for job in shard]

    @property
    def files(self) -> list[str]:
        count = len(self.shards)
        numbered = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
        return numbered if count > 1 else ["model.safetensors"]

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)

    @property
    def text_bytes(self) -> int:
        return sum(job.nbytes for job in self.jobs if not is_vision(job.path))

    @property
    def source_bytes(self) -> int:
        return sum(job.source_bytes for job in self.jobs)

    @property
    def parameters(self) -> int:
        return sum(math.prod(job.weight.shape) for job in self.jobs if not isinstance(job.weight, Factors))

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters

    @property
    def sources(self) -> list[Path]:
        return sorted({part.tensor.file for job in self.jobs for part in job.weight.parts})

    @property
    def fingerprint(self) -> str:
        """Another one: the files that are there already were made from other weights, or otherwise."""
        outputs = [[asdict(output) for job in shard for output in job.outputs] for shard in self.shards]
        sources = [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in self.sources]
        told = [self.config, outputs, sources, dict(self.metadata), mx.__version__]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


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


def _layers(config: ModelConfig) -> dict[str, int]:
    """Path of every layer that can be quantized -> the width of its rows."""
    network = Network(config)  # whose arrays are lazy: shapes, no memory
    modules = dict(network.named_modules())
    paths = (path.removesuffix(".weight") for path, _ in tree_flatten(network.parameters()))
    return {path: modules[path].weight.shape[-1] for path in paths if isinstance(modules.get(path), Linear)}


def _outputs(path: str, weight: Weight, quantization: Quantization | None, dtype: str) -> tuple[Output, ...]:
    def output(name: str, kind: str, width: int) -> Output:
        own = (*weight.shape[:-1], width)
        return Output(name, kind, own, math.prod(own) * ITEM[kind])

    if quantization is None:
        return (Output(path, FLOATS[dtype], weight.shape, math.prod(weight.shape) * ITEM[FLOATS[dtype]]),)
    layer, width = path.removesuffix(".weight"), weight.shape[-1]
    affine, groups = quantization.mode == "affine", width // quantization.group_size
    kind = FLOATS[dtype] if affine else "U8"
    packed = output(path, "U32", width * quantization.bits // 32)
    scales, biases = output(f"{layer}.scales", kind, groups), output(f"{layer}.biases", kind, groups)
    return (packed, scales, biases) if affine else (packed, scales)


def _jobs(path: str, weight: Weight, quantization: Quantization | None, dtype: str) -> list[Job]:
    if is_vision(path):
        t = weight.stored.tensor
        return [Job(path, weight, None, None, (Output(path, t.dtype, t.shape, t.nbytes),))]
    made = [Job(path, weight, dtype, quantization, _outputs(path, weight, quantization, dtype))]
    kept = isinstance(weight, Packed) and weight.quantization == quantization
    if kept and weight.blocks[0].factor:
        count, out = weight.shape[:2]
        # One a row where gate and up have their own, else one an expert.
        each = sum(math.prod(block.factor.tensor.shape) for block in weight.blocks)
        factors = Factors(weight, (count,) if each == count else (count, out))
        name = f"{path.removesuffix('.weight')}.{GLOBAL_SCALE}"
        made.append(Job(name, factors, "float32", None, _outputs(name, factors, None, "float32")))
    return made


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


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for. No `recipe`: every layer stays as it is; no `default`: nothing is quantized anew."""

    recipe: Callable[[list[str]], Recipe] | None = None
    default: Quantization | None = None  # of layers that config.json does not name
    dequantize: bool = False
    dtype: str | None = None  # None: the checkpoint's
    text_only: bool = False
    shard_bytes: int = SHARD


def plan(folder: Path, wish: Wish) -> Plan:
    """Mistake: the source is not a whole DiffusionGemma checkpoint, or what is wished cannot be made of it."""
    stored, config, weights, dropped = read_source(folder, wish.text_only)
    dtype = wish.dtype or config.dtype
    if dtype not in FLOATS:
        raise Mistake(f"config.json: dtype {dtype} is not one we write; give --dtype, one of {', '.join(FLOATS)}")
    widths, undivided = _layers(config), []
    layers = {path: weights[f"{path}.weight"].quantization for path in widths}
    if wish.dequantize:
        layers = dict.fromkeys(layers)
    elif wish.recipe:
        recipe = wish.recipe(list(widths))
        for path, width in widths.items():
            wanted = recipe(path)
            if wanted and width % wanted.group_size:
                undivided.append(
                    f"{path} stays unquantized: groups of {wanted.group_size} do not divide its rows of {width}"
                )
                wanted = None
            layers[path] = wanted
    jobs = [
        job
        for path, weight in weights.items()
        for job in _jobs(path, weight, layers.get(path.removesuffix(".weight")), dtype)
    ]
    if wish.dequantize:
        jobs = [_published(job) for job in jobs]
    # The disk is read from front to back.
    jobs.sort(key=lambda job: (job.weight.parts[0].tensor.file, job.weight.parts[0].tensor.start, job.path))
    written = hub_config(stored, config, dtype)
    if wish.text_only:
        written["vision_config"] = None
    default = wish.default or config.quantization or next(filter(None, layers.values()), None)
    if any(layers.values()):
        written["quantization"] = written["quantization_config"] = entries(default, layers)
    metadata = {"format": "pt" if wish.dequantize else "mlx"}
    shards = _shards(jobs, wish.shard_bytes)
    return Plan(folder, written, parse_config(written), shards, tuple(undivided), tuple(dropped), metadata)


def _published(job: Job) -> Job:
    name = published_name(job.path)
    outputs = tuple(Output(published_name(o.name), o.dtype, o.shape, o.nbytes) for o in job.outputs)
    return Job(name, job.weight, job.dtype, job.quantization, outputs)


def classes(plan: Plan) -> dict[str, list[tuple[int, Job]]]:
    """Class of weights -> its jobs, with their numbers."""
    found: dict[str, list[tuple[int, Job]]] = defaultdict(list)
    for index, job in enumerate(plan.jobs):
        found[weight_class(job.path)].append((index, job))
    return found
