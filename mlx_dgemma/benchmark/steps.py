"""Steps against quality and speed: the embedded model's tasks with fewer passes a block than it would take."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Mistake
from ..load import load
from ..terminal.command import Parser, at_least
from ..writing.ask import Ask
from .plot import check, plot_steps
from .report import Figure, percent, plain, print_table, rows
from .runs import Run, answer_all, from_tasks, solve_rate, speed, steps_per_block, writer
from .subject import is_embedded
from .tasks import LEARNT

CAPS = (4, 8, 12, 16, 24, 32, 48)
FIGURES: list[Figure] = [
    ("solved", "solved", "{:.1%}".format),
    *((f"  {task}", f"solved_by_task.{task}", percent) for task in LEARNT),
    ("steps a block, mean", "steps_per_block.mean", plain),
    ("  share at the cap", "steps_per_block.at_cap", percent),
    ("tokens/s", "tokens_per_second", plain),
]


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
    """Sums up all runs with one cap; 0 is left to right."""
    tasks = {task: [run for run in runs if run["prompt"] == task] for task in LEARNT}
    return {
        "max_denoising_steps": cap,
        "solved": solve_rate(runs),
        "solved_by_task": {task: solve_rate(answers) for task, answers in tasks.items() if answers},
        "tokens_per_second": speed(runs),
        "steps_per_block": steps_per_block(runs, cap),
    }


def command(options: argparse.Namespace) -> int:
    if options.plot:
        check(Path(options.plot))
    model, tokenizer, sampling = load(options.model, backend=options.backend)
    if not is_embedded(model.config):
        raise Mistake(f"--model {options.model}: right answers are known for the embedded model alone; leave it out")
    prompts = from_tasks(tokenizer, model.facts.canvas_length, options.each)
    asks = {0: Ask(mode="ar")} | {cap: Ask(sampling=replace(sampling, max_denoising_steps=cap)) for cap in CAPS}
    writers = {cap: writer(model, tokenizer, ask) for cap, ask in asks.items()}
    runs: dict[int, list[Run]] = {cap: [] for cap in writers}
    answer_all([(write, prompts[0], options.seed, []) for write in writers.values()])  # cold
    numbered = enumerate(prompts, options.seed)
    try:  # all answer a prompt before the next: a machine that slows down slows them all
        answer_all([(write, prompt, n, runs[cap]) for n, prompt in numbered for cap, write in writers.items()])
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
    count = min(map(len, runs.values()))
    if not count:
        return 130
    left_to_right, *points = (point(runs[cap][:count], cap) for cap in writers)
    curve = {"prompts": count, "seed": options.seed, "autoregression": left_to_right, "points": points}
    if options.plot:
        plot_steps(curve, Path(options.plot))
    if options.json:
        print(json.dumps(curve))
    else:
        print_table(["steps at most", *map(str, CAPS), "left to right"], rows(FIGURES, [*points, left_to_right]))
    return 0 if count == len(prompts) else 130
