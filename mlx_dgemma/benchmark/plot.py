"""Pictures of reports, made to be read: both modes over steps a block, a step's parts, machines side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..mistake import Mistake
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
    """Tokens a second over steps a block: lines from the timed passes, dots where answers were measured."""
    point = report["passes"][0]
    step, commit, token = (point[name]["seconds"]["median"] for name in ("step", "commit", "token"))
    rows, even = point["rows"], point["break_even"]["steps"]
    steps = [n / 4 for n in range(4, 4 * 48 + 1)]
    axes.plot(steps, [tokens_per_second(_canvas(report), n, step, commit, rows) for n in steps], color=BLUE, lw=2)
    axes.axhline(rows / token, color=ORANGE, lw=2)
    axes.set(xscale="log", yscale="log", xlabel="steps a block", ylabel="tokens a second", xlim=(1, 48))
    axes.set_xticks([1, 2, 4, 8, 16, 32, 48], labels=["1", "2", "4", "8", "16", "32", "48"])
    axes.minorticks_off()
    _plain_ticks(axes.yaxis)
    axes.annotate("diffusion, full canvases", (1, tokens_per_second(_canvas(report), 1, step, commit, rows)),
                  xytext=(8, 0), textcoords="offset points", color=BLUE, va="bottom")  # fmt: skip
    axes.annotate(
        "left to right", (48, rows / token), xytext=(0, 5), textcoords="offset points", color=ORANGE, ha="right"
    )
    if 1 <= even <= 48:
        axes.axvline(even, color=GREY, lw=1, ls=":")
        axes.plot([even], [rows / token], "o", mfc="white", mec=INK, ms=7, zorder=5)
        axes.annotate(f"equal at {even:.1f} steps:\n{point['break_even']['tokens_per_forward']:.1f} tokens per forward",
                      (even, rows / token), xytext=(10, 12), textcoords="offset points", va="bottom")  # fmt: skip
    _answers(axes, report)
    many = "one sequence" if rows == 1 else f"{rows} sequences at once"
    axes.set_title(f"Speed, {point['context']:,} tokens of context, {many}")
    axes.margins(y=0.12)


def _answers(axes: Any, report: dict[str, Any]) -> None:
    """Where the answers' mean steps and wall speed lie; other modes as marks at the right edge."""
    for name, mode in report["modes"].items():
        found = mode.get("summary")
        if not found:
            continue
        speed = found["tokens_per_second"]
        below, above = speed["median"] - speed["min"], speed["max"] - speed["median"]
        blocks = found.get("steps_per_block")
        where, colour = (blocks["mean"], BLUE) if blocks else (44, ORANGE)
        label = {"diffusion": "answers", "autoregression": "answers", "baseline": "AR model"}[name]
        axes.errorbar(
            [where], [speed["median"]], [[below], [above]], fmt="s" if name == "baseline" else "o", color=colour
        )
        beside = {"xytext": (-7, -3), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate(label, (where, speed["median"]), color=colour, **beside)


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _unit(seconds: float) -> tuple[float, str]:
    return (1, "s") if seconds >= 2 else (1e3, "ms")


def _parts(axes: Any, bars: Sequence[tuple[str, dict[str, float]]], title: str) -> None:
    """Stacked bars of the parts of a step, each part named once, beside the last bar that shows it widely enough."""
    scale, unit = _unit(max(sum(parts.values()) for _, parts in bars))
    named = (*PARTS, "rest")
    for index, (_, parts) in enumerate(bars):
        bottom = 0.0
        for part, colour in zip(named, COLOURS, strict=True):
            height = scale * max(parts.get(part, 0.0), 0.0)
            axes.bar(index, height, 0.62, bottom, color=colour, label=part if index == 0 else None)
            bottom += height
        axes.annotate(f"{bottom:.3g} {unit}", (index, bottom), xytext=(0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(bars)), labels=[name for name, _ in bars])
    axes.set(ylabel=f"{unit} a step", title=title)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))


def _step_bars(report: dict[str, Any], name: str = "") -> list[tuple[str, dict[str, float]]]:
    parts = report["passes"][0]["parts"]
    return [(f"{name}measured", parts["seconds"]), (f"{name}floor", parts["floor_seconds"])]


def plot_report(report: dict[str, Any], path: Path) -> None:
    if not report["passes"]:
        raise Mistake(f"--plot {path}: no pass was measured, there is nothing to draw")
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(3, 2), layout="constrained")
    _modes(left, report)
    _parts(right, _step_bars(report), "One denoise step, by part")
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
    _parts(
        right, [bar for name, report in reports for bar in _step_bars(report, f"{name}\n")], "One denoise step, by part"
    )
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
