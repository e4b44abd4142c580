"""How often the embedded model gets its tasks right: ours, or the reference with the same draws.

    python tests/solve_rates.py --prompts 200 [--reference] [--model FOLDER]
    python tests/solve_rates.py --prompts 200 --seeds 3 --modes [--tasks "sudoku 6x6" json]

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

from mlx_dgemma.benchmark.tasks import TASKS, made
from mlx_dgemma.load import load
from mlx_dgemma.writing import left_to_right
from mlx_dgemma.writing import verify as repair
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.route import Router
from mlx_dgemma.writing.sampling import PRESETS, SAMPLERS, Sampling, preset
from mlx_dgemma.writing.writing import Step, begin, diffuse, steps


def ours(path: str | None) -> Callable[[str, int], tuple[str, int]]:
    model, tokenizer, sampling = load(path)

    def answer(prompt: str, seed: int) -> tuple[str, int]:
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
        said = Answer(model.config, tokenizer, model.config.canvas_length)
        for step in diffuse(model, tokens, max_tokens=said.max_tokens, sampling=sampling, seed=seed):
            said.add(step)
        return said.text, said.steps

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
    found = {}
    for name in names:
        runs = []
        for seed, (prompt, right) in enumerate(made(name, prompts)):
            said, steps = answer(prompt, seed)
            runs.append((said == right, steps))
        solved, steps = zip(*runs, strict=True)
        found[name] = {"solved": sum(solved) / prompts, "steps": sum(steps) / prompts}
    return found


def ways(sampling: Sampling) -> dict[str, tuple[str, Sampling]]:
    """Name -> what writes it, and with which sampling."""
    found = {"diffusion": ("diffusion", sampling), "ar": ("ar", sampling), "auto": ("auto", sampling)}
    found |= {f"--preset {name}": ("diffusion", preset(sampling, name)) for name in PRESETS if name != "reference"}
    found |= {f"--preset {name} --verify": ("verify", preset(sampling, name)) for name in ("reference", "fast")}
    hasty = replace(preset(sampling, "fast"), max_denoising_steps=4)
    found["--preset fast --max-denoising-steps 4 --verify"] = ("verify", hasty)
    own = [name for name in SAMPLERS if name != sampling.sampler]
    return found | {f"--sampler {name}": ("diffusion", replace(sampling, sampler=name)) for name in own}


def counted(model, tokens, how: str, options: dict) -> tuple[Iterator[Step], Callable[[], int]]:
    """The steps of an answer, and a count of the passes that only checked."""
    if how == "ar":
        return left_to_right.batch(model, [left_to_right.begin(model, tokens, **options)]), lambda: 0
    if how == "auto":
        return Router(model, tokens, **options).steps(), lambda: 0
    if how == "verify":
        writing = repair.begin(model, tokens, **options)
        return steps(model, writing), lambda: writing.checks
    return steps(model, begin(model, tokens, **options)), lambda: 0


def one(model, tokenizer, prompt: str, how: str, sampling: Sampling, seed: int) -> tuple[str, list[float]]:
    """The answer, and its passes, checks, tokens left to right, and seconds."""
    tokens, start = tokenizer.chat([{"role": "user", "content": prompt}]), time.perf_counter()
    said = Answer(model.config, tokenizer, model.config.canvas_length)
    found, checks = counted(model, tokens, how, {"max_tokens": said.max_tokens, "sampling": sampling, "seed": seed})
    widths = []
    for step in found:
        said.add(step)
        widths.append(len(step.canvas))
    single = widths.count(1)
    return said.text, [len(widths) - single, checks(), single, time.perf_counter() - start]


COLUMNS = ("solved", "passes", "checks", "tokens", "seconds")


def modes(path: str | None, prompts: int, seeds: int, names: Iterable[str]) -> Iterator[tuple[str, str, list[float]]]:
    """(way, task, means in the order of COLUMNS), task by task. All ways answer each prompt before the next: a machine
    that slows down slows them all."""
    model, tokenizer, sampling = load(path)
    for name in names:
        runs: dict[str, list[list[float]]] = {way: [] for way in ways(sampling)}
        for number, (prompt, right) in enumerate(made(name, prompts)):
            for way, (how, own) in ways(sampling).items():
                for k in range(1 if how == "ar" else seeds):  # the likeliest tokens need no seed
                    said, counts = one(model, tokenizer, prompt, how, own, number + k * 1_000_000)
                    runs[way].append([said == right, *counts])
        for way, own_runs in runs.items():
            yield way, name, np.mean(np.array(own_runs, float), axis=0).tolist()


def table(rows: Iterable[tuple[str, str, list[float]]]) -> str:
    """Markdown: a line a way, a column a task."""
    found: dict[str, dict[str, list[float]]] = {}
    for way, name, means in rows:
        found.setdefault(way, {})[name] = means
        print(way, name, dict(zip(COLUMNS, means, strict=True)), file=sys.stderr, flush=True)
    names = list(next(iter(found.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for way, by_task in found.items():
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
