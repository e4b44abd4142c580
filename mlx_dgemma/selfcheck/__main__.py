"""`python -m mlx_dgemma.selfcheck`: is this machine's arithmetic right, and how fast is each part of it?

Each part of a pass runs on the GPU, on MLX's CPU device in float32, and in NumPy in float64 by formulas that share no
line with the network; without a GPU it is the CPU device that is checked. Random numbers and the embedded model only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..terminal.command import Parser, run

if TYPE_CHECKING:
    from .parts import Part, Sizes

NAME = "mlx_dgemma.selfcheck"


def machine() -> dict[str, Any]:
    """Describes versions and devices; nothing that names the machine or its user."""
    import mlx.core as mx

    from ..terminal.machine import describe, versions
    from .parts import device

    device_info = {"device_info": mx.device_info(getattr(mx, device())), "tf32": os.environ.get("MLX_ENABLE_TF32")}
    return describe(device()) | versions() | device_info


def show(report: dict[str, Any]) -> None:
    """Prints the table on standard output."""
    from rich.console import Console
    from rich.table import Table

    from ..checkpoint.memory import gigabytes

    print(report["device_info"]["device_name"], f"{gigabytes(report['memory'])} of memory", report["system"], sep=", ")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("part", "verdict", "seconds", "CPU s", "vs CPU", "exact", "bound", "note"):
        table.add_column(title, justify="left" if title in ("part", "verdict", "note") else "right")
    for part in report["parts"]:
        figures = (part[name] for name in ("seconds", "reference_seconds", "error", "exact_error", "bound"))
        cells = ("" if value is None else f"{value:.2g}" for value in figures)
        table.add_row(part["name"], part["verdict"], *cells, part["note"])
    Console(width=140, highlight=False, markup=False).print(table)
    step = report["step"] or {}
    if "milliseconds" in step:
        milliseconds = ", ".join(f"{name} {value:.1f}" for name, value in step["milliseconds"].items())
        print(f"a step of the embedded model: {step['kernels']} kernels; ms: {milliseconds}")
    print(f"{report['verdict']}: {report['seconds']:.0f} s, peak memory {gigabytes(report['peak_memory'])}")


def check(sizes: Sizes | None, parts: list[Part]) -> dict[str, Any]:
    """Appends the result of every check to `parts`, also of those that raise -> `parts.step` of the embedded model."""
    from ..load import load
    from . import parts as module

    loaded = load(backend="mlx", dtype="float32")
    if module.device() == "cpu":
        print(f"{NAME}: there is no GPU: each part runs on the CPU, against NumPy in float64", file=sys.stderr)
    for name, part in module.checks(loaded):
        print(f"{name} … ", end="", file=sys.stderr, flush=True)
        try:
            parts.append(part(name, sizes or module.Sizes()))
        except (RuntimeError, ValueError) as error:
            parts.append(module.Part(name=name, verdict="failed", note=" ".join(str(error).split())))
        print(parts[-1].verdict, file=sys.stderr, flush=True)
    try:
        return module.step(loaded[0])
    except (RuntimeError, ValueError) as error:
        return {"failed": " ".join(str(error).split())}


def selfcheck(sizes: Sizes | None, *, only_json: bool) -> int:
    parts: list[Part] = []
    start, step, verdict = time.perf_counter(), None, "interrupted"
    try:
        step = check(sizes, parts)
        verdict = "ok" if all(part.verdict in ("ok", "not available", "not used") for part in parts) else "differs"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    report = {"verdict": verdict, **machine(), "seconds": time.perf_counter() - start}
    report["peak_memory"] = max((part.peak_memory or 0 for part in parts), default=0)
    report |= {"parts": list(map(asdict, parts)), "step": step}
    if not only_json:
        show(report)
    # Four digits are enough for a line to paste.
    print(json.dumps(json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.4g}"))))
    return {"ok": 0, "differs": 1, "interrupted": 130}[verdict]


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> int:
    parser = Parser(prog=f"python -m {NAME}", description="Check this machine's arithmetic, part by part, and time it.")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone, without the table")
    options = parser.parse_args(arguments)
    os.environ["MLX_ENABLE_TF32"] = "0"  # MLX reads it at its first product: float32 is float32, on an M5 too
    return run(NAME, lambda: selfcheck(sizes, only_json=options.json))


if __name__ == "__main__":
    sys.exit(main())
