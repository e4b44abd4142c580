"""What a conversion tells: a table by class of weights, the memory that the model needs, and which Macs have it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint.config import ModelConfig
from ..checkpoint.names import CLASSES
from ..load import gigabytes
from .plan import Job, Plan, classes
from .source import FLOATS, Factors

CONTEXT = 8192  # tokens of text that the memory is told for
MACS = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)  # GiB that they were sold with


@dataclass(frozen=True)
class Line:
    name: str
    tensors: int
    weights: int
    stored: str  # as what; several, if several
    bits_per_weight: float
    nbytes: int
    relative_error: float | None  # of what is rounded, sampled; 0 where nothing is; None before it is known


def _stored(job: Job) -> str:
    q = job.quantization
    if q is None:
        return {v: k for k, v in FLOATS.items()}.get(job.outputs[0].dtype, job.outputs[0].dtype)
    kind = f"{q.bits}-bit" if q.mode == "affine" else q.mode
    return f"{kind}, groups of {q.group_size}"


def lines(plan: Plan, errors: dict[int, tuple[float, float]] | None) -> list[Line]:
    """`errors` by job, squared: of the difference and of the weights."""
    found = classes(plan)
    table = []
    for name in CLASSES:
        jobs = [job for _, job in found.get(name, ())]
        if not jobs:
            continue
        weights = sum(math.prod(job.weight.shape) for job in jobs if not isinstance(job.weight, Factors))
        size = sum(job.nbytes for job in jobs)
        large = {_stored(job) for job in jobs if len(job.weight.shape) > 1 and not isinstance(job.weight, Factors)}
        error = None
        if errors is not None:
            difference, whole = (sum(errors[i][k] for i, _ in found[name]) for k in (0, 1))
            error = math.sqrt(difference / whole) if whole else 0.0
        kinds = " / ".join(sorted(large or {_stored(job) for job in jobs}))
        table.append(Line(name, sum(len(job.outputs) for job in jobs), weights, kinds, 8 * size / weights, size, error))
    return table


def working_bytes(config: ModelConfig) -> int:
    """Beside the weights: K and V of CONTEXT tokens in 16 bits, and four tables of a canvas over the vocabulary."""
    kept = [min(CONTEXT, config.sliding_window) if layer.sliding else CONTEXT for layer in config.layers]
    cache = sum(
        2 * 2 * tokens * layer.head_dim * layer.num_key_value_heads
        for tokens, layer in zip(kept, config.layers, strict=True)
    )
    return cache + 4 * 4 * config.canvas_length * config.vocab_size


def macs(needed: int) -> list[int]:
    """Whose GPU may use that much: macOS gives it two thirds of up to 32 GiB, three quarters of more."""
    return [size for size in MACS if size * 2**30 * (2 / 3 if size <= 32 else 3 / 4) >= needed]


def as_json(plan: Plan, errors: dict[int, tuple[float, float]] | None) -> dict[str, Any]:
    needed = plan.text_bytes + working_bytes(plan.model)
    return {
        "bytes": plan.nbytes,
        "text_bytes": plan.text_bytes,
        "source_bytes": plan.source_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "parameters": plan.parameters,
        "files": plan.files,
        "classes": [asdict(line) for line in lines(plan, errors)],
        "memory_bytes": needed,
        "macs": macs(needed),
        "unquantized": list(plan.undivided),
        "dropped": list(plan.dropped),
    }


def _error(value: float | None) -> str:
    return "" if value is None else "exact" if value == 0 else f"{value:.2g}"


def rows(plan: Plan, errors: dict[int, tuple[float, float]] | None) -> tuple[list[str], list[list[str]]]:
    """The table in words: its head, and a row for each class."""
    head = ["class", "tensors", "weights", "stored as", "bits a weight", "size", "relative error"]
    body = [
        [
            line.name, str(line.tensors), _count(line.weights), line.stored, f"{line.bits_per_weight:.2f}",
            _size(line.nbytes), _error(line.relative_error),
        ]
        for line in lines(plan, errors)
    ]  # fmt: skip
    total = sum(len(job.outputs) for job in plan.jobs)
    size = _size(plan.nbytes)
    body.append(["total", str(total), _count(plan.parameters), "", f"{plan.bits_per_weight:.2f}", size, ""])
    if errors is None:
        head, body = head[:-1], [row[:-1] for row in body]
    return head, body


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"


def _count(weights: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if weights >= unit:
            return f"{weights / unit:.2f} {name}"
    return str(weights)


def fits(plan: Plan) -> str:
    """In a sentence."""
    needed = plan.text_bytes + working_bytes(plan.model)
    fitting = macs(needed)
    which = f"a Mac with {fitting[0]} GB or more" if fitting else "no Mac that is sold"
    tokens = f"{CONTEXT:,} tokens of text"
    return f"needs {gigabytes(needed)} of memory ({gigabytes(plan.text_bytes)} of weights, {tokens}): {which}"


def dropped(plan: Plan) -> list[str]:
    """A line for each kind of tensor that nothing is made of, numbers in its name as a star."""
    kinds: dict[str, int] = {}
    for name in plan.dropped:
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"dropped: {kind} ({count} of them)" if count > 1 else f"dropped: {kind}" for kind, count in kinds.items()]
