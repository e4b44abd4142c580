"""Pictures: both ways of writing over the steps of a block, machine by machine; published beside predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..terminal.picture import pyplot, save
from .count import tokens_per_second
from .devices import Published, Range, device
from .report import Report, lookup

Axes = Any  # matplotlib's, which is imported where it is used
STEPS = (1, 2, 4, 8, 16, 32, 48)


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    """Names all, and marks logarithmic axes at 1, 2, 5, 10 and so on."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.legend(fontsize="small")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(pyplot().matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.6g}")
    axes.minorticks_off()


def draw_machine(axes: Axes, name: str, report: Report, colour: str) -> None:
    """Draws tokens a second of the timed passes, with a ring where both ways are equal, and squares where answers were
    measured."""
    point, canvas = report["passes"][0], report["config"]["canvas_length"]
    step, commit, token = (point[part]["seconds"]["median"] for part in ("step", "commit", "token"))
    level, even = point["rows"] / token, point["break_even"]["steps"]
    speeds = [tokens_per_second(canvas, n, step, commit, point["rows"]) for n in STEPS]
    axes.loglog(STEPS, speeds, color=colour, label=f"{name}, {report['settings']['precision']}: diffusion")
    axes.axhline(level, color=colour, ls="--", label=f"  left to right, equal at {even:.3g} steps")
    if STEPS[0] <= even <= STEPS[-1]:
        axes.plot([even], [level], "o", ms=9, mfc="white", color=colour)
    if answers := lookup(report, "modes.diffusion.summary"):
        mean, rate = answers["steps_per_block"]["mean"], answers["tokens_per_second"]["median"]
        axes.plot([mean], [rate], "s", color=colour, label="  answers, kept text")


def plot_machines(reports: Sequence[tuple[str, Report]], path: Path) -> None:
    """Draws machines with shared memory beside those whose GPU has its own, as far as there are both."""
    titles = {True: "Memory shared with the CPU", False: "The GPU's own memory"}
    kinds = {shared: [pair for pair in reports if bool(pair[1]["machine"]["device"]["shared_memory"]) == shared]
             for shared in titles}  # fmt: skip
    drawn = [shared for shared in titles if kinds[shared]]
    size = (7 * len(drawn), 5)
    figure, panels = pyplot().subplots(1, len(drawn), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, shared in zip(panels[0], drawn, strict=True):
        for number, (name, report) in enumerate(kinds[shared]):
            draw_machine(axes, name, report, f"C{number}")
        finish(axes, titles[shared], "steps a block", "tokens a second")
        axes.set_xticks(STEPS, labels=map(str, STEPS))
    save(figure, path)


def plot_published(pairs: Sequence[tuple[Published, Range]], path: Path) -> None:
    """Draws predicted over published ms, each row left out in turn: steps, and tokens left to right."""
    figure, both = pyplot().subplots(1, 2, figsize=(12, 5.6), layout="constrained")
    families = list(dict.fromkeys(device(row.device).family for row, _ in pairs))
    for axes, kind, title in zip(both, ("step", "token"), ("A denoise step", "A token, left to right"), strict=True):
        for number, family in enumerate(families):
            points = [(row.seconds, *predicted) for row, predicted in pairs
                      if (row.kind, device(row.device).family) == (kind, family)]  # fmt: skip
            seen, fast, middle, slow = 1e3 * np.array(points).T
            axes.errorbar(seen, middle, [middle - fast, slow - middle], fmt="o", color=f"C{number}", label=family)
        ends = 1e3 * np.array([edge(row.seconds for row, _ in pairs if row.kind == kind) for edge in (min, max)])
        axes.loglog(ends, ends, color="grey", lw=1)
        axes.fill_between(ends, ends / 2, 2 * ends, color="grey", alpha=0.12, label="factor 2")
        finish(axes, title, "published, ms", "predicted from the other rows, ms")
    save(figure, path)
