"""The published shapes that come along: a config.json each, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.config import ModelConfig, parse_config
from ..checkpoint.folder import read_json
from ..errors import Mistake
from .count import parameters

HERE = Path(__file__).parent
SHAPES = {"26b-a4b": HERE / "26b-a4b.json", "tiny": HERE.parent / "tiny" / "config.json"}


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
