"""A report: what was measured, and all that is needed to measure it again. JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.memory import gigabytes
from ..errors import Mistake, NotFound
from .count import PARTS

VERSION = 1
KEY = "mlx_dgemma_benchmark"  # whose value is the version
MODES = {"diffusion": "diffusion", "autoregression": "left to right", "baseline": "AR model"}
Report = dict[str, Any]


def read_report(path: Path) -> Report:
    """Raises Mistake if it is no report, or one of another version."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"{path}: no such file; need a report that the benchmark wrote with --out") from None
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None
    version = report.get(KEY) if isinstance(report, dict) else None
    if version is None:
        raise Mistake(f"{path} is no report of this benchmark: it has no {KEY!r}")
    if version != VERSION:
        raise Mistake(f"{path} is a report of version {version}, this program reads version {VERSION}: measure again")
    return report


def write_report(path: Path, report: Report) -> None:
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def lookup(part: Any, path: str) -> Any:
    """Follows keys with dots between them, numbers in lists; None where one is missing."""
    for key in path.split("."):
        if isinstance(part, list):
            part = part[int(key)] if int(key) < len(part) else None
        else:
            part = part.get(key) if part else None
    return part


def speed(report: Report, mode: str) -> float | None:
    """Returns tokens a second of the answers; where there are none, of the passes at the assumed steps a block."""
    answers = lookup(report, f"modes.{mode}.summary.tokens_per_second.median")
    return lookup(report, f"passes.0.assumed.{mode}") if answers is None else answers


def plain(value: float, scale: float = 1.0, unit: str = "") -> str:
    """Writes three digits and no exponent."""
    value *= scale
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def ms(seconds: float) -> str:
    return plain(seconds, 1e3)


def percent(share: float) -> str:
    return f"{share:.0%}"


def spread(values: dict[str, float], scale: float = 1.0, unit: str = "") -> str:
    """Writes the median, and least to most where they differ."""
    median, least, most = (plain(values[name], scale) for name in ("median", "min", "max"))
    return f"{median}{unit}" + (f" ({least}-{most})" if least != most else "")


def equal(even: dict[str, Any]) -> str:
    """Says where both modes are equally fast."""
    if even["steps"] < 1:
        return "none: not even one step a block would be few enough for diffusion"
    return f"{plain(even['steps'])} steps a block = {plain(even['tokens_per_forward'])} tokens per forward"


Figure = tuple[str, str, Callable[[Any], str]]  # title of its row, where it is, how it is written


def _timed(name: str, title: str) -> list[Figure]:
    return [
        (f"{title}, ms", f"{name}.seconds.median", ms),
        ("  least to most", f"{name}.seconds", lambda s: f"{ms(s['min'])}-{ms(s['max'])}"),
        ("  its floor, by count", f"{name}.floor_seconds", ms),
        ("  GB", f"{name}.bytes", lambda parts: plain(sum(parts.values()), 1e-9)),
        ("    share of the copy", f"{name}.share_of_copy", percent),
        ("  GFLOP", f"{name}.flops", lambda parts: plain(sum(parts.values()), 1e-9)),
        ("    share of the product", f"{name}.share_of_product", percent),
    ]


PASS: list[Figure] = [
    ("tokens of context", "context", "{:,}".format),
    ("sequences at once", "rows", str),
    ("prefill, tokens/s", "prefill_tokens_per_second", plain),
    *_timed("step", "denoise step"),
    *_timed("commit", "commit"),
    *_timed("token", "token, left to right"),
    ("break-even, steps a block", "break_even.steps", plain),
    ("break-even, tokens per forward", "break_even.tokens_per_forward", plain),
]
ASSUMED: list[Figure] = [
    ("tokens/s, left to right", "assumed.autoregression", plain),
    ("tokens/s, diffusion", "assumed.diffusion", plain),
    ("  if a block takes so many steps", "assumed.steps", plain),
]
ANSWERS: list[Figure] = [
    ("tokens/s of kept text", "summary.tokens_per_second", spread),
    ("solved", "summary.solved", lambda rates: spread(rates, 100, " %")),
    ("first text after, s: warm", "summary.seconds_to_first", spread),
    ("  cold, the first of the process", "cold.seconds_to_first", plain),
    ("tokens per forward", "summary.tokens_per_forward", spread),
    ("steps a block: mean", "summary.steps_per_block.mean", plain),
    ("  p50", "summary.steps_per_block.p50", plain),
    ("  p90", "summary.steps_per_block.p90", plain),
    ("  share at the cap", "summary.steps_per_block.at_cap", percent),
    ("ms a step, prefill and commits in it", "summary.seconds_per_step", lambda s: spread(s, 1e3)),
    ("peak memory of the process so far", "peak_memory", gigabytes),
]


def rows(figures: Iterable[Figure], parts: Iterable[Any]) -> list[list[str]]:
    """Makes a row a figure, a column a part of a report; "-" where it was not measured."""
    table = []
    for title, path, write in figures:
        found = [lookup(part, path) for part in parts]
        table.append([title, *("-" if value is None else write(value) for value in found)])
    return table


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Prints on standard output; the first `left` columns are text, the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if any(titles) else None, show_header=any(titles), pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False).print(table)


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    print_table(("", ""), lines, left=2)


def header(report: Report) -> list[tuple[str, str]]:
    machine, settings, git, before = (lookup(report, p) for p in ("machine", "settings", "git", "state.before"))
    device, ceilings = machine["device"], report.get("ceilings")
    model = settings["dummy"] and f"random weights of the shape {settings['dummy']}"
    model = f"{model or settings['model'] or 'the embedded one'}, {settings['precision']}"
    code = [f"{name} {version}" for name, version in report["versions"].items()]
    code += [f"git {git['revision'][:9]}{', changed' if git['changed'] else ''}"] if git else []
    gpus = [f"{g['power.draw']} of {g['power.limit']} W, {g['temperature.gpu']} C" for g in before["nvidia"] or ()]
    heat = [before["power"], *gpus, before["thermal"] and " ".join(before["thermal"].split())]
    heat += [f"{before['celsius']:.0f} C" if before["celsius"] else None]
    lines = [
        ("machine", f"{device['name']}, {gigabytes(device['memory'])}, {machine['system']}, {device['backend']}"),
        ("power, heat", ", ".join(filter(None, heat)) or "the system does not tell"),
        ("versions", ", ".join(code)),
        ("model", f"{model}, loaded in {plain(report['load_seconds'])} s"),
    ]
    for title, path in (("bits a weight", "bits"), ("AR model's bits a weight", "modes.baseline.bits")):
        if bits := lookup(report, path):
            lines.append((title, ", ".join(f"{name} {value:.3g}" for name, value in bits.items())))
    if ceilings:
        copy, product = ceilings["copy_bytes_per_second"] / 1e9, ceilings["product_flops_per_second"] / 1e12
        lines.append(("ceilings", f"copy {plain(copy)} GB/s read and written, product {plain(product)} TFLOP/s"))
    return lines


def part_rows(point: dict[str, Any]) -> list[list[str]]:
    """Makes a row a part of a step: milliseconds, share, floor."""
    seconds, floor = point["parts"]["seconds"], point["parts"]["floor_seconds"]
    whole = sum(seconds.values())
    floors = {part: ms(floor[part]) if part in floor else "-" for part in seconds}
    return [[part, ms(seconds[part]), percent(seconds[part] / whole), floors[part]] for part in (*PARTS, "rest")]


def show(report: Report) -> None:
    """Prints the tables."""
    print_lines(header(report))
    points, notes = report["passes"], [(f"not known: {name}", why) for name, why in report["missing"].items()]
    if points:
        print_table(["passes", *[""] * len(points)], rows((*PASS, *ASSUMED), points))
    if modes := [mode for mode in MODES if lookup(report, f"modes.{mode}.summary")]:
        print_table(["answers", *map(MODES.get, modes)], rows(ANSWERS, [report["modes"][mode] for mode in modes]))
    if points:
        print_table(("part of a step", "ms", "share", "floor, ms"), part_rows(points[0]))
    if report["interrupted"]:
        notes.append(("interrupted", "these are the figures till then"))
    if notes:
        print_lines(notes)
