"""Pictures of reports: both modes over steps a block, a step's parts, machines side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mistake
from .count import PARTS, tokens_per_second
from .report import MODES, Report, lookup, speed

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563a8", "#c8601a", "#8a8f98"
COLOURS = ("#2563a8", "#6fa3d8", "#8c6bb1", "#3d8f6d", "#c8a13a", "#c4c8ce")  # of parts, and of the rest
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "legend.frameon": False}


def pyplot() -> ModuleType:
    """Imports matplotlib's, drawing into files."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise Mistake("--plot needs matplotlib, which is not installed: pip install 'mlx_dgemma[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    return plt


def check(path: Path) -> None:
    """Raises Mistake if a picture could not be written there. Called before anything is measured."""
    known = sorted(pyplot().figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in known:
        raise Mistake(f"--plot {path}: need a name that ends in one of {', '.join('.' + kind for kind in known)}")
    if not path.parent.is_dir():
        raise Mistake(f"--plot {path}: there is no folder {path.parent}")


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=144, bbox_inches="tight")
    pyplot().close(figure)


def draw_speed(axes: Axes, report: Report) -> None:
    """Draws tokens a second over steps a block: lines from the timed passes, marks where answers were measured."""
    point, canvas = report["passes"][0], report["config"]["canvas_length"]
    step, commit, token = (point[name]["seconds"]["median"] for name in ("step", "commit", "token"))
    rows, even, steps = point["rows"], point["break_even"], range(1, 49)
    speeds = [tokens_per_second(canvas, n, step, commit, rows) for n in steps]
    axes.loglog(steps, speeds, color=BLUE, lw=2, label="diffusion, full canvases")
    axes.axhline(rows / token, color=ORANGE, lw=2, label="left to right")
    if 1 <= even["steps"] <= 48:
        label = f"equal at {even['steps']:.1f} steps,\n{even['tokens_per_forward']:.1f} tokens per forward"
        axes.axvline(even["steps"], color=GREY, lw=1, ls=":", label=label)
    for mode, title in MODES.items():
        if rate := lookup(report, f"modes.{mode}.summary.tokens_per_second"):
            mean = lookup(report, f"modes.{mode}.summary.steps_per_block.mean") or 48
            around = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
            look = {"color": BLUE if mode == "diffusion" else ORANGE, "fmt": "s" if mode == "baseline" else "o"}
            axes.errorbar([mean], [rate["median"]], around, **look, clip_on=False, label=f"{title}, answers")
    axes.set(xlabel="steps a block", ylabel="tokens a second", xlim=(1, 48))
    axes.set_xticks([1, 2, 4, 8, 16, 32, 48], labels=["1", "2", "4", "8", "16", "32", "48"])
    axes.yaxis.set_major_locator(pyplot().matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.minorticks_off()
    axes.legend()
    axes.set_title(f"Speed, {point['context']:,} tokens of context, {rows} at once")


def draw_parts(axes: Axes, reports: Sequence[tuple[str, Report]]) -> None:
    """Draws stacked bars of the parts of a step: of each report what was measured, and its floor."""
    bars = [report["passes"][0]["parts"][kind] for _, report in reports for kind in ("seconds", "floor_seconds")]
    bottom = [0.0] * len(bars)
    for part, colour in zip((*PARTS, "rest"), COLOURS, strict=True):
        heights = [1e3 * max(bar.get(part, 0.0), 0.0) for bar in bars]
        drawn = axes.bar(range(len(bars)), heights, 0.62, bottom, color=colour, label=part)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.bar_label(drawn, [f"{top:.3g} ms" for top in bottom], padding=3)
    labels = [f"{kind}\n{name}" for name, _ in reports for kind in ("measured", "floor")]
    axes.set_xticks(range(len(bars)), labels=labels)
    axes.margins(y=0.1)
    axes.set(ylabel="ms a step", title="One denoise step, by part")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)


def plot_report(report: Report, path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.4), width_ratios=(3, 2), layout="constrained")
    draw_speed(left, report)
    draw_parts(right, [("", report)])
    settings, device = report["settings"], report["machine"]["device"]["name"]
    model = settings["dummy"] or settings["model"] or "embedded model"
    figure.suptitle(f"{model}, {settings['precision']}, on {device}", x=0.01, ha="left", weight="bold")
    save(figure, path)


def plot_comparison(reports: Sequence[tuple[str, Report]], path: Path) -> None:
    """Draws speed of both modes and the parts of a step, one group of bars a machine."""
    size = (4.5 + 2.6 * len(reports), 4.6)
    figure, (left, right) = pyplot().subplots(1, 2, figsize=size, width_ratios=(1, 1.1), layout="constrained")
    reports = [(textwrap.fill(name, 16), report) for name, report in reports]
    for offset, mode, label, colour in (
        (-0.2, "diffusion", "diffusion", BLUE),
        (0.2, "autoregression", "left to right, same checkpoint", ORANGE),
    ):
        speeds = [speed(report, mode) or 0.0 for _, report in reports]
        bars = left.bar([n + offset for n in range(len(reports))], speeds, 0.38, color=colour, label=label)
        left.bar_label(bars, [f"{value:.3g}" for value in speeds], padding=3)
    left.set_xticks(range(len(reports)), labels=[name for name, _ in reports])
    left.margins(y=0.1)
    left.set(ylabel="tokens a second", title="Speed")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.12))
    draw_parts(right, reports)
    save(figure, path)


def plot_steps(curve: dict[str, Any], path: Path) -> None:
    """Draws solve rate and speed over the cap on steps, points measured; left to right as a line."""
    figure, (top, bottom) = pyplot().subplots(2, 1, figsize=(7, 6.2), sharex=True, layout="constrained")
    caps = [point["max_denoising_steps"] for point in curve["points"]]
    for axes, name, scale, label in ((top, "solved", 100, "solved, %"), (bottom, "tokens_per_second", 1, "tokens/s")):
        values, beside = [scale * point[name] for point in curve["points"]], scale * curve["autoregression"][name]
        axes.semilogx(caps, values, "o-", color=BLUE, lw=2, clip_on=False, label="diffusion")
        for cap, value in zip(caps, values, strict=True):
            axes.annotate(f"{value:.3g}", (cap, value), (0, -15), textcoords="offset points", ha="center", color=BLUE)
        axes.axhline(beside, color=ORANGE, lw=1.5, label=f"left to right, {beside:.3g}")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        axes.legend(loc="best")
    bottom.set_xticks(caps, labels=[str(cap) for cap in caps])
    bottom.minorticks_off()
    bottom.set_xlabel("steps that a block may take")
    tasks = len(curve["autoregression"]["solved_by_task"])
    top.set_title(f"{curve['prompts']} prompts of {tasks} tasks, the embedded model")
    save(figure, path)
