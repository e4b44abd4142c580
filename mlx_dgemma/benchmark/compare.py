"""Reports of several machines side by side: one table, one picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import Mistake
from ..terminal.command import Parser
from .plot import check, plot_comparison
from .report import MODES, Report, lookup, read_report, speed
from .tables import MACHINE, PASS, Figure, percent, plain, print_table, rows

ANSWERS: list[Figure] = [
    ("steps a block, mean", "modes.diffusion.summary.steps_per_block.mean", plain),
    ("solved", "modes.diffusion.summary.solved.median", percent),
]
JSON = {  # key -> where it is in a report
    "memory": "machine.device.memory", "shared_memory": "machine.device.shared_memory",
    "backend": "machine.device.backend", "precision": "settings.precision",
    "context": "passes.0.context", "rows": "passes.0.rows",
    "copy_bytes_per_second": "ceilings.copy_bytes_per_second",
    "product_flops_per_second": "ceilings.product_flops_per_second",
    "prefill_tokens_per_second": "passes.0.prefill_tokens_per_second",
    "step_seconds": "passes.0.step.seconds.median", "step_floor_seconds": "passes.0.step.floor_seconds",
    "commit_seconds": "passes.0.commit.seconds.median", "token_seconds": "passes.0.token.seconds.median",
    "break_even_steps": "passes.0.break_even.steps",
    "break_even_tokens_per_forward": "passes.0.break_even.tokens_per_forward",
    "steps_per_block": "modes.diffusion.summary.steps_per_block.mean",
    "solved": "modes.diffusion.summary.solved.median",
}  # fmt: skip


def parser() -> Parser:
    prog = "python -m mlx_dgemma.benchmark compare"
    parser = Parser(prog=prog, description="Reports of several machines in one table and plot.")
    add = parser.add_argument
    add("reports", nargs="+", metavar="REPORT.json", help="what the benchmark wrote with --out")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--plot", metavar="FILE.png", help="draw them")
    return parser


def read_named(paths: list[str]) -> list[tuple[str, Report]]:
    """Reads reports, each with the name of its device; with that of its file where two are of the same."""
    reports = [(Path(path), read_report(Path(path))) for path in paths]
    devices = [report["machine"]["device"]["name"] for _, report in reports]
    names = zip(devices, reports, strict=True)
    return [(device if devices.count(device) == 1 else path.stem, report) for device, (path, report) in names]


def command(options: argparse.Namespace) -> int:
    if options.plot:
        check(Path(options.plot))
    named = read_named(options.reports)
    reports = [report for _, report in named]
    speeds = [{mode: speed(report, mode) for mode in MODES} for report in reports]
    if options.plot:
        drawn = [(name, report) for name, report in named if report["passes"]]
        if not drawn:
            raise Mistake(f"--plot {options.plot}: no pass was measured in these reports, there is nothing to draw")
        plot_comparison(drawn, Path(options.plot))
    if options.json:
        figures = [{key: lookup(report, path) for key, path in JSON.items()} for report in reports]
        print(json.dumps([{"name": n} | f | s for (n, _), f, s in zip(named, figures, speeds, strict=True)]))
        return 0
    table = rows(MACHINE, reports) + rows(PASS, [lookup(report, "passes.0") for report in reports])
    table += rows(ANSWERS, reports)
    table += rows([(f"tokens/s as answered, {title}", mode, plain) for mode, title in MODES.items()], speeds)
    print_table(["", *(name for name, _ in named)], table)
    return 0
