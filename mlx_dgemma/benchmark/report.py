"""A report: what was measured, and all that is needed to measure it again. JSON for programs, tables for people."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.memory import gigabytes
from ..checkpoint.whole_file import whole_file
from ..errors import Mistake
from ..terminal.command import read
from ..terminal.table import ms, percent, plain, print_table

VERSION = 1
NEEDED = {"machine": dict, "settings": dict, "config": dict, "passes": list, "modes": dict, "missing": dict}
KEY = "mlx_dgemma_benchmark"  # whose value is the version
MODES = {"diffusion": "diffusion", "autoregression": "left to right", "baseline": "AR model"}
Report = dict[str, Any]
Figure = tuple[str, str, Callable[[Any], str]]  # title of its row, where it is in a report, how it is written


def read_report(path: Path) -> Report:
    """Raises Mistake if it is no report, or one of another version."""
    text = read(str(path))
    try:
        report = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path} is not JSON: {error}") from None
    version = report.get(KEY) if isinstance(report, dict) else None
    if version is None:
        raise Mistake(f"{path} is no report of this benchmark: it has no {KEY!r}")
    if version != VERSION:
        raise Mistake(f"{path} is a report of version {version}, this program reads version {VERSION}: measure again")
    if lacking := [name for name, kind in NEEDED.items() if not isinstance(report.get(name), kind)]:
        raise Mistake(f"{path} is no whole report: it lacks {', '.join(lacking)}; measure again")
    return report


@contextmanager
def whole(*paths: str) -> Iterator[None]:
    """Mistake where one of these reports turns out to be damaged in the block."""
    try:
        yield
    except Mistake:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise Mistake(f"{' or '.join(paths)} is damaged, or was changed by hand ({error}): measure again") from None


def write_report(path: Path, report: Report) -> None:
    """Writes it whole, or leaves what is there. Mistake where that cannot be."""
    try:
        with whole_file(path) as part:
            part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise Mistake(f"--out {path} cannot be written: {error.strerror}") from None


def lookup(part: Any, path: str) -> Any:
    """Follows keys with dots between them, numbers in lists; None where one is missing."""
    for key in path.split("."):
        try:
            part = part[int(key) if isinstance(part, list) else key]
        except (LookupError, TypeError):  # TypeError: of a null
            return None
    return part


def speed(report: Report, mode: str) -> float | None:
    """Returns tokens a second of the answers; where there are none, of the passes at the assumed steps a block."""
    answers = lookup(report, f"modes.{mode}.summary.tokens_per_second.median")
    return lookup(report, f"passes.0.assumed.{mode}") if answers is None else answers


def spread(values: dict[str, float], scale: float = 1.0) -> str:
    """Writes the median, and least to most where they differ."""
    median, least, most = (plain(values[name], scale) for name in ("median", "min", "max"))
    return median + (f" ({least}-{most})" if least != most else "")


spread_ms = partial(spread, scale=1e3)


def model_name(settings: dict[str, Any]) -> str:
    if settings["dummy"]:
        return f"random weights of the shape {settings['dummy']}"
    return settings["model"] or "the embedded model"


def _timed(name: str, title: str) -> list[Figure]:
    return [
        (f"{title}, ms", f"{name}.seconds", spread_ms),
        ("  its floor, by count", f"{name}.floor_seconds", ms),
        ("  share of the copy", f"{name}.share_of_copy", percent),
        ("  share of the product", f"{name}.share_of_product", percent),
    ]


MACHINE: list[Figure] = [
    ("machine", "machine.device.name", str),
    ("  memory", "machine.device.memory", gigabytes),
    ("", "machine.device.shared_memory", lambda shared: "shared with the CPU" if shared else "the GPU's own"),
    ("  backend", "machine.device.backend", str),
    ("model", "settings", model_name),
    ("  precision", "settings.precision", str),
    ("ceilings: copy, GB/s", "ceilings.copy_bytes_per_second", lambda rate: plain(rate, 1e-9)),
    ("  product, TFLOP/s", "ceilings.product_flops_per_second", lambda rate: plain(rate, 1e-12)),
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
    ("tokens/s, left to right", "assumed.autoregression", plain),
    ("tokens/s, diffusion", "assumed.diffusion", plain),
    ("  if a block takes so many steps", "assumed.steps", plain),
    ("peak memory of the process so far", "peak_memory", gigabytes),
]
ANSWERS: list[Figure] = [
    ("tokens/s of kept text", "summary.tokens_per_second", spread),
    ("solved, %", "summary.solved", lambda rates: spread(rates, 100)),
    ("first text after, s: warm", "summary.seconds_to_first", spread),
    ("  cold, the first of the process", "cold.seconds_to_first", plain),
    ("tokens per forward", "summary.tokens_per_forward", spread),
    ("steps a block: mean", "summary.steps_per_block.mean", plain),
    ("  p90", "summary.steps_per_block.p90", plain),
    ("  share at the cap", "summary.steps_per_block.at_cap", percent),
    ("ms a step, prefill and commits in it", "summary.seconds_per_step", spread_ms),
    ("peak memory of the process so far", "peak_memory", gigabytes),
]


def rows(figures: Iterable[Figure], parts: Sequence[Any]) -> list[list[str]]:
    """Makes a row a figure, a column a part of a report; "-" where it was not measured."""
    table = [(title, write, [lookup(part, path) for part in parts]) for title, path, write in figures]
    return [[title, *("-" if value is None else write(value) for value in values)] for title, write, values in table]


def show(report: Report) -> None:
    """Prints all tables of a report; the parts of a step are those of the first context and number of rows."""
    points, modes = report["passes"], [mode for mode in MODES if lookup(report, f"modes.{mode}.summary")]
    print_table(("", ""), rows(MACHINE, [report]), left=2)
    if points:
        print_table(["passes", *[""] * len(points)], rows(PASS, points))
        parts = points[0]["parts"]
        whole, floors = sum(parts["seconds"].values()), parts["floor_seconds"]
        table = [(part, ms(s), percent(s / whole), ms(floors[part]) if part in floors else "-")
                 for part, s in parts["seconds"].items()]  # fmt: skip
        print_table(("part of a step", "ms", "share", "floor, ms"), table)
    if modes:
        print_table(["answers", *map(MODES.get, modes)], rows(ANSWERS, [report["modes"][mode] for mode in modes]))
    notes = [(f"not known: {name}", reason) for name, reason in report["missing"].items()]
    if report["interrupted"]:
        notes.append(("interrupted", "these are the figures till then"))
    print_table(("", ""), notes, left=2)
