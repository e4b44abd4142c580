"""How often the embedded model gets its tasks right: ours, or the reference with the same draws.

    python tests/solve_rates.py --prompts 200 [--reference] [--model FOLDER]

Prompts come from random.Random("999 NAME") for each task; prompt i of it is run with seed i. Prints one JSON object:
the share solved and the mean steps a block, by task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable

from mlx_dgemma.answer import Answer
from mlx_dgemma.benchmark.tasks import TASKS, made
from mlx_dgemma.diffusion import diffuse
from mlx_dgemma.load import load


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

    from mlx_dgemma.tokenizer import Tokenizer

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--model")
    options = parser.parse_args()
    answer = (theirs if options.reference else ours)(options.model)
    print(json.dumps(rates(answer, options.prompts), indent=1))


if __name__ == "__main__":
    main()
