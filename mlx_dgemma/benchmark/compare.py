"""Reports of several machines side by side: one table, one picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import Mistake
from ..load import gigabytes
from ..terminal.command import Parser
from .plot import check, plot_comparison, speed
from .report import print_table, read_report

Named = list[tuple[str, dict[str, Any]]]


def parser() -> Parser:
    parser = Parser(
        prog="python -m mlx_dgemma.benchmark compare", description="Reports of several machines in one table and plot."
    )
    add = parser.add_argument
    add("reports", nargs="+", metavar="REPORT.json", help="what the benchmark wrote with --out")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--plot", metavar="FILE.png", help="draw them")
    return parser


def named(paths: list[str]) -> Named:
    """Each report with the name of its device; of its file where two are of the same."""
    reports = [(Path(path), read_report(Path(path))) for path in paths]
    devices = [report["machine"]["device"]["name"] for _, report in reports]
    return [
        (device if devices.count(device) == 1 else path.stem, report)
        for device, (path, report) in zip(devices, reports, strict=True)
    ]


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What is compared of one report; None where it was not measured."""
    device, passes = report["machine"]["device"], report["passes"]
    ceilings, point = report.get("ceilings") or {}, passes[0] if passes else {}
    answers = (report["modes"].get("diffusion") or {}).get("summary") or {}

    def pass_(name: str, figure: str) -> float | None:
        return point and point[name][figure]

    seconds = {name: point and point[name]["seconds"]["median"] for name in ("step", "commit", "token")}
    return {
        "memory": device["memory"], "shared_memory": device["shared_memory"], "backend": device["backend"],
        "precision": report["settings"]["precision"], "context": point.get("context"), "rows": point.get("rows"),
        "copy_bytes_per_second": ceilings.get("copy_bytes_per_second"),
        "product_flops_per_second": ceilings.get("product_flops_per_second"),
        "prefill_tokens_per_second": point.get("prefill_tokens_per_second"),
        "step_seconds": seconds["step"] or None, "step_floor_seconds": pass_("step", "floor_seconds") or None,
        "commit_seconds": seconds["commit"] or None, "token_seconds": seconds["token"] or None,
        "break_even_steps": point.get("break_even", {}).get("steps"),
        "break_even_tokens_per_forward": point.get("break_even", {}).get("tokens_per_forward"),
        "steps_per_block": (answers.get("steps_per_block") or {}).get("mean"),
        "solved": (answers.get("solved") or {}).get("median"),
        **{mode: speed(report, mode) for mode in ("diffusion", "autoregression", "baseline")},
    }  # fmt: skip


SHOWN = {  # figure -> title, how it is written
    "memory": ("memory", gigabytes),
    "shared_memory": ("", lambda shared: "shared with the CPU" if shared else "the GPU's own"),
    "backend": ("backend", str),
    "precision": ("precision", str),
    "copy_bytes_per_second": ("copy, GB/s", lambda rate: f"{rate / 1e9:.4g}"),
    "product_flops_per_second": ("product, TFLOP/s", lambda rate: f"{rate / 1e12:.4g}"),
    "context": ("context, tokens", str),
    "rows": ("at once", str),
    "prefill_tokens_per_second": ("prefill, tokens/s", "{:.4g}".format),
    "step_seconds": ("denoise step, ms", lambda seconds: f"{1e3 * seconds:.4g}"),
    "step_floor_seconds": ("  its floor, ms", lambda seconds: f"{1e3 * seconds:.4g}"),
    "commit_seconds": ("commit, ms", lambda seconds: f"{1e3 * seconds:.4g}"),
    "token_seconds": ("token, left to right, ms", lambda seconds: f"{1e3 * seconds:.4g}"),
    "break_even_steps": ("break-even, steps a block", "{:.3g}".format),
    "break_even_tokens_per_forward": ("break-even, tokens per forward", "{:.3g}".format),
    "steps_per_block": ("steps a block, mean", "{:.3g}".format),
    "solved": ("solved", "{:.0%}".format),
    "diffusion": ("diffusion, tokens/s", "{:.4g}".format),
    "autoregression": ("left to right, tokens/s", "{:.4g}".format),
    "baseline": ("AR model, tokens/s", "{:.4g}".format),
}


def command(options: argparse.Namespace) -> int:
    if options.plot:
        check(Path(options.plot))
    reports = named(options.reports)
    if options.plot:
        drawn = [(name, report) for name, report in reports if report["passes"]]
        if not drawn:
            raise Mistake(f"--plot {options.plot}: no pass was measured in these reports, there is nothing to draw")
        plot_comparison(drawn, Path(options.plot))
    found = [(name, figures(report)) for name, report in reports]
    if options.json:
        print(json.dumps([{"name": name, **one} for name, one in found]))
        return 0
    rows = [
        [title, *("-" if one[figure] is None else show(one[figure]) for _, one in found)]
        for figure, (title, show) in SHOWN.items()
    ]
    print_table(["", *(name for name, _ in found)], rows)
    return 0
