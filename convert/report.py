"""The report of a conversion: a table by class of weights, the memory that the model needs, and which Macs have it."""

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint.folder import FLOATS
from ..checkpoint.memory import gigabytes, metal_limit, working_memory
from ..checkpoint.names import CLASSES, weight_class
from .journal import Errors
from .plan import Job, Plan

CONTEXT = 8192  # tokens of text that the memory is stated for
HEAD = ("class", "tensors", "weights", "stored as", "bits a weight", "size", "relative error")
MACS = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)  # GiB that they were sold with


@dataclass(frozen=True)
class Line:
    """A class of weights."""

    name: str
    tensors: int
    weights: int
    stored: str  # how its layers are stored; several ways are divided by slashes
    bits_per_weight: float
    nbytes: int
    relative_error: float | None  # sampled, of what is rounded; 0 if nothing is; None before it is known


def lines(plan: Plan, errors: Errors | None) -> list[Line]:
    """Return the table's lines; without `errors` the weights have not been read."""
    classes: dict[str, dict[int, Job]] = defaultdict(dict)
    for index, job in enumerate(plan.jobs):
        classes[weight_class(job.path)][index] = job
    return [_line(name, classes[name], errors) for name in CLASSES if name in classes]


def _line(name: str, jobs: dict[int, Job], errors: Errors | None) -> Line:
    weights, size = sum(job.weights for job in jobs.values()), sum(job.nbytes for job in jobs.values())
    matrices = {_stored(job) for job in jobs.values() if len(job.weight.shape) > 1 and job.weights}
    error = None
    if errors is not None:
        difference, total = map(sum, zip(*(errors[index] for index in jobs), strict=True))
        error = math.sqrt(difference / total) if total else 0.0
    stored = " / ".join(sorted(matrices or {_stored(job) for job in jobs.values()}))
    tensors = sum(len(job.outputs) for job in jobs.values())
    return Line(name, tensors, weights, stored, 8 * size / weights, size, error)


def _stored(job: Job) -> str:
    q, dtype = job.quantization, job.outputs[0].dtype
    if q is None:
        return next((name for name, stored in FLOATS.items() if stored == dtype), dtype)
    return f"{f'{q.bits}-bit' if q.mode == 'affine' else q.mode}, groups of {q.group_size}"


def rows(plan: Plan, errors: Errors | None) -> list[tuple[str, ...]]:
    """Return the table in words: its head, a row for each class, and the total."""
    table = lines(plan, errors)
    tensors = sum(line.tensors for line in table)
    table.append(Line("total", tensors, plan.parameters, "", plan.bits_per_weight, plan.nbytes, None))
    columns = len(HEAD) if errors is not None else len(HEAD) - 1
    return [row[:columns] for row in (HEAD, *map(_cells, table))]


def _cells(line: Line) -> tuple[str, ...]:
    units = ((1e9, " B"), (1e6, " M"), (1e3, " K"))
    weights = next((f"{line.weights / unit:.2f}{name}" for unit, name in units if line.weights >= unit), line.weights)
    size = f"{line.nbytes / 1e9:.2f} GB" if line.nbytes >= 1e8 else f"{line.nbytes / 1e6:.2f} MB"
    error = "" if line.relative_error is None else f"{line.relative_error:.2g}" if line.relative_error else "exact"
    return line.name, str(line.tensors), str(weights), line.stored, f"{line.bits_per_weight:.2f}", size, error


def memory(plan: Plan) -> int:
    """Return the bytes that the model needs, with a text of CONTEXT tokens."""
    return plan.text_bytes + working_memory(plan.model, CONTEXT)


def macs(needed: int) -> list[int]:
    """Return the sizes of Macs whose GPU may hold that much."""
    return [size for size in MACS if metal_limit(size * 2**30) >= needed]


def memory_line(plan: Plan) -> str:
    """Return the memory and the Macs that have it, as the end of a sentence."""
    needed = memory(plan)
    which = f"a Mac with {fitting[0]} GB or more" if (fitting := macs(needed)) else "no Mac that is sold"
    parts = f"{gigabytes(plan.text_bytes)} of weights, {CONTEXT:,} tokens of text"
    return f"needs {gigabytes(needed)} of memory ({parts}): {which}"


def notes(plan: Plan) -> list[str]:
    """Return a line for each layer that stays unquantized, and for each kind of dropped tensor (* for numbers)."""
    names = (name.split(".") for name in plan.dropped)
    kinds = Counter(".".join("*" if part.isdigit() else part for part in parts) for parts in names)
    dropped = (f"dropped: {kind}" + f" ({count} of them)" * (count > 1) for kind, count in kinds.items())
    return [*plan.indivisible, *dropped]


def as_json(plan: Plan, errors: Errors | None) -> dict[str, Any]:
    """Return the report as numbers; sizes are bytes."""
    return {
        "bytes": plan.nbytes,
        "text_bytes": plan.text_bytes,
        "source_bytes": plan.source_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "parameters": plan.parameters,
        "files": plan.files,
        "classes": [asdict(line) for line in lines(plan, errors)],
        "memory_bytes": memory(plan),
        "macs": macs(memory(plan)),
        "unquantized": list(plan.indivisible),
        "dropped": list(plan.dropped),
    }
