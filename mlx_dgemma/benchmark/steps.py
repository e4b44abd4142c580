"""Steps against quality and speed: the embedded model's tasks with fewer passes a block than it would take."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Mistake
from ..terminal.command import Parser, at_least, progress
from .measure import is_embedded
from .plot import check, plot_steps
from .prompts import Prompt, from_tasks
from .report import print_table
from .runs import Run, Writer, diffuse_prompt, summary, write_prompt
from .tasks import LEARNT

CAPS = (4, 8, 12, 16, 24, 32, 48)


def parser() -> Parser:
    parser = Parser(
        prog="python -m mlx_dgemma.benchmark steps",
        description=f"Solve rate and speed on the tasks with at most {', '.join(map(str, CAPS))} steps a block.",
    )
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="the embedded model, converted; without it, as it comes")
    add("--backend", choices=["mlx", "torch"], help="(default: what the machine has)")
    add("--each", type=at_least(1), default=20, metavar="N", help="prompts a task")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of the first prompt; the i-th has the i-th after it")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--plot", metavar="FILE.png", help="draw solve rate and speed")
    return parser


def point(runs: list[Run], cap: int) -> dict[str, Any]:
    found = summary(runs, cap)
    tasks = sorted({run["prompt"] for run in runs}, key=LEARNT.index)
    return {
        "solved": share(runs),
        "solved_by_task": {task: share([run for run in runs if run["prompt"] == task]) for task in tasks},
        "tokens_per_second": found["tokens"] / sum(run["seconds"] for run in runs),
        "steps_per_block": found.get("steps_per_block"),
    }


def share(runs: list[Run]) -> float:
    return sum(run["solved"] for run in runs) / len(runs)


def answered(writers: dict[int | None, Writer], prompts: list[Prompt], seed: int) -> dict[int | None, list[Run]]:
    """All writers answer each prompt before the next: a machine that slows down slows them all. What is there when
    Ctrl-C comes is kept."""
    runs: dict[int | None, list[Run]] = {cap: [] for cap in writers}
    for write in writers.values():
        write(prompts[0], seed)  # cold
    try:
        with progress(len(prompts)) as bar:
            for number, prompt in enumerate(prompts):
                made = {cap: write(prompt, seed + number) for cap, write in writers.items()}
                for cap, run in made.items():
                    runs[cap].append(run)
                bar()
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
    return runs


def command(options: argparse.Namespace) -> int:
    from ..load import load

    if options.plot:
        check(Path(options.plot))
    chosen = {"backend": options.backend} if options.backend else {}
    model, tokenizer, sampling = load(options.model, **chosen)
    if not is_embedded(model.config):
        raise Mistake(f"--model {options.model}: right answers are known for the embedded model alone; leave it out")
    prompts = from_tasks(tokenizer, model.config.canvas_length, options.each)
    writers: dict[int | None, Writer] = {None: write_prompt(model, tokenizer, sampling)}
    for cap in CAPS:
        writers[cap] = diffuse_prompt(model, tokenizer, replace(sampling, max_denoising_steps=cap))
    runs = answered(writers, prompts, options.seed)
    count = len(runs[None])
    if not count:
        return 130
    found = {
        "prompts": count,
        "seed": options.seed,
        "autoregression": point(runs.pop(None), 0),
        "points": [{"max_denoising_steps": cap, **point(own, cap)} for cap, own in runs.items()],
    }
    if options.plot:
        plot_steps(found, Path(options.plot))
    print(json.dumps(found)) if options.json else show(found)
    return 0 if count == len(prompts) else 130


def show(found: dict[str, Any]) -> None:
    tasks = list(found["autoregression"]["solved_by_task"])

    def row(name: str, one: dict[str, Any]) -> list[str]:
        blocks = one["steps_per_block"]
        return [name, f"{one['solved']:.1%}", f"{blocks['mean']:.2f}" if blocks else "-",
                f"{blocks['at_cap']:.0%}" if blocks else "-", f"{one['tokens_per_second']:.4g}",
                *(f"{one['solved_by_task'][task]:.0%}" for task in tasks)]  # fmt: skip

    rows = [row(str(one["max_denoising_steps"]), one) for one in found["points"]]
    titles = ("steps at most", "solved", "taken, mean", "at the cap", "tokens/s", *tasks)
    print_table(titles, [*rows, row("left to right", found["autoregression"])])
