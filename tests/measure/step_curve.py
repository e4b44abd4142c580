"""Steps against quality and speed: the embedded model's tasks with at most 4 to 48 passes a block, and left to right.

python tests/measure/step_curve.py --each 20 --plot steps.png > steps.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_dgemma.benchmark.runs import Run, answer_all, from_tasks, solve_rate, speed, steps_per_block, writer
from mlx_dgemma.load import load
from mlx_dgemma.terminal.picture import pyplot, save
from mlx_dgemma.tiny.tasks import TASKS
from mlx_dgemma.writing.ask import Ask

CAPS = (4, 8, 12, 16, 24, 32, 48)


def point(runs: list[Run], cap: int) -> dict[str, Any]:
    """Sums up all runs with one cap; 0 is left to right."""
    tasks = {task: [run for run in runs if run["prompt"] == task] for task in TASKS}
    return {
        "max_denoising_steps": cap,
        "solved": solve_rate(runs),
        "solved_by_task": {task: solve_rate(answers) for task, answers in tasks.items() if answers},
        "tokens_per_second": speed(runs),
        "steps_per_block": steps_per_block(runs, cap),
    }


def curve(each: int, caps: tuple[int, ...] = CAPS, model: str | None = None) -> dict[str, Any]:
    """Measures `each` prompts of every task. All ways answer a prompt before the next: a machine that slows down slows
    them all."""
    loaded, tokenizer, sampling = load(model)
    prompts = from_tasks(tokenizer, loaded.facts.canvas_length, each)
    asks = {0: Ask(mode="ar")} | {cap: Ask(sampling=replace(sampling, max_denoising_steps=cap)) for cap in caps}
    writers = {cap: writer(loaded, tokenizer, ask) for cap, ask in asks.items()}
    runs: dict[int, list[Run]] = {cap: [] for cap in writers}
    answer_all([(write, prompts[0], 0, []) for write in writers.values()])  # cold
    numbered = enumerate(prompts)
    answer_all([(write, prompt, n, runs[cap]) for n, prompt in numbered for cap, write in writers.items()])
    left_to_right, *points = (point(runs[cap], cap) for cap in writers)
    return {"prompts": len(prompts), "autoregression": left_to_right, "points": points}


def plot(curve: dict[str, Any], path: Path) -> None:
    """Draws solve rate and speed over the cap on steps, points measured; left to right as a line."""
    figure, both = pyplot().subplots(2, 1, figsize=(7, 6.2), sharex=True, layout="constrained")
    points, beside = curve["points"], curve["autoregression"]
    caps = [point["max_denoising_steps"] for point in points]
    shown = ("solved", 100, "solved, %"), ("tokens_per_second", 1, "tokens/s")
    for axes, (name, scale, label) in zip(both, shown, strict=True):
        axes.plot(caps, [scale * point[name] for point in points], "o-", color="C0", label="diffusion")
        axes.axhline(scale * beside[name], color="C1", label="left to right")
        axes.set(ylabel=label, ylim=(0, None))
        axes.legend()
    both[1].set_xticks(caps)
    both[1].set_xlabel("steps that a block may take")
    both[0].set_title(f"{curve['prompts']} prompts of {len(beside['solved_by_task'])} tasks, the embedded model")
    save(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=20, metavar="N", help="prompts a task")
    parser.add_argument("--model", metavar="FOLDER", help="the embedded model, converted; without it, as it comes")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    measured = curve(options.each, model=options.model)
    if options.plot:
        plot(measured, options.plot)
    print(json.dumps(measured))
