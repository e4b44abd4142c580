"""The plan of a conversion, from headers alone: every tensor to be written, how it is made, and its file."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.config import ModelConfig, Quantization, Recipe, parse_config
from ..checkpoint.folder import FLOATS, ITEM
from ..checkpoint.names import GLOBAL_SCALE, is_vision, published_name
from ..errors import Mistake
from .config import hub_config
from .inventory import Source, read_source
from .recipes import entries
from .source import Factors, Weight, row_count

SHARD = 5_000_000_000  # bytes that a file of weights may have


@dataclass(frozen=True)
class Request:
    """The user's request. Without `recipe` every layer stays as it is."""

    recipe: Callable[[list[str]], Recipe] | None = None  # from the paths of all layers that can be quantized
    default: Quantization | None = None  # of layers that config.json does not name; None: the source's
    dequantize: bool = False
    dtype: str | None = None  # None: the checkpoint's
    text_only: bool = False


@dataclass(frozen=True)
class Output:
    """A tensor to be written."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Job:
    """A parameter of the source and its outputs: one tensor, or weight, scales and biases."""

    path: str
    weight: Weight
    dtype: str | None  # that floats are cast to, MLX's name; None: every byte is kept
    quantization: Quantization | None
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def source_bytes(self) -> int:
        return sum(part.nbytes for part in self.weight.parts)

    @property
    def weights(self) -> int:
        """Numbers in it; factors are not counted."""
        return 0 if isinstance(self.weight, Factors) else math.prod(self.weight.shape)

    @property
    def rows(self) -> int:
        return row_count(self.weight.shape)


@dataclass(frozen=True)
class Plan:
    source: Path
    config: dict[str, Any]  # config.json, to be written
    model: ModelConfig  # the same, parsed
    shards: tuple[tuple[Job, ...], ...]
    indivisible: tuple[str, ...]  # a line for each layer that the recipe would quantize and whose rows do not allow it
    dropped: tuple[str, ...]  # the source's tensors that nothing is made of
    metadata: dict[str, str]  # of every file

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
        return sum(job.weights for job in self.jobs)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters

    @property
    def sources(self) -> list[Path]:
        return sorted({part.file for job in self.jobs for part in job.weight.parts})

    @property
    def changed(self) -> list[int]:
        """When each source was last changed, as no program can set it."""
        return [file.stat().st_ctime_ns for file in self.sources]

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the bytes of the output depend on."""
        outputs = [[asdict(output) for job in shard for output in job.outputs] for shard in self.shards]
        sources = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.sources]
        parts = [self.config, outputs, sources, self.metadata, mx.__version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan(folder: Path, request: Request) -> Plan:
    """Plan a conversion. Mistake: the source is no whole DiffusionGemma checkpoint, or the request does not fit it."""
    source = read_source(folder, request.text_only)
    dtype = request.dtype or source.model.dtype
    if dtype not in FLOATS:
        raise Mistake(f"config.json: dtype {dtype} cannot be written; give --dtype, one of {', '.join(FLOATS)}")
    layers, indivisible = _layers(source, request)
    jobs = []
    for path, weight in source.weights.items():
        name = published_name(path) if request.dequantize else path
        jobs += _jobs(name, weight, layers.get(path.removesuffix(".weight")), dtype)
    # The source is read from front to back.
    jobs.sort(key=lambda job: (job.weight.parts[0].file, job.weight.parts[0].start, job.path))
    config = hub_config(source.config, source.model, dtype)
    if request.text_only:
        config["vision_config"] = None
    if any(layers.values()):
        default = request.default or source.model.quantization or next(filter(None, layers.values()))
        config["quantization"] = config["quantization_config"] = entries(default, layers)
    metadata = {"format": "pt" if request.dequantize else "mlx"}
    return Plan(folder, config, parse_config(config), _shards(jobs), indivisible, source.dropped, metadata)


def _layers(source: Source, request: Request) -> tuple[dict[str, Quantization | None], tuple[str, ...]]:
    """Return how each layer is to be stored, by path, and a line for each whose rows no group divides."""
    if request.dequantize:
        return dict.fromkeys(source.widths), ()
    if not request.recipe:
        return {path: source.weights[f"{path}.weight"].quantization for path in source.widths}, ()
    recipe, layers, indivisible = request.recipe(list(source.widths)), {}, []
    for path, width in source.widths.items():
        layers[path] = quantization = recipe(path)
        if quantization and width % (group := quantization.group_size):
            layers[path] = None
            indivisible.append(f"{path} stays unquantized: groups of {group} do not divide its rows of {width}")
    return layers, tuple(indivisible)


def _jobs(path: str, weight: Weight, quantization: Quantization | None, dtype: str) -> list[Job]:
    if is_vision(path):
        tensor = weight.blocks[0].weight
        return [Job(path, weight, None, None, (Output(path, tensor.dtype, tensor.shape, tensor.nbytes),))]
    jobs = [Job(path, weight, dtype, quantization, _outputs(path, weight.shape, quantization, dtype))]
    if weight.quantization == quantization and weight.blocks[0].factor:
        factors = Factors.of(weight)
        name = f"{path.removesuffix('.weight')}.{GLOBAL_SCALE}"
        jobs.append(Job(name, factors, "float32", None, (_output(name, "F32", factors.shape),)))
    return jobs


def _outputs(path: str, shape: tuple[int, ...], quantization: Quantization | None, dtype: str) -> tuple[Output, ...]:
    """Return the tensors that a parameter is stored as: itself, or what `mx.quantize` makes of it."""
    if quantization is None:
        return (_output(path, FLOATS[dtype], shape),)
    *outer, width = shape
    layer, affine = path.removesuffix(".weight"), quantization.mode == "affine"
    kind, groups = FLOATS[dtype] if affine else "U8", (*outer, width // quantization.group_size)
    weight = _output(path, "U32", (*outer, width * quantization.bits // 32))
    scales, biases = _output(f"{layer}.scales", kind, groups), _output(f"{layer}.biases", kind, groups)
    return (weight, scales, biases) if affine else (weight, scales)


def _output(name: str, dtype: str, shape: tuple[int, ...]) -> Output:
    return Output(name, dtype, shape, math.prod(shape) * ITEM[dtype])


def _shards(jobs: list[Job]) -> tuple[tuple[Job, ...], ...]:
    """Divide the jobs into files of at most SHARD bytes."""
    shards: list[list[Job]] = [[]]
    for job in jobs:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + job.nbytes > SHARD:
            shards.append([])
        shards[-1].append(job)
    return tuple(map(tuple, shards))
