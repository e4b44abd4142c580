"""Pictures of reports, made to be read: both modes over steps a block, a step's parts, machines side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Mistake
from .count import PARTS, tokens_per_second

BLUE, ORANGE, GREY, INK = "#2563a8", "#c8601a", "#8a8f98", "#22262c"
COLOURS = ("#2563a8", "#6fa3d8", "#8c6bb1", "#3d8f6d", "#c8a13a", "#c4c8ce")  # of parts, and of the rest
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 11,
    "axes.titlelocation": "left", "legend.frameon": False, "figure.dpi": 120, "savefig.dpi": 144,
}  # fmt: skip


def pyplot() -> Any:
    """matplotlib's, drawing into files."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise Mistake("--plot needs matplotlib, which is not installed: pip install 'mlx_dgemma[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    return plt


def check(path: Path) -> None:
    """Before anything is measured. Mistake if it could not be written afterwards."""
    known = sorted(pyplot().figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in known:
        raise Mistake(f"--plot {path}: need a name that ends in one of {', '.join('.' + kind for kind in known)}")
    if not path.parent.is_dir():
        raise Mistake(f"--plot {path}: there is no folder {path.parent}")


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight")
    pyplot().close(figure)


def _canvas(report: dict[str, Any]) -> int:
    return report["config"]["canvas_length"]


def _modes(axes: Any, report: dict[str, Any]) -> None:
    """Tokens a second over steps a block: lines from the timed passes, marks where answers were measured."""
    point = report["passes"][0]
    step, commit, token = (point[name]["seconds"]["median"] for name in ("step", "commit", "token"))
    rows, even = point["rows"], point["break_even"]
    steps = [n / 4 for n in range(4, 4 * 48 + 1)]
    speeds = [tokens_per_second(_canvas(report), n, step, commit, rows) for n in steps]
    axes.plot(steps, speeds, color=BLUE, lw=2)
    axes.axhline(rows / token, color=ORANGE, lw=2)
    axes.set(xscale="log", yscale="log", xlabel="steps a block", ylabel="tokens a second", xlim=(1, 48))
    axes.set_xticks([1, 2, 4, 8, 16, 32, 48], labels=["1", "2", "4", "8", "16", "32", "48"])
    axes.minorticks_off()
    _plain_ticks(axes.yaxis)
    axes.annotate("diffusion, full canvases", (1, speeds[0]), (8, 0), textcoords="offset points", color=BLUE)
    if 1 <= even["steps"] <= 48:
        axes.axvline(even["steps"], color=GREY, lw=1, ls=":")
        axes.plot([even["steps"]], [rows / token], "o", mfc="white", mec=INK, ms=7, zorder=5)
        # Where the line leaves room: above it on the left, below it on the right.
        place, side, edge = ((10, 12), "left", "bottom") if even["steps"] < 9 else ((-10, -12), "right", "top")
        said = f"equal at {even['steps']:.1f} steps:\n{even['tokens_per_forward']:.1f} tokens per forward"
        axes.annotate(said, (even["steps"], rows / token), place, textcoords="offset points", ha=side, va=edge)
    many = "one sequence" if rows == 1 else f"{rows} sequences at once"
    axes.set_title(f"Speed, {point['context']:,} tokens of context, {many}")
    axes.margins(y=0.12)
    _answers(axes, report, [(rows / token, "left to right")])


def _answers(axes: Any, report: dict[str, Any], labels: list[tuple[float, str]]) -> None:
    """Where the answers' wall speed lies, diffusion's at its mean steps, the others' at the right edge, beside which
    `labels` and theirs are written."""
    for name, mode in report["modes"].items():
        if not (found := mode.get("summary")):
            continue
        speed, blocks = found["tokens_per_second"], found.get("steps_per_block")
        around = [[speed["median"] - speed["min"]], [speed["max"] - speed["median"]]]
        where, colour = (blocks["mean"], BLUE) if blocks else (48, ORANGE)
        mark = {"color": colour, "clip_on": False, "zorder": 4}
        axes.errorbar([where], [speed["median"]], around, fmt="s" if name == "baseline" else "o", **mark)
        if blocks:
            axes.annotate(
                "answers", (where, speed["median"]), (-7, -12), textcoords="offset points", ha="right", color=BLUE
            )
        else:
            labels.append((speed["median"], "AR model" if name == "baseline" else "its answers"))
    low, high = map(math.log, axes.get_ylim())
    height = -1.0
    for value, label in sorted(labels):
        height = max((math.log(value) - low) / (high - low), height + 0.05)  # no two on top of each other
        axes.annotate(label, (1.02, height), xycoords="axes fraction", va="center", color=ORANGE)


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _unit(seconds: float) -> tuple[float, str]:
    return (1, "s") if seconds >= 2 else (1e3, "ms")


def _parts(axes: Any, reports: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Stacked bars of the parts of a step: of each report what was measured, and its floor."""
    found = [report["passes"][0]["parts"] for _, report in reports]
    bars = [parts[kind] for parts in found for kind in ("seconds", "floor_seconds")]
    scale, unit = _unit(max(sum(parts.values()) for parts in bars))
    for index, parts in enumerate(bars):
        bottom = 0.0
        for part, colour in zip((*PARTS, "rest"), COLOURS, strict=True):
            height = scale * max(parts.get(part, 0.0), 0.0)
            axes.bar(index, height, 0.62, bottom, color=colour, label=part if index == 0 else None)
            bottom += height
        axes.annotate(f"{bottom:.3g} {unit}", (index, bottom), (0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(bars)), labels=["measured", "floor"] * len(reports))
    for index, (name, _) in enumerate(reports):
        below = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(name, (2 * index + 0.5, 0), (0, -22), **below)
    axes.set(ylabel=f"{unit} a step", title="One denoise step, by part")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))


def plot_report(report: dict[str, Any], path: Path) -> None:
    if not report["passes"]:
        raise Mistake(f"--plot {path}: no pass was measured, there is nothing to draw")
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(3, 2), layout="constrained")
    _modes(left, report)
    _parts(right, [("", report)])
    device = report["machine"]["device"]
    model = report["settings"]["dummy"] or report["settings"]["model"] or "embedded model"
    figure.suptitle(
        f"{model}, {report['settings']['precision']}, on {device['name']}", x=0.01, ha="left", weight="bold"
    )
    save(figure, path)


def plot_comparison(reports: Sequence[tuple[str, dict[str, Any]]], path: Path) -> None:
    """Speed of both modes and the parts of a step, one group of bars a machine."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(4.5 + 2.6 * len(reports), 4.6), width_ratios=(1, 1.1), layout="constrained"
    )
    reports = [(textwrap.fill(name, 16), report) for name, report in reports]
    names = [name for name, _ in reports]
    for offset, mode, colour in ((-0.2, "diffusion", BLUE), (0.2, "autoregression", ORANGE)):
        speeds = [speed(report, mode) or 0.0 for _, report in reports]
        label = "diffusion" if mode == "diffusion" else "left to right, same checkpoint"
        left.bar([n + offset for n in range(len(names))], speeds, 0.38, color=colour, label=label)
        for index, value in enumerate(speeds):
            left.annotate(
                f"{value:.3g}", (index + offset, value), xytext=(0, 3), textcoords="offset points", ha="center"
            )
    left.set_xticks(range(len(names)), labels=names)
    left.set(ylabel="tokens a second", title="Speed")
    left.margins(y=0.12)
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.12))
    _parts(right, reports)
    save(figure, path)


def speed(report: dict[str, Any], mode: str) -> float | None:
    """Tokens a second of the answers; where there are none, of the passes at the assumed steps a block."""
    found = (report["modes"].get(mode) or {}).get("summary")
    if found:
        return found["tokens_per_second"]["median"]
    return report["passes"][0]["assumed"].get(mode) if report["passes"] else None


def plot_steps(found: dict[str, Any], path: Path) -> None:
    """Solve rate and speed over the cap on steps, points measured; left to right as a line."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 1, figsize=(7, 6.2), sharex=True, layout="constrained")
    points, other = found["points"], found["autoregression"]
    caps = [point["max_denoising_steps"] for point in points]
    for one, name, scale, label in (
        (axes[0], "solved", 100, "tasks solved, %"),
        (axes[1], "tokens_per_second", 1, "tokens a second"),
    ):
        values, beside = [scale * point[name] for point in points], scale * other[name]
        one.plot(caps, values, "o-", color=BLUE, lw=2, clip_on=False)
        for cap, value in zip(caps, values, strict=True):
            one.annotate(f"{value:.3g}", (cap, value), (0, -15), textcoords="offset points", ha="center", color=BLUE)
        one.axhline(beside, color=ORANGE, lw=1.5)
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "color": ORANGE}
        one.annotate(f"left to right,\n{beside:.3g}", (1, beside), xycoords=("axes fraction", "data"), **place)
        one.set(ylabel=label, xscale="log", ylim=(0, 100 if name == "solved" else 1.15 * max([*values, beside])))
    axes[1].set_xticks(caps, labels=[str(cap) for cap in caps])
    axes[1].minorticks_off()
    axes[1].set_xlabel("steps that a block may take")
    axes[0].set_title(f"{found['prompts']} prompts of {len(other['solved_by_task'])} tasks, the embedded model")
    save(figure, path)
