"""The folder of an adapter: mlx-lm's, or PEFT's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Mistake
from . import peft
from .adapter import CONFIG, FILE, Adapter, read_floats
from .description import ADAPTER
from .folder import read_json


def read(folder: str | Path) -> Adapter:
    """Read an adapter's folder. Mistake names what is missing or wrong."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Mistake(f"--adapter-path {folder}: no such folder")
    about = read_json(folder / CONFIG, ADAPTER)
    if "peft_type" in about:
        return peft.read(folder, about)
    kind = about.get("fine_tune_type", "lora")
    if kind not in ("lora", "full"):
        raise Mistake(f"{folder / CONFIG}: fine_tune_type {kind!r} is not supported, only lora and full")
    scale = (about.get("lora_parameters") or {}).get("scale")
    scale = 20.0 if scale is None else float(scale)  # mlx-lm's default
    return Adapter(read_floats(folder / FILE), scale, kind == "lora", str(folder / FILE))


def write_config(folder: Path, about: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(about, indent=4) + "\n", encoding="utf-8")
