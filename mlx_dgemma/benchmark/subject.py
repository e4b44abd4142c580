"""The model that is measured, as the flags ask for it: a checkpoint, or random weights of a published shape."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.config import ModelConfig, Recipe, parse_config
from ..checkpoint.folder import read_configs, read_json
from ..checkpoint.hub import find
from ..checkpoint.memory import check_memory
from ..checkpoint.parameters import parameters
from ..convert.recipes import mlx_community, plain, quantization
from ..errors import Mistake
from ..load import choose_backend, dummy, load
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.sampling import Sampling
from .count import BITS, Count

HERE = Path(__file__).parent
SHAPES = {"26b-a4b": HERE / "26b-a4b.json", "tiny": HERE.parent / "tiny" / "config.json"}
PRECISIONS: dict[str, tuple[str, Recipe]] = {  # of random weights -> dtype, how each layer is stored
    "float32": ("float32", plain), "bf16": ("bfloat16", plain), "fp8": ("fp8", plain),
    "4bit": ("bfloat16", mlx_community(quantization(bits=4))),  # as `convert -q` stores it
}  # fmt: skip


def shape(name: str) -> dict[str, Any]:
    """Reads config.json of a published model. Mistake with the list if there is none of this name."""
    if name not in SHAPES:
        raise Mistake(f"{name!r} is no published shape that is known; need one of {', '.join(SHAPES)}")
    return read_json(SHAPES[name])


def published(name: str) -> ModelConfig:
    return parse_config(shape(name))


def is_embedded(config: ModelConfig) -> bool:
    """Says whether `config` has the shape of the embedded model, which knows the tasks, however it is stored."""
    tiny = published("tiny")
    return parameters(config) == parameters(tiny) and config.canvas_length == tiny.canvas_length


@dataclass(frozen=True)
class Subject:
    model: DiffusionModel
    tokenizer: Tokenizer | None  # None: random weights have no answers
    sampling: Sampling
    backend: str
    stored: dict[str, Any]  # its config.json


def make_subject(settings: Namespace) -> Subject:
    """Raises Mistake if there is no such checkpoint, shape or precision, or too little memory for it."""
    backend = settings.backend or choose_backend()
    if settings.dummy:
        return Subject(_random_model(settings, backend), None, Sampling(), backend, shape(settings.dummy))
    folder = find(settings.model)
    model, tokenizer, sampling = load(folder, backend=backend, dtype=settings.dtype)
    sampling = replace(sampling, max_denoising_steps=settings.max_denoising_steps or sampling.max_denoising_steps)
    return Subject(model, tokenizer, sampling, backend, read_configs(folder)[0])


def _random_model(settings: Namespace, backend: str) -> DiffusionModel:
    config = published(settings.dummy)
    known = [name for name in PRECISIONS if backend == "torch" or name != "fp8"]
    stored_as = settings.precision or "bf16"
    if stored_as not in known:
        raise Mistake(f"precision {stored_as!r} is not one that {backend} makes: need one of {', '.join(known)}")
    if backend == "mlx":  # torch asks its device
        needed = int(Count(config, BITS[stored_as]).resident)
        check_memory(needed, f"random weights of {settings.dummy} in {stored_as}")
    return dummy(config, backend, *PRECISIONS[stored_as], seed=settings.seed, peaked=settings.peaked or 1.0)
