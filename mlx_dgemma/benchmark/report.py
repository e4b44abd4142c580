"""A report: what was measured, and all that is needed to measure it again. JSON for programs, a table for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..load import gigabytes
from ..mistake import Mistake, NotFound

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


def _number(value: float | None, unit: str = "", digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}{unit}"


def _spread(found: dict[str, float] | None, scale: float = 1.0, unit: str = "") -> str:
    """Median, and least to most where they differ."""
    if found is None:
        return "-"
    median, least, most = (f"{scale * found[name]:.3g}" for name in ("median", "min", "max"))
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
        ("model", f"{model or settings['model'] or 'the embedded one'}, {settings['precision']}"),
        *[(f"{who} bits a weight", bits) for who, bits in _bits(report)],
    ]


def _bits(report: dict[str, Any]) -> list[tuple[str, str]]:
    of = {"its": report.get("bits"), "AR model's": (report["modes"].get("baseline") or {}).get("bits")}
    return [(who, ", ".join(f"{name} {value:.3g}" for name, value in bits.items())) for who, bits in of.items() if bits]


def passes(report: dict[str, Any]) -> list[list[str]]:
    """One row a figure, one column a context and number of rows."""
    points = report["passes"]
    rows = [["context x rows", *(f"{p['context']} x {p['rows']}" for p in points)]]
    rows.append(["prefill, tokens/s", *(_number(p["prefill_tokens_per_second"]) for p in points)])
    for name, title in (("step", "denoise step"), ("commit", "commit"), ("token", "token, left to right")):
        rows.append([f"{title}, ms", *(_spread(p[name]["seconds"], 1e3) for p in points)])
        floors = [p[name]["floor_seconds"] for p in points]
        times = [p[name]["seconds"]["median"] / floor for p, floor in zip(points, floors, strict=True)]
        rows.append(["  floor, ms", *(f"{1e3 * f:.3g} (x {t:.2f})" for f, t in zip(floors, times, strict=True))])
        rows.append(["  counted", *(_counted(p[name]) for p in points)])
        rows.append(["  of the copy's bytes/s, product's FLOP/s", *(_shares(p[name]) for p in points)])
    rows.append(["break-even, steps a block", *(_number(p["break_even"]["steps"], digits=3) for p in points)])
    rows.append(["break-even, tokens per forward",
                 *(_number(p["break_even"]["tokens_per_forward"], digits=3) for p in points)])  # fmt: skip
    if points and report["settings"]["dummy"]:
        steps = points[0]["assumed"]["steps"]
        for name, mode in (
            ("diffusion", f"tokens/s, {steps} steps a block assumed"),
            ("autoregression", "tokens/s, left to right"),
        ):
            rows.append([mode, *(_number(p["assumed"][name]) for p in points)])
    return rows


def _counted(one: dict[str, Any]) -> str:
    return f"{gigabytes(sum(one['bytes'].values()))}, {sum(one['flops'].values()) / 1e12:.3g} TFLOP"


def _shares(one: dict[str, Any]) -> str:
    return f"{one['share_of_copy']:.0%}, {one['share_of_product']:.0%}"


def parts(report: dict[str, Any]) -> list[list[str]]:
    """Of the first context: part, milliseconds, share, floor."""
    if not report["passes"]:
        return []
    found = report["passes"][0]["parts"]
    whole = sum(found["seconds"].values())
    return [
        [part, f"{1e3 * seconds:.3g}", f"{seconds / whole:.0%}",
         f"{1e3 * floor:.3g}" if (floor := found["floor_seconds"].get(part)) is not None else "-"]
        for part, seconds in found["seconds"].items()
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
        return [_number(one and scale * one[figure], unit, 3) for one in blocks.values()]

    cold = [report["modes"][name]["cold"] for name in found]
    return [
        ["", *(MODES[name] for name in found)],
        ["tokens/s of kept text", *of("tokens_per_second")],
        ["solved", *of("solved", 100, " %")],
        ["first text after, s: warm", *of("seconds_to_first")],
        ["  cold, the process's first", *(_number(run["seconds_to_first"], digits=3) for run in cold)],
        ["tokens per forward", *of("tokens_per_forward")],
        ["steps a block: mean", *steps("mean")],
        ["  p50", *steps("p50")],
        ["  p90", *steps("p90")],
        ["  share at the cap", *steps("at_cap", 100, " %")],
        ["ms a step, prefill and commits in it", *of("seconds_per_step", 1e3)],
        ["peak memory", *(gigabytes(report["modes"][name]["peak_memory"]) for name in found)],
    ]


def show(report: dict[str, Any]) -> None:
    """The tables, on standard output."""
    print_lines(header(report))
    if ceilings := report.get("ceilings"):
        print_lines([("ceilings", f"copy {ceilings['copy_bytes_per_second'] / 1e9:.4g} GB/s read and written, product "
                                  f"{ceilings['product_flops_per_second'] / 1e12:.4g} TFLOP/s")])  # fmt: skip
    for rows in (passes(report), modes(report)):
        if rows:
            print_table(rows[0], rows[1:])
    if rows := parts(report):
        print_table(("part of a step", "ms", "share", "floor, ms"), rows)
    notes = [
        *report["missing"].items(),
        *([("interrupted", "what was measured till then")] if report["interrupted"] else []),
    ]
    if notes:
        print_lines([("not told: " + name, reason) for name, reason in notes])
