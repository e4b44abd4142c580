"""A report: what was measured, and all that is needed to measure it again. JSON for programs, a table for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound
from ..load import gigabytes
from .count import PARTS

VERSION = 1
KEY = "mlx_dgemma_benchmark"  # whose value is the version
MODES = {"diffusion": "diffusion", "autoregression": "left to right", "baseline": "AR model"}


def read_report(path: Path) -> dict[str, Any]:
    """Mistake if it is no report, or one of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(
            f"{path}: no such file; need a report that `python -m mlx_dgemma.benchmark --out FILE` wrote"
        ) from None
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None
    version = found.get(KEY) if isinstance(found, dict) else None
    if version is None:
        raise Mistake(f"{path} is no report of this benchmark: it has no {KEY!r}")
    if version != VERSION:
        raise Mistake(f"{path} is a report of version {version}, this program reads version {VERSION}: measure again")
    return found


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """On standard output; the first `left` columns are text, the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if any(titles) else None, show_header=any(titles), pad_edge=False, padding=(0, 1))
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False, markup=False).print(table)


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    print_table(("", ""), lines, left=2)


def plain(value: float | None) -> str:
    """Three digits, and no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def flops(value: float) -> str:
    return f"{plain(value / 1e12)} TFLOP" if value >= 1e11 else f"{plain(value / 1e9)} GFLOP"


def equal(even: dict[str, Any]) -> str:
    """Where both modes are equally fast."""
    if even["steps"] < 1:
        return "none: not even one step a block would be few enough for diffusion"
    return f"{plain(even['steps'])} steps a block = {plain(even['tokens_per_forward'])} tokens per forward"


def _spread(found: dict[str, float] | None, scale: float = 1.0, unit: str = "") -> str:
    """Median, and least to most where they differ."""
    if found is None:
        return "-"
    median, least, most = (plain(scale * found[name]) for name in ("median", "min", "max"))
    return f"{median}{unit}" + (f" ({least}-{most})" if least != most else "")


def header(report: dict[str, Any]) -> list[tuple[str, str]]:
    machine, settings = report["machine"], report["settings"]
    device, git = machine["device"], report["git"]
    state = report["state"]["before"]
    gpus = [
        f"{gpu['power.draw']} of {gpu['power.limit']} W, {gpu['temperature.gpu']} C" for gpu in state["nvidia"] or ()
    ]
    told = [state["power"], *gpus, state["thermal"] and " ".join(state["thermal"].split())]
    told += [f"{state['celsius']:.0f} C" if state["celsius"] else None]
    code = [f"{name} {version}" for name, version in report["versions"].items()]
    code += [f"git {git['revision'][:9]}{', changed' if git['changed'] else ''}"] if git else []
    model = settings["dummy"] and f"random weights of the shape {settings['dummy']}"
    return [
        (
            "machine",
            f"{device['name']}, {gigabytes(device['memory'])}, {machine['system']}, backend {device['backend']}",
        ),
        ("power, heat", ", ".join(filter(None, told)) or "the system does not tell"),
        ("versions", ", ".join(code)),
        (
            "model",
            f"{model or settings['model'] or 'the embedded one'}, {settings['precision']}, "
            f"loaded in {plain(report['load_seconds'])} s",
        ),
        *[(f"{who} bits a weight", bits) for who, bits in _bits(report)],
    ]


def _bits(report: dict[str, Any]) -> list[tuple[str, str]]:
    of = {"its": report.get("bits"), "AR model's": (report["modes"].get("baseline") or {}).get("bits")}
    return [(who, ", ".join(f"{name} {value:.3g}" for name, value in bits.items())) for who, bits in of.items() if bits]


PASSES = {"step": "denoise step", "commit": "commit", "token": "token, left to right"}


def passes(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Of the first context and number of rows: figure, value."""
    if not report["passes"]:
        return []
    point = report["passes"][0]
    found = [(f"behind {point['context']:,} tokens, {point['rows']} at once", "")]
    found.append(("prefill", f"{plain(point['prefill_tokens_per_second'])} tokens/s"))
    for name, title in PASSES.items():
        one = point[name]
        floor, times = one["floor_seconds"], one["seconds"]["median"] / one["floor_seconds"]
        found.append((title, f"{_spread(one['seconds'], 1e3)} ms, {times:.2f} x its floor of {plain(1e3 * floor)} ms"))
        counted = f"{gigabytes(sum(one['bytes'].values()))} and {flops(sum(one['flops'].values()))} by count: "
        found.append(
            ("", f"{counted}{one['share_of_copy']:.0%} of the copy, {one['share_of_product']:.0%} of the product")
        )
    found.append(("break-even", equal(point["break_even"])))
    if report["settings"]["dummy"]:
        assumed = point["assumed"]
        speeds = (
            f"diffusion {plain(assumed['diffusion'])} tokens/s if a block takes {assumed['steps']} steps (assumed), "
        )
        found.append(("speed", f"{speeds}left to right {plain(assumed['autoregression'])}"))
    return found


def grid(report: dict[str, Any]) -> list[list[str]]:
    """One row a context and number of rows, if there is more than one."""
    if len(report["passes"]) < 2:
        return []
    assumed = report["passes"][0]["assumed"]["steps"]
    titles = ["context", "at once", "prefill, tokens/s", "step, ms", "x floor", "commit, ms", "token, ms", "x floor"]
    found = [[*titles, "equal at, steps", f"tokens/s at {assumed} steps", "left to right"]]
    for point in report["passes"]:
        step, commit, token = (point[name]["seconds"]["median"] for name in PASSES)
        found.append([
            f"{point['context']:,}", str(point["rows"]), plain(point["prefill_tokens_per_second"]),
            plain(1e3 * step), f"{step / point['step']['floor_seconds']:.2f}", plain(1e3 * commit),
            plain(1e3 * token), f"{token / point['token']['floor_seconds']:.2f}", plain(point["break_even"]["steps"]),
            plain(point["assumed"]["diffusion"]), plain(point["assumed"]["autoregression"]),
        ])  # fmt: skip
    return found


def parts(report: dict[str, Any]) -> list[list[str]]:
    """Of the first context: part, milliseconds, share, floor."""
    if not report["passes"]:
        return []
    found = report["passes"][0]["parts"]
    whole = sum(found["seconds"].values())
    return [
        [part, plain(1e3 * seconds), f"{seconds / whole:.0%}",
         plain(1e3 * floor) if (floor := found["floor_seconds"].get(part)) is not None else "-"]
        for part, seconds in ((part, found["seconds"][part]) for part in (*PARTS, "rest"))
    ]  # fmt: skip


def modes(report: dict[str, Any]) -> list[list[str]]:
    """One row a figure, one column a mode."""
    found = {name: mode["summary"] for name, mode in report["modes"].items() if mode.get("summary")}
    if not found:
        return []
    blocks = {name: one.get("steps_per_block") for name, one in found.items()}

    def of(figure: str, scale: float = 1.0, unit: str = "") -> list[str]:
        return [_spread(one.get(figure), scale, unit) for one in found.values()]

    def steps(figure: str, scale: float = 1.0, unit: str = "") -> list[str]:
        return [plain(one and scale * one[figure]) + (unit if one else "") for one in blocks.values()]

    cold = [report["modes"][name]["cold"] for name in found]
    return [
        ["", *(MODES[name] for name in found)],
        ["tokens/s of kept text", *of("tokens_per_second")],
        ["solved", *of("solved", 100, " %")],
        ["first text after, s: warm", *of("seconds_to_first")],
        ["  cold, the first of the process", *(plain(run["seconds_to_first"]) for run in cold)],
        ["tokens per forward", *of("tokens_per_forward")],
        ["steps a block: mean", *steps("mean")],
        ["  p50", *steps("p50")],
        ["  p90", *steps("p90")],
        ["  share at the cap", *steps("at_cap", 100, " %")],
        ["ms a step, prefill and commits in it", *of("seconds_per_step", 1e3)],
        ["peak memory of the process so far", *(gigabytes(report["modes"][name]["peak_memory"]) for name in found)],
    ]


def show(report: dict[str, Any]) -> None:
    """The tables, on standard output."""
    told = header(report)
    if ceilings := report.get("ceilings"):
        rates = f"copy {plain(ceilings['copy_bytes_per_second'] / 1e9)} GB/s read and written, product "
        told.append(("ceilings", f"{rates}{flops(ceilings['product_flops_per_second'])}/s"))
    print_lines(told + passes(report))
    for rows in (grid(report), modes(report)):
        if rows:
            print_table(rows[0], rows[1:])
    if rows := parts(report):
        print_table(("part of a step", "ms", "share", "floor, ms"), rows)
    notes = [(f"not told: {name}", reason) for name, reason in report["missing"].items()]
    if report["interrupted"]:
        notes.append(("interrupted", "these are the figures till then"))
    if notes:
        print_lines(notes)
