"""The model that is measured: a checkpoint, or random weights of a published shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.config import ModelConfig, parse_config
from ..checkpoint.folder import read_configs
from ..checkpoint.hub import find
from ..checkpoint.memory import check_memory
from ..convert.recipes import Recipe, mlx_community, plain, quantization
from ..errors import Mistake
from ..load import choose_backend, dummy, load
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.sampling import Sampling
from .count import Count, precision
from .settings import Settings
from .shapes import shape

FOUR_BITS = mlx_community(quantization(bits=4))  # as `convert -q` stores it
RECIPES: dict[str, dict[str, Recipe]] = {  # backend -> precision of random weights -> how each layer is stored
    "mlx": {"float32": plain, "bf16": plain, "4bit": FOUR_BITS},
    "torch": {"float32": plain, "bf16": plain, "fp8": plain, "4bit": FOUR_BITS},
}


@dataclass(frozen=True)
class Subject:
    model: DiffusionModel
    tokenizer: Tokenizer | None  # None: random weights have no answers
    sampling: Sampling
    backend: str
    stored: dict[str, Any]  # its config.json
    config: ModelConfig


def open_subject(settings: Settings) -> Subject:
    """Raises Mistake if there is no such checkpoint or shape, or too little memory for it."""
    backend = settings.backend or choose_backend()
    return make_dummy(settings, backend) if settings.dummy else load_checkpoint(settings, backend)


def load_checkpoint(settings: Settings, backend: str) -> Subject:
    folder = find(settings.model)
    stored, generation = read_configs(folder)
    model, tokenizer, sampling = load(folder, backend=backend, dtype=settings.dtype)
    if settings.max_denoising_steps:
        sampling = replace(sampling, max_denoising_steps=settings.max_denoising_steps)
    return Subject(model, tokenizer, sampling, backend, stored, parse_config(stored, generation))


def make_dummy(settings: Settings, backend: str) -> Subject:
    stored, name = shape(settings.dummy), settings.precision
    config = parse_config(stored)
    if name not in RECIPES[backend]:
        raise Mistake(f"precision {name!r} is not one that {backend} makes: need one of {', '.join(RECIPES[backend])}")
    if backend == "mlx":  # torch asks its device
        check_memory(int(Count(config, precision(name)).resident), f"random weights of {settings.dummy} in {name}")
    model = dummy(config, backend, name, RECIPES[backend][name], settings.seed, settings.peaked)
    return Subject(model, None, Sampling(), backend, stored, config)
