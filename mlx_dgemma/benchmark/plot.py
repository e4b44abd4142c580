"""Pictures of reports: both modes over steps a block, a step's parts, machines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mistake
from .count import PARTS, tokens_per_second
from .report import MODES, Report, lookup, model_name, speed

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"diffusion": "#2563a8", "autoregression": "#c8601a", "baseline": "#8a8f98"}


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
    if not path.parent.is_dir():
        raise Mistake(f"--plot {path}: there is no folder {path.parent}")


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=144)
    pyplot().close(figure)


def draw_speed(axes: Axes, report: Report) -> None:
    """Draws tokens a second over steps a block: lines from the timed passes, marks where answers were measured."""
    point, canvas, steps = report["passes"][0], report["config"]["canvas_length"], range(1, 49)
    step, commit, token = (point[name]["seconds"]["median"] for name in ("step", "commit", "token"))
    rows, even = point["rows"], point["break_even"]["steps"]
    speeds = [tokens_per_second(canvas, n, step, commit, rows) for n in steps]
    axes.loglog(steps, speeds, color=COLOURS["diffusion"], label="diffusion, full canvases")
    axes.axhline(rows / token, color=COLOURS["autoregression"], label="left to right")
    if 1 <= even <= 48:
        axes.axvline(even, color="grey", ls=":", label=f"equal at {even:.1f} steps")
    for mode, title in MODES.items():
        if rate := lookup(report, f"modes.{mode}.summary.tokens_per_second.median"):
            mean = lookup(report, f"modes.{mode}.summary.steps_per_block.mean") or 48
            axes.plot([mean], [rate], "o", color=COLOURS[mode], clip_on=False, label=f"{title}, answers")
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
    labels = [f"{kind}\n{name}" for name, _ in reports for kind in ("measured", "floor")]
    bottom = [0.0] * len(bars)
    for part in (*PARTS, "rest"):
        heights = [1e3 * max(bar.get(part, 0.0), 0.0) for bar in bars]
        drawn = axes.bar(labels, heights, bottom=bottom, label=part)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.bar_label(drawn, [f"{top:.3g} ms" for top in bottom])
    axes.set(ylabel="ms a step", title="One denoise step, by part")
    axes.tick_params(axis="x", labelsize="small")
    axes.legend(reverse=True)


def plot_report(report: Report, path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    draw_speed(left, report)
    draw_parts(right, [("", report)])
    settings, device = report["settings"], report["machine"]["device"]["name"]
    figure.suptitle(f"{model_name(settings)}, {settings['precision']}, on {device}")
    save(figure, path)


def plot_comparison(reports: Sequence[tuple[str, Report]], path: Path) -> None:
    """Draws speed of both modes and the parts of a step, one group of bars a machine."""
    size = (4 + 5 * len(reports), 4.6)
    figure, (left, right) = pyplot().subplots(1, 2, figsize=size, width_ratios=(1, 2), layout="constrained")
    for offset, mode in ((-0.2, "diffusion"), (0.2, "autoregression")):
        speeds = [speed(report, mode) or 0.0 for _, report in reports]
        places = [number + offset for number in range(len(reports))]
        left.bar_label(left.bar(places, speeds, 0.38, color=COLOURS[mode], label=MODES[mode]), fmt="%.3g")
    left.set_xticks(range(len(reports)), labels=[name for name, _ in reports])
    left.set(ylabel="tokens a second", title="Speed")
    left.legend()
    draw_parts(right, reports)
    save(figure, path)


def plot_steps(curve: dict[str, Any], path: Path) -> None:
    """Draws solve rate and speed over the cap on steps, points measured; left to right as a line."""
    figure, both = pyplot().subplots(2, 1, figsize=(7, 6.2), sharex=True, layout="constrained")
    points, beside = curve["points"], curve["autoregression"]
    caps = [point["max_denoising_steps"] for point in points]
    shown = ("solved", 100, "solved, %"), ("tokens_per_second", 1, "tokens/s")
    for axes, (name, scale, label) in zip(both, shown, strict=True):
        axes.plot(caps, [scale * point[name] for point in points], "o-", color=COLOURS["diffusion"], label="diffusion")
        axes.axhline(scale * beside[name], color=COLOURS["autoregression"], label="left to right")
        axes.set(ylabel=label, ylim=(0, None))
        axes.legend()
    both[1].set_xticks(caps)
    both[1].set_xlabel("steps that a block may take")
    both[0].set_title(f"{curve['prompts']} prompts of {len(beside['solved_by_task'])} tasks, the embedded model")
    save(figure, path)
