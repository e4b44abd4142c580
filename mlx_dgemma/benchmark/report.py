"""A report: what was measured, and all that is needed to measure it again. JSON for programs; `tables` for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import Mistake
from ..terminal.command import read_file

VERSION = 1
KEY = "mlx_dgemma_benchmark"  # whose value is the version
MODES = {"diffusion": "diffusion", "autoregression": "left to right", "baseline": "AR model"}
Report = dict[str, Any]


def read_report(path: Path) -> Report:
    """Raises Mistake if it is no report, or one of another version."""
    text = read_file(path)
    try:
        report = json.loads(text)
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None
    if not isinstance(report, dict) or KEY not in report:
        raise Mistake(f"{path} is no report of this benchmark: it has no {KEY!r}")
    if report[KEY] != VERSION:
        raise Mistake(
            f"{path} is a report of version {report[KEY]}, this program reads version {VERSION}: measure again"
        )
    return report


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
