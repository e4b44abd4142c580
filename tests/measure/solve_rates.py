"""How often the embedded model gets its tasks right: ours, or the reference with the same draws.

    python tests/measure/solve_rates.py --prompts 200 [--reference] [--model FOLDER]
    python tests/measure/solve_rates.py --prompts 200 --seeds 3 --modes [--tasks "sudoku 6x6" json]

Prompts come from random.Random("999 NAME") for each task; prompt i of it is run with seed i. Prints one JSON object:
the share solved and the mean steps a block, by task.

With --modes, one table: of each way of writing, by task, the share solved, and mean passes over a canvas, passes that
only checked, tokens written left to right, and seconds. The k-th of the seeds of prompt i is i + k * 1,000,000.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tiny.tasks import TASKS, made
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.diffuse import begin, diffuse
from mlx_dgemma.writing.sampling import PRESETS, SAMPLERS, Sampling
from mlx_dgemma.writing.writing import Writing


def ours(path: str | None) -> Callable[[str, int], tuple[str, int]]:
    model, tokenizer, sampling = load(path)

    def answer(prompt: str, seed: int) -> tuple[str, int]:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
        written = Answer(model.facts, tokenizer, model.facts.canvas_length)
        for step in diffuse(model, tokens, Ask(max_tokens=written.max_tokens, sampling=sampling, seed=seed)):
            written.add(step)
        return written.text, written.steps

    return answer


def theirs(path: str | None) -> Callable[[str, int], tuple[str, int]]:
    import checkpoints
    import reference

    from mlx_dgemma.tokens.tokenizer import Tokenizer

    model, tokenizer = reference.load(path or checkpoints.TINY), Tokenizer(path or checkpoints.TINY)

    def answer(prompt: str, seed: int) -> tuple[str, int]:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
        run = reference.generate(model, tokens, seed=seed, max_tokens=model.config.canvas_length)
        stops = [i for i, t in enumerate(run["tokens"]) if t in model.generation_config.eos_token_id]
        return tokenizer.decode(run["tokens"][: stops[0]] if stops else run["tokens"]), sum(run["steps"])

    return answer


def rates(
    answer: Callable[[str, int], tuple[str, int]], prompts: int, names: Iterable[str] = tuple(TASKS)
) -> dict[str, dict[str, float]]:
    """task -> share `solved` and mean `steps`. The prompts of a task are the same whichever others are run."""
    table = {}
    for name in names:
        runs = []
        for seed, (prompt, right) in enumerate(made(name, prompts)):
            text, steps = answer(prompt, seed)
            runs.append((text == right, steps))
        solved, steps = zip(*runs, strict=True)
        table[name] = {"solved": sum(solved) / prompts, "steps": sum(steps) / prompts}
    return table


def ways(sampling: Sampling) -> dict[str, Ask]:
    """Name -> what is asked."""
    presets = {name: replace(sampling, **options) for name, options in PRESETS.items()}
    asks = {mode: Ask(sampling=sampling, mode=mode) for mode in ("diffusion", "ar", "auto")}
    asks |= {f"--preset {name}": Ask(sampling=preset) for name, preset in presets.items() if name != "reference"}
    asks |= {f"--preset {name} --verify": Ask(sampling=presets[name], verify=True) for name in ("reference", "fast")}
    hasty = replace(presets["fast"], max_denoising_steps=4)
    asks["--preset fast --max-denoising-steps 4 --verify"] = Ask(sampling=hasty, verify=True)
    others = [name for name in SAMPLERS if name != sampling.sampler]
    return asks | {
        f"--preset reference,sampler={name}": Ask(sampling=replace(sampling, sampler=name)) for name in others
    }


def one(model, tokenizer, prompt: str, ask: Ask) -> tuple[str, list[float]]:
    """The answer, and its passes, checks, tokens left to right, and seconds."""
    tokens, start = tokenizer.chat([{"role": "user", "content": prompt}]), time.perf_counter()
    answer, text = Answer(model.facts, tokenizer, ask.max_tokens), begin(model, Text(tokens), ask)
    widths = []
    for step in run(model, [text]):
        answer.add(step)
        widths.append(len(step.canvas))
    single, checked = widths.count(1), isinstance(text, Writing) and text.check
    seconds = time.perf_counter() - start
    return answer.text, [len(widths) - single, text.check.checks if checked else 0, single, seconds]


COLUMNS = ("solved", "passes", "checks", "tokens", "seconds")


def modes(path: str | None, prompts: int, seeds: int, names: Iterable[str]) -> Iterator[tuple[str, str, list[float]]]:
    """(way, task, means in the order of COLUMNS), task by task. All ways answer each prompt before the next: a machine
    that slows down slows them all."""
    model, tokenizer, sampling = load(path)
    for name in names:
        runs: dict[str, list[list[float]]] = {way: [] for way in ways(sampling)}
        for number, (prompt, right) in enumerate(made(name, prompts)):
            for way, ask in ways(sampling).items():
                for k in range(1 if ask.mode == "ar" else seeds):  # the likeliest tokens need no seed
                    seed = number + k * 1_000_000
                    asked = replace(ask, max_tokens=model.facts.canvas_length, seed=seed)
                    text, counts = one(model, tokenizer, prompt, asked)
                    runs[way].append([text == right, *counts])
        for way, way_runs in runs.items():
            yield way, name, np.mean(np.array(way_runs, float), axis=0).tolist()


def table(rows: Iterable[tuple[str, str, list[float]]]) -> str:
    """Markdown: a line a way, a column a task."""
    by_way: dict[str, dict[str, list[float]]] = {}
    for way, name, means in rows:
        by_way.setdefault(way, {})[name] = means
        print(way, name, dict(zip(COLUMNS, means, strict=True)), file=sys.stderr, flush=True)
    names = list(next(iter(by_way.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for way, by_task in by_way.items():
        lines.append(f"| {way} | " + " | ".join(cell(by_task[name]) for name in names) + " |")
    return "\n".join(lines)


def cell(means: list[float]) -> str:
    solved, passes, checks, tokens, seconds = means
    parts = [f"{passes + checks:.1f}" if passes else "", f"{tokens:.0f} t" if tokens else ""]
    return f"{solved:.1%}, {' + '.join(filter(None, parts))}, {seconds:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--modes", action="store_true", help="the table of modes, presets and samplers")
    parser.add_argument("--seeds", type=int, default=1, help="of --modes, a prompt")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="of --modes")
    options = parser.parse_args()
    if options.modes:
        print(table(modes(options.model, options.prompts, options.seeds, options.tasks)))
        return
    answer = (theirs if options.reference else ours)(options.model)
    print(json.dumps(rates(answer, options.prompts), indent=1))


if __name__ == "__main__":
    main()
