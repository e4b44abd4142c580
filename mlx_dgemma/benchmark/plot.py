"""Pictures: both ways of writing over the steps of a block, machine by machine; published beside predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..terminal.command import check_target
from .count import tokens_per_second
from .devices import Published, Range, device
from .report import Report, lookup

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = (1, 2, 4, 8, 16, 32, 48)


def pyplot() -> ModuleType:
    """Imports matplotlib's, drawing into files."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise Mistake("--plot needs matplotlib, which is not installed: pip install 'mlx_dgemma[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    return plt


def check(path: Path) -> None:
    """Raises Mistake if a picture could not be written there. Called before anything is measured."""
    known = sorted(pyplot().figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in known:
        raise Mistake(f"--plot {path}: need a name that ends in one of {', '.join('.' + kind for kind in known)}")
    check_target("--plot", path)


def save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Mistake(f"--plot {path} cannot be written: {error.strerror}") from None
    finally:
        pyplot().close(figure)


def logarithmic(*axes: Axes) -> None:
    """Marks both axes at 1, 2, 5, 10 and so on."""
    for axis in [axis for each in axes for axis in (each.xaxis, each.yaxis)]:
        axis.set_major_locator(pyplot().matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.6g}")
    for each in axes:
        each.minorticks_off()
        each.legend(fontsize="small")


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
    answers = lookup(report, "modes.diffusion.summary")
    if answers:
        mean, rate = answers["steps_per_block"]["mean"], answers["tokens_per_second"]["median"]
        axes.plot([mean], [rate], "s", color=colour, label="  answers, kept text")


def plot_machines(reports: Sequence[tuple[str, Report]], path: Path) -> None:
    """Draws machines with shared memory beside those whose GPU has its own, as far as there are both."""
    kinds: dict[bool, list[tuple[str, Report]]] = {}
    for name, report in reports:
        kinds.setdefault(bool(report["machine"]["device"]["shared_memory"]), []).append((name, report))
    figure, panels = pyplot().subplots(
        1, len(kinds), figsize=(7 * len(kinds), 5), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, shared in zip(panels[0], sorted(kinds, reverse=True), strict=True):
        for number, (name, report) in enumerate(kinds[shared]):
            draw_machine(axes, name, report, f"C{number}")
        title = "Memory shared with the CPU" if shared else "The GPU's own memory"
        axes.set(xlabel="steps a block", ylabel="tokens a second", xlim=(STEPS[0], STEPS[-1]), title=title)
        logarithmic(axes)
        axes.set_xticks(STEPS, labels=map(str, STEPS))
    save(figure, path)


def plot_published(pairs: Sequence[tuple[Published, Range]], path: Path) -> None:
    """Draws predicted over published ms, each row left out in turn: steps, and tokens left to right."""
    figure, both = pyplot().subplots(1, 2, figsize=(12, 5.6), layout="constrained")
    families = list(dict.fromkeys(device(row.device).family for row, _ in pairs))
    for axes, kind, title in zip(both, ("step", "token"), ("A denoise step", "A token, left to right"), strict=True):
        for row, seconds in (pair for pair in pairs if pair[0].kind == kind):
            fastest, middle, slowest = (1e3 * one for one in seconds)
            family = device(row.device).family
            axes.errorbar(
                1e3 * row.seconds, middle, [[middle - fastest], [slowest - middle]], fmt="o", elinewidth=1, alpha=0.8,
                color=f"C{families.index(family)}", label=family,
            )  # fmt: skip
        ends = [0.8e3 * min(row.seconds for row, _ in pairs if row.kind == kind)]
        ends.append(1.25e3 * max(row.seconds for row, _ in pairs if row.kind == kind))
        axes.loglog(ends, ends, color="grey", lw=1)
        axes.fill_between(ends, [end / 2 for end in ends], [2 * end for end in ends], color="grey", alpha=0.12)
        axes.set(xlabel="published, ms", ylabel="predicted from the other rows, ms", title=title)
        logarithmic(axes)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(dict(zip(labels, handles, strict=True)).values(), dict.fromkeys(labels), title="shaded: factor 2")
    save(figure, path)
