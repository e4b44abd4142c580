"""The machines that `devices.toml` knows."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Mistake


@dataclass(frozen=True)
class Device:
    name: str
    bandwidth: float  # bytes a second
    flops: dict[str, float]  # FLOPs a second, by what is multiplied
    memory: float  # bytes
    sources: dict[str, str]
    measured: list[dict[str, Any]]  # both modes as others measured them

    def flops_for(self, precision: str) -> float:
        """Returns the rate of products: fp8 weights with fp8 numbers where the machine can, all others as bf16."""
        return self.flops.get(precision, self.flops["bf16"])


def devices() -> dict[str, Device]:
    """Reads all of them, by the name that --device takes."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    measured = table.pop("measured")
    return {
        key: Device(
            name=entry["name"],
            bandwidth=entry["bandwidth"]["value"] * 1e9,
            flops={kind: value * 1e12 for kind, value in entry["flops"].items() if isinstance(value, float)},
            memory=entry["memory"] * 1e9,
            sources={name: f"{entry[name]['kind']}: {entry[name]['source']}" for name in ("bandwidth", "flops")},
            measured=[pair for pair in measured if pair["device"] == key],
        )
        for key, entry in table.items()
    }


def device(name: str) -> Device:
    """Raises Mistake with the list if it is none of them."""
    known = devices()
    if name not in known:
        raise Mistake(f"--device {name!r} is not known; need one of {', '.join(known)}")
    return known[name]
