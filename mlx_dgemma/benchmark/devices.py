"""Machines: what they could do at most, what published builds reach of it, and what that predicts for others.

A step reaches a share of the machine's ceiling. A token left to right is so short that launching kernels costs as much
as the bytes: it takes its bytes at the ceiling and some time beside. Both are taken from published rows of the same
family of machines, and of weights as narrow where there are several of them.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..checkpoint.memory import metal_limit
from ..errors import Mistake
from .count import BITS, Count, Work
from .subject import published

SHAPE = "26b-a4b"  # which all published rows are of
SPREAD = (10, 50, 90)  # percentiles: four of five published rows lie between the first and the last
MIN_SPREAD = 1.25  # factor of the spread either way: few rows may agree by chance
Range = tuple[float, float, float]  # at these percentiles, the fastest first


@dataclass(frozen=True)
class Device:
    name: str
    family: str
    bandwidth: float  # bytes a second
    flops: dict[str, float]  # FLOPs a second, by what is multiplied
    memory: float  # bytes that its GPU may hold
    sources: dict[str, str]

    def flops_for(self, precision: str) -> float:
        """Returns the rate of products: fp8 weights with fp8 numbers where the machine can, all others as bf16."""
        return self.flops.get(precision, self.flops["bf16"])

    def floor(self, work: Work, precision: str) -> float:
        """Returns the seconds that `work` takes at the ceilings."""
        return work.seconds(self.bandwidth, self.flops_for(precision))


@dataclass(frozen=True, kw_only=True)
class Published:
    """A measurement by others: seconds of a denoise step, or tokens a second left to right."""

    device: str
    precision: str
    build: str
    source: str
    step: float | None = None
    tokens_per_second: float | None = None
    canvas: int = 256
    context: int = 512
    first: bool = False  # a block's first step, without self-conditioning
    reason: str | None = None  # why it is far from what the others predict

    @property
    def kind(self) -> str:
        return "step" if self.step else "token"

    @property
    def seconds(self) -> float:
        return self.step or 1 / self.tokens_per_second

    @property
    def floor(self) -> float:
        count = Count(replace(published(SHAPE), canvas_length=self.canvas), BITS[self.precision])
        work = count.denoise(self.context) if self.step else count.token(self.context)
        if self.first:
            work = work.without("self-conditioning")
        return device(self.device).floor(work, self.precision)


_TABLE = tomllib.loads(Path(__file__).with_name("devices.toml").read_text(encoding="utf-8"))
ROWS = [Published(**row) for row in _TABLE.pop("published")]
LINKS = {name: entry["value"] * 1e9 for name, entry in _TABLE.pop("links").items()}  # bytes a second, one way
DEVICES = {  # by the name that --device takes
    key: Device(
        entry["name"], entry["family"], entry["bandwidth"]["value"] * 1e9,
        {kind: value * 1e12 for kind, value in entry["flops"].items() if isinstance(value, float)},
        metal_limit(entry["memory"] * 2**30) if entry["family"].startswith("M") else entry["memory"] * 1e9,
        {name: f"{entry[name]['kind']}: {entry[name]['source']}" for name in ("bandwidth", "flops")},
    )
    for key, entry in _TABLE.items()
}  # fmt: skip


def device(name: str) -> Device:
    """Raises Mistake with the list if it is none of them."""
    if name not in DEVICES:
        raise Mistake(f"--device {name!r} is not known; need one of {', '.join(DEVICES)}")
    return DEVICES[name]


def alike(kind: str, family: str, precision: str, given: Sequence[Published]) -> list[Published]:
    """Returns the rows that speak for such a machine: of its family, and of weights as narrow where there are two."""
    near = [row for row in given if row.kind == kind and device(row.device).family == family]
    same = [row for row in near if row.precision.startswith("4bit") == precision.startswith("4bit")]
    return same if len(same) > 1 else near


def expected(floor: float, given: Sequence[Published]) -> Range:
    """Predicts the seconds of a pass with this `floor` from published rows of its kind."""
    if given[0].kind == "step":
        seconds = floor / np.percentile([row.floor / row.seconds for row in given], SPREAD[::-1])
    else:
        seconds = floor + np.percentile([row.seconds - row.floor for row in given], SPREAD)
    fastest, middle, slowest = seconds.tolist()
    return max(floor, min(fastest, middle / MIN_SPREAD)), middle, max(slowest, middle * MIN_SPREAD)


def left_out() -> list[tuple[Published, Range]]:
    """Predicts each published row from all the others."""
    others = [ROWS[:i] + ROWS[i + 1 :] for i in range(len(ROWS))]
    near = [alike(r.kind, device(r.device).family, r.precision, rest) for r, rest in zip(ROWS, others, strict=True)]
    return [(row, expected(row.floor, rows)) for row, rows in zip(ROWS, near, strict=True)]
