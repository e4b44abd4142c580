"""Answers prompts and times them: by denoising, left to right, or by another library; and sums up many runs.

The prompts are those of a file, tasks with one right answer, or one of each kind of work."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Mistake
from ..seam.model import DiffusionModel
from ..terminal.command import progress
from ..terminal.requests import read_requests
from ..tiny.tasks import TASKS, made
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..writing.answer import Answer
from ..writing.ask import Ask
from ..writing.diffuse import diffuse

KINDS = {  # name -> prompt, for a model that knows more than the tasks
    "json": "Answer with JSON only, with the keys name, age, job and city: Ivan, a clerk from Kyiv, is 43 years old.",
    "short answer": "What is the capital of Australia? Answer with its name only.",
    "code": "Write a Python function that returns the n-th Fibonacci number without recursion. Code only.",
    "maths": "A train leaves at 9:40, goes at 84 km/h and arrives at 13:05. How far does it go? Think step by step.",
    "explanation": "Explain why the sky is blue to a ten-year-old, in about 150 words.",
    "story": "Write the beginning of a story about a lighthouse keeper who finds a letter, in about 250 words.",
}


@dataclass(frozen=True)
class Prompt:
    name: str
    messages: list[dict[str, str]]  # for a model with another tokenizer and chat template
    tokens: list[int]
    max_tokens: int
    thinking: bool = False
    right: str | None = None  # the one right answer, where there is one


Run = dict[str, Any]
Writer = Callable[[Prompt, int], Run]  # a prompt and a seed -> a run


def as_prompt(tokenizer: Tokenizer, max_tokens: int, name: str, text: str, right: str | None = None) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt(name, messages, prompt_tokens(tokenizer, messages), max_tokens, right=right)


def from_tasks(tokenizer: Tokenizer, max_tokens: int, each: int) -> list[Prompt]:
    """Makes `each` prompts of every task of the embedded model, the same ones as in the solve rates."""
    return [as_prompt(tokenizer, max_tokens, name, *task) for name in TASKS for task in made(name, each)]


def from_file(path: Path, model: DiffusionModel, tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    """Reads one JSON object a line, as the command `batch` takes them. Mistake names the line."""
    requests = read_requests(path, model, tokenizer, Ask(max_tokens=max_tokens))
    if any(request.fill for request in requests):
        raise Mistake(f"{path}: its lines are to be filled; what is measured is answers: need prompts")
    return [Prompt(f"prompt {r.number + 1}", r.messages, r.tokens, r.ask.max_tokens, r.thinking) for r in requests]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Returns median, least, most and how many; None where there are no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def written(model: DiffusionModel, tokenizer: Tokenizer, tokens: Sequence[int], ask: Ask) -> Answer:
    """Answers a prompt as the user's command does."""
    answer = Answer(model.facts, tokenizer, ask.max_tokens)
    for step in diffuse(model, tokens, ask):
        answer.add(step)
    return answer


def _run(prompt: Prompt, seed: int, prompt_length: int, tokens: Sequence[int], text: str) -> Run:
    solved = None if prompt.right is None else text == prompt.right
    return {"prompt": prompt.name, "seed": seed, "prompt_tokens": prompt_length, "tokens": len(tokens), "text": text,
            "solved": solved}  # fmt: skip


def writer(model: DiffusionModel, tokenizer: Tokenizer, ask: Ask) -> Writer:
    """Makes what answers prompts as `ask` says, each with its seed and length."""

    def write(prompt: Prompt, seed: int) -> Run:
        answer = written(model, tokenizer, prompt.tokens, replace(ask, max_tokens=prompt.max_tokens, seed=seed))
        run = _run(prompt, seed, len(prompt.tokens), answer.tokens, answer.text)
        run |= {"seconds": answer.seconds, "seconds_to_first": answer.seconds_to_first_block,
                "finish_reason": answer.finish_reason}  # fmt: skip
        if ask.mode != "ar":  # left to right a token is a pass
            run |= {"steps_per_block": answer.steps_per_block, "tokens_per_forward": answer.tokens_per_forward}
        return run

    return write


def baseline_writer(baseline: Any) -> Writer:
    """Makes what answers prompts with a backend's `Baseline`: another model, by its library and tokenizer."""

    def write(prompt: Prompt, seed: int) -> Run:
        tokens = baseline.tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, enable_thinking=prompt.thinking, return_dict=False
        )
        start, answer, times = time.perf_counter(), [], []
        for token in baseline.write(tokens, prompt.max_tokens, seed):
            answer.append(token)
            times.append(time.perf_counter() - start)
        seconds = {"seconds": time.perf_counter() - start, "seconds_to_first": times[0] if times else None}
        text = baseline.tokenizer.decode(answer, skip_special_tokens=True)
        return _run(prompt, seed, len(tokens), answer, text) | seconds

    return write


def answer_all(jobs: Sequence[tuple[Writer, Prompt, int, list[Run]]]) -> None:
    """Answers prompt after prompt, each job a writer, a prompt, a seed, and the list that its run is added to."""
    with progress(len(jobs)) as bar:
        for write, prompt, seed, runs in jobs:
            runs.append(write(prompt, seed))
            bar()


def solve_rate(runs: Sequence[Run]) -> float | None:
    """Returns the share that is solved of those whose right answer is known; None where none is."""
    known = [run["solved"] for run in runs if run["solved"] is not None]
    return sum(known) / len(known) if known else None


def speed(runs: Sequence[Run]) -> float:
    """Returns tokens a second of all runs together."""
    return sum(run["tokens"] for run in runs) / sum(run["seconds"] for run in runs)


def steps_per_block(runs: Sequence[Run], cap: int) -> dict[str, float] | None:
    """Sums up the steps of all blocks, and the share of blocks that took `cap` of them; None left to right."""
    blocks = [steps for run in runs for steps in run.get("steps_per_block", ())]
    if not blocks:
        return None
    p50, p90 = np.percentile(blocks, [50, 90]).tolist()
    return {"mean": statistics.mean(blocks), "p50": p50, "p90": p90, "at_cap": blocks.count(cap) / len(blocks)}


def summary(runs: Sequence[Run], cap: int) -> dict[str, Any]:
    """Sums up warm runs: speed and solve rate of all prompts by seed, then their spread over the seeds; times to the
    first text, and what a step took, over all runs."""
    seeds = [[run for run in runs if run["seed"] == seed] for seed in sorted({run["seed"] for run in runs})]
    total = {
        "runs": len(runs),
        "tokens": sum(run["tokens"] for run in runs),
        "tokens_per_second": spread([speed(seed) for seed in seeds]),
        "seconds_to_first": spread([run["seconds_to_first"] for run in runs if run["seconds_to_first"] is not None]),
        "solved": spread([rate for seed in seeds if (rate := solve_rate(seed)) is not None]),
    }
    if blocks := steps_per_block(runs, cap):
        total["steps_per_block"] = blocks
        total["tokens_per_forward"] = spread([run["tokens_per_forward"] for run in runs])
        total["seconds_per_step"] = spread([run["seconds"] / sum(run["steps_per_block"]) for run in runs])
    return total
