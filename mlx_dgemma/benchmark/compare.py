"""Reports of several machines side by side: one table, one picture."""

import argparse
import json
from pathlib import Path

from ..errors import Mistake
from ..terminal.command import Parser
from ..terminal.picture import check
from ..terminal.table import percent, plain, print_table
from .plot import plot_machines
from .report import MACHINE, MODES, PASS, Figure, Report, lookup, read_report, rows, speed, whole

FIGURES: list[Figure] = [*MACHINE, *((title, f"passes.0.{path}", write) for title, path, write in PASS)]
FIGURES.append(("steps a block, mean", "modes.diffusion.summary.steps_per_block.mean", plain))
FIGURES.append(("solved", "modes.diffusion.summary.solved.median", percent))
ANSWERED: list[Figure] = [(f"tokens/s as answered, {title}", mode, plain) for mode, title in MODES.items()]


def parser() -> Parser:
    parser = Parser("python -m mlx_dgemma.benchmark compare", "Reports of several machines in one table and plot.")
    add = parser.add_argument
    add("reports", nargs="+", metavar="REPORT.json", help="what the benchmark wrote with --out")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--plot", metavar="FILE.png", help="draw both ways of writing over the passes of a block")
    return parser


def read_named(paths: list[str]) -> list[tuple[str, Report]]:
    """Reads reports, each with the name of its device; with that of its file where two are of the same."""
    reports = [read_report(Path(path)) for path in paths]
    devices = [report["machine"]["device"]["name"] for report in reports]
    names = [name if devices.count(name) == 1 else Path(path).stem for name, path in zip(devices, paths, strict=True)]
    return list(zip(names, reports, strict=True))


def command(options: argparse.Namespace) -> int:
    if options.plot:
        check(Path(options.plot))
    with whole(*options.reports):
        show(options)
    return 0


def show(options: argparse.Namespace) -> None:
    named = read_named(options.reports)
    reports = [report for _, report in named]
    speeds = [{mode: speed(report, mode) for mode in MODES} for report in reports]
    if options.plot:
        drawn = [(name, report) for name, report in named if report["passes"]]
        if not drawn:
            raise Mistake(f"--plot {options.plot}: no pass was measured in these reports, there is nothing to draw")
        plot_machines(drawn, Path(options.plot))
    if options.json:
        figures = [{path: lookup(report, path) for _, path, _ in FIGURES} for report in reports]
        print(json.dumps([{"name": n, **s, **f} for (n, _), s, f in zip(named, speeds, figures, strict=True)]))
        return
    print_table(["", *(name for name, _ in named)], rows(FIGURES, reports) + rows(ANSWERED, speeds))
