"""Prompts answered and timed, by denoising and left to right; and what many such runs say together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from ..seam.model import DiffusionModel, Row
from ..tokens.tokenizer import TextStream, Tokenizer
from ..writing.answer import Answer
from ..writing.sampling import Sampling
from ..writing.writing import diffuse
from .passes import spread
from .prompts import Prompt

Run = dict[str, Any]
Writer = Callable[[Prompt, int], Run]  # a prompt and a seed -> a run


def diffuse_prompt(model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling) -> Writer:
    """(prompt, seed) -> a run by denoising."""

    def run(prompt: Prompt, seed: int) -> Run:
        said = Answer(model.config, tokenizer, prompt.max_tokens)
        for step in diffuse(model, prompt.tokens, max_tokens=prompt.max_tokens, sampling=sampling, seed=seed):
            said.add(step)
        return {
            "prompt": prompt.name, "seed": seed, "prompt_tokens": len(prompt.tokens), "tokens": len(said.tokens),
            "seconds": said.seconds, "seconds_to_first": said.seconds_to_first_block,
            "steps_per_block": said.steps_per_block, "tokens_per_forward": said.tokens_per_forward,
            "finish_reason": said.finish_reason, "text": said.text, "solved": prompt.solved(said.text),
        }  # fmt: skip

    return run


def left_to_right(model: DiffusionModel, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
    """Greedy, to a stop token or the length asked for."""
    nothing = np.zeros(0, np.float32)
    row = Row(np.zeros(0, np.int32), model.new_cache(), 1.0, nothing, prompt.tokens)
    with closing(model.autoregress([row], replace(sampling, temp=0.0))) as writing:
        for (token,), _ in zip(writing, range(prompt.max_tokens), strict=False):
            yield token
            if token in model.config.stop_ids:
                return


def text_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Without what was thought."""
    stream = TextStream(tokenizer)
    return "".join(text for _, text in (stream.push(list(tokens)), stream.finish()))


def timed_run(prompt: Prompt, seed: int, tokens: Iterator[int], text: Callable[[list[int]], str]) -> Run:
    """A run of `tokens` as they come one by one; `text` makes text of all of them."""
    start = time.perf_counter()
    found, first = [], None
    for token in tokens:
        found.append(token)
        first = first or time.perf_counter() - start
    seconds = time.perf_counter() - start
    said = text(found)
    return {
        "prompt": prompt.name, "seed": seed, "prompt_tokens": len(prompt.tokens), "tokens": len(found),
        "seconds": seconds, "seconds_to_first": first, "text": said, "solved": prompt.solved(said),
    }  # fmt: skip


def write_prompt(model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling) -> Writer:
    """(prompt, seed) -> a run of the same checkpoint, left to right. Greedy, so that a seed changes nothing."""

    def run(prompt: Prompt, seed: int) -> Run:
        return timed_run(prompt, seed, left_to_right(model, prompt, sampling), lambda all: text_of(tokenizer, all))

    return run


def _over_seeds(runs: Sequence[Run], figure: Callable[[list[Run]], float | None]) -> dict[str, float] | None:
    seeds = {run["seed"]: [one for one in runs if one["seed"] == run["seed"]] for run in runs}
    return spread([value for own in seeds.values() if (value := figure(own)) is not None])


def _solved(runs: list[Run]) -> float | None:
    known = [run["solved"] for run in runs if run["solved"] is not None]
    return sum(known) / len(known) if known else None


def summary(runs: Sequence[Run], cap: int) -> dict[str, Any]:
    """Of warm runs: figures of all prompts by seed, then median and spread over the seeds; times to the first text
    over all runs; steps a block over all blocks, and the share of blocks that took `cap` of them."""
    blocks = [steps for run in runs for steps in run.get("steps_per_block", ())]
    found = {
        "runs": len(runs),
        "tokens": sum(run["tokens"] for run in runs),
        "tokens_per_second": _over_seeds(runs, lambda own: _total(own, "tokens") / _total(own, "seconds")),
        "seconds_to_first": spread([run["seconds_to_first"] for run in runs if run["seconds_to_first"] is not None]),
        "solved": _over_seeds(runs, _solved),
    }
    if not blocks:
        return found
    p50, p90 = np.percentile(blocks, [50, 90]).tolist()
    at_cap = sum(steps == cap for steps in blocks) / len(blocks)
    return found | {
        "steps_per_block": {"mean": statistics.mean(blocks), "p50": p50, "p90": p90, "at_cap": at_cap},
        "tokens_per_forward": spread([run["tokens_per_forward"] for run in runs]),
        "seconds_per_step": spread([run["seconds"] / sum(run["steps_per_block"]) for run in runs]),
    }


def _total(runs: Sequence[Run], name: str) -> float:
    return sum(run[name] for run in runs)
