"""Recipes: how each layer is to be stored, by its path (`model.decoder.layers.0.mlp.up_proj`).

A recipe sees names only; `plan` checks whether a group divides a layer's rows.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..checkpoint.config import Quantization, Recipe
from ..checkpoint.description import RECIPE, check
from ..errors import Mistake, NotFound
from ..terminal.command import read

BITS = (2, 3, 4, 5, 6, 8)  # that affine can have
MODES = {  # mode -> groups it can have, bits it can have; the first of each is the default
    "affine": ((64, 32), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}
NAMED = ("mlx-community", "uniform", "precise")
EIGHT = Quantization(bits=8, group_size=64)
_READ_BY_EVERY_TOKEN = re.compile(r"\.embed_tokens$|\.mlp\.(gate|up|down)_proj$|\.self_attn\.|\.router\.")


def quantization(
    mode: str | None = None, bits: int | None = None, group_size: int | None = None, where: str = ""
) -> Quantization:
    """Fill in a mode's defaults. Mistake if it has no such groups or bits; `where` precedes the flag in the message."""
    mode = mode or "affine"
    if mode not in MODES:
        raise Mistake(f"{where}--q-mode: need one of {', '.join(MODES)}, got {mode!r}")
    groups, widths = MODES[mode]
    bits, group_size = widths[0] if bits is None else bits, groups[0] if group_size is None else group_size
    if group_size == 128 and mode == "affine":
        rows = "rows of 704 (experts) and 2112 (dense MLP) are not multiples of 128"
        raise Mistake(f"{where}--q-group-size 128: {rows}; take 64 or 32")
    for flag, value, known in (("--q-group-size", group_size, groups), ("--q-bits", bits, widths)):
        if value not in known:
            known = ", ".join(map(str, sorted(known)))
            raise Mistake(f"{where}{flag} {value}: --q-mode {mode} needs {known}")
    return Quantization(mode=mode, bits=bits, group_size=group_size)


def plain(path: str) -> None:
    """Quantize no layer."""


def mlx_community(default: Quantization) -> Recipe:
    """Store as mlx-community's conversions do: `default` for experts and self-conditioning, 8 bits in groups of 64 for
    what every token reads, whatever the mode (mlx-vlm 0.7.10: `quant_predicate` of diffusion_gemma)."""
    return lambda path: EIGHT if _READ_BY_EVERY_TOKEN.search(path) else default


def uniform(default: Quantization) -> Recipe:
    """Store every layer alike."""
    return lambda path: default


def precise(default: Quantization) -> Recipe:
    """Quantize experts alone: unquantized, the other layers cost memory and save denoising steps."""
    return lambda path: default if ".experts." in path else None


def _entry(pattern: str, value: Any, file: Path) -> Quantization | None:
    if value is None or value is False:
        return None
    value = {"bits": value} if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, Mapping) or not set(value) <= {"bits", "group_size", "mode"}:
        needs = "needs bits, false, or an object of bits, group_size and mode"
        raise Mistake(f"{file}: {pattern!r} {needs}, got {value!r}")
    return quantization(value.get("mode"), value.get("bits"), value.get("group_size"), f"{file}: {pattern!r}: ")


def from_file(file: Path, default: Quantization, paths: Iterable[str]) -> Recipe:
    """Read a JSON object of shell patterns. The first pattern that matches a path decides, `default` if none does.
    Mistake if it is no such file, or a pattern matches none of `paths`."""
    try:
        table = json.loads(read(str(file)))
    except NotFound:
        names = ", ".join(NAMED)
        raise NotFound(f"--quant-predicate {file}: no such file, and no recipe of that name ({names})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise Mistake(f"--quant-predicate {file} is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise Mistake(f"--quant-predicate {file}: need an object of patterns, got {type(table).__name__}")
    check(table, RECIPE, f"--quant-predicate {file}")
    patterns, paths = {pattern: _entry(pattern, value, file) for pattern, value in table.items()}, sorted(paths)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise Mistake(f"{file}: pattern {pattern!r} matches no layer; they are named like {paths[0]}")
    return lambda path: next((entry for pattern, entry in patterns.items() if fnmatchcase(path, pattern)), default)


def choose(name: str, default: Quantization, paths: Iterable[str]) -> Recipe:
    """Return the recipe of that name, or from that file."""
    named = dict(zip(NAMED, (mlx_community, uniform, precise), strict=True))
    return named[name](default) if name in named else from_file(Path(name).expanduser(), default, paths)


def entries(default: Quantization, layers: Mapping[str, Quantization | None]) -> dict[str, Any]:
    """Return `quantization` of config.json: the default, and each layer that differs; False is not quantized."""
    return {**asdict(default), **{path: asdict(q) if q else False for path, q in layers.items() if q != default}}
