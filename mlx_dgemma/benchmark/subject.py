"""The model that is measured, as the flags ask for it: a checkpoint, or random weights of a published shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint.config import Recipe
from ..checkpoint.folder import read_configs
from ..checkpoint.hub import find
from ..checkpoint.memory import check_memory
from ..convert.recipes import mlx_community, plain, quantization
from ..errors import Mistake
from ..load import choose_backend, dummy, load
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.sampling import Sampling
from .count import PRECISIONS as BITS
from .count import Count
from .shapes import published, shape

PRECISIONS: dict[str, tuple[str, Recipe]] = {  # of random weights -> dtype, how each layer is stored
    "float32": ("float32", plain),
    "bf16": ("bfloat16", plain),
    "4bit": ("bfloat16", mlx_community(quantization(bits=4))),  # as `convert -q` stores it
    "fp8": ("fp8", plain),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is to be measured; each is a flag of the command."""

    model: str | None
    dummy: str | None
    precision: str | None
    peaked: float | None
    steps_per_block: int
    backend: str | None
    dtype: str | None
    ar_model: str | None
    prompts: str | None
    each: int
    max_tokens: int | None
    max_denoising_steps: int | None
    context: list[int]
    batch: list[int]
    repeat: int
    seeds: int
    seed: int


@dataclass(frozen=True)
class Subject:
    model: DiffusionModel
    tokenizer: Tokenizer | None  # None: random weights have no answers
    sampling: Sampling
    backend: str
    stored: dict[str, Any]  # its config.json


def make_subject(settings: Settings) -> Subject:
    """Raises Mistake if there is no such checkpoint, shape or precision, or too little memory for it."""
    backend = settings.backend or choose_backend()
    if settings.dummy:
        return Subject(_random_model(settings, backend), None, Sampling(), backend, shape(settings.dummy))
    folder = find(settings.model)
    model, tokenizer, sampling = load(folder, backend=backend, dtype=settings.dtype)
    sampling = replace(sampling, max_denoising_steps=settings.max_denoising_steps or sampling.max_denoising_steps)
    return Subject(model, tokenizer, sampling, backend, read_configs(folder)[0])


def _random_model(settings: Settings, backend: str) -> DiffusionModel:
    config = published(settings.dummy)
    known = [name for name in PRECISIONS if backend == "torch" or name != "fp8"]
    if settings.precision not in known:
        wrong = f"precision {settings.precision!r} is not one that {backend} makes"
        raise Mistake(f"{wrong}: need one of {', '.join(known)}")
    if backend == "mlx":  # torch asks its device
        needed = int(Count(config, BITS[settings.precision]).resident)
        check_memory(needed, f"random weights of {settings.dummy} in {settings.precision}")
    return dummy(config, backend, *PRECISIONS[settings.precision], seed=settings.seed, peaked=settings.peaked)
