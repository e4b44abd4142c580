"""Passes, timed on the seam: a denoise step, a commit, a token, a text. Nothing here knows a framework; what only a
backend can tell, the `measure` module beside its model does.

A pass is timed with all that a run has in it: the seam, the sampler, the host. The first of each kind is told apart.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from ..checkpoint.config import ModelConfig
from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Row
from ..writing.blocks import Open
from ..writing.sampling import Sampling
from ..writing.writing import Writing
from .count import BreakEven, Count, Work, tokens_per_second

WARM_UP = 512  # tokens that are encoded once before any are timed


def tools(model: DiffusionModel) -> ModuleType:
    """The `measure` module beside the model's own."""
    return importlib.import_module(type(model).__module__.rpartition(".")[0] + ".measure")


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and most, and of how many; None of none."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def check_context(config: ModelConfig, context: int) -> None:
    """Mistake if no canvas could be written and committed behind so many tokens."""
    room = config.max_position_embeddings - 2 * config.canvas_length
    if context > room:
        raise Mistake(f"--context {context}: the model has room for {room} tokens before its canvases")


@dataclass
class Passes:
    """Times the passes of `rows` sequences at once, each behind `context` random tokens."""

    model: DiffusionModel
    sampling: Sampling
    context: int
    rows: int
    repeat: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.tools, self.config = tools(self.model), self.model.config
        self.rng = np.random.default_rng(self.seed)

    def _tokens(self, count: int) -> np.ndarray:
        return self.rng.integers(self.config.vocab_size, size=count)

    def _timed(self, pass_: Callable[[], Any]) -> float:
        self.tools.wait()
        start = time.perf_counter()
        pass_()
        self.tools.wait()
        return time.perf_counter() - start

    def prefill(self) -> tuple[float, Cache]:
        """Tokens a second of a text that is encoded alone, and its cache."""
        self.model.encode([self._tokens(min(self.context, WARM_UP))], [self.model.new_cache()])
        text, seconds = self._tokens(self.context), []
        for _ in range(3 if self.context <= 4096 else 1):
            cache = self.model.new_cache(self.context + 2 * self.config.canvas_length)
            seconds.append(self._timed(lambda cache=cache: self.model.encode([text], [cache])))
        return self.context / statistics.median(seconds), cache

    def writings(self, cache: Cache) -> list[Writing]:
        """Of one block each that does not settle, behind forks of `cache`."""
        passes, room = self.repeat + 1, self.config.max_position_embeddings - self.context
        sampling = replace(self.sampling, max_denoising_steps=passes, stability_threshold=passes)

        def one(number: int) -> Writing:
            layout = Open(self.config, room, max_tokens=1)
            seed, fork = self.seed + number, cache.copy()
            return Writing(self.model, [], sampling=sampling, layout=layout, seed=seed, cache=fork)

        return [one(number) for number in range(self.rows)]

    def steps(self, cache: Cache) -> tuple[list[float], list[Row]]:
        """Seconds of denoise steps, sampler and host included; and rows as they are late in a block."""
        writings, seconds, rows = self.writings(cache), [], []
        while not writings[0].done:
            self.tools.wait()
            start = time.perf_counter()
            rows = [one.row() for one in writings]
            for one, prediction in zip(writings, self.model.denoise(rows), strict=True):
                one.take(prediction)
            seconds.append(time.perf_counter() - start)
        return seconds, rows

    def commits(self, cache: Cache) -> list[float]:
        """Seconds of encoding a canvas a row. In a run it goes with the next block's first pass."""
        forks, length = [cache.copy() for _ in range(self.rows)], self.config.canvas_length
        seconds = []
        for _ in range(self.repeat + 1):
            canvases = [self._tokens(length) for _ in forks]
            seconds.append(self._timed(lambda canvases=canvases: self.model.encode(canvases, forks)))
            for fork in forks:
                fork.trim(length)
        return seconds

    def tokens(self, cache: Cache) -> list[float]:
        """Seconds of the next token of every row, left to right, greedily."""
        nothing = np.zeros(0, np.float32)
        pending = self._tokens(1)
        rows = [Row(np.zeros(0, np.int32), cache.copy(), 1.0, nothing, pending) for _ in range(self.rows)]
        seconds = []
        with closing(self.model.autoregress(rows, replace(self.sampling, temp=0.0))) as writing:
            start = time.perf_counter()
            for _ in writing:
                seconds.append(time.perf_counter() - start)
                if len(seconds) > 2 * self.repeat:
                    break
                start = time.perf_counter()
        return seconds


def against(work: Work, seconds: Sequence[float], ceilings: dict[str, float]) -> dict[str, Any]:
    """A pass's seconds, the first's apart, beside what it has to do and what the machine can do."""
    bytes_per_second, flops_per_second = ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    median = statistics.median(seconds[1:])
    return {
        "first_seconds": seconds[0],
        "seconds": spread(seconds[1:]),
        **work.as_json(),
        "floor_seconds": work.seconds(bytes_per_second, flops_per_second),
        "share_of_copy": work.total_bytes / median / bytes_per_second,
        "share_of_product": work.total_flops / median / flops_per_second,
    }


def measure_passes(passes: Passes, count: Count, ceilings: dict[str, float], assumed: float) -> dict[str, Any]:
    """One context and one number of rows: prefill, denoise step, commit, token; the break-even, and what `assumed`
    steps a block would make of them."""
    context, rows, canvas = passes.context, passes.rows, count.config.canvas_length
    prefill, cache = passes.prefill()
    seconds, late = passes.steps(cache)
    parts = passes.tools.step_parts(passes.model, late)
    del late  # and the forks of the cache with them
    found: dict[str, Any] = {
        "context": context,
        "rows": rows,
        "prefill_tokens_per_second": prefill,
        "step": against(count.denoise(context, rows), seconds, ceilings),
        "commit": against(count.commit(context, rows), passes.commits(cache), ceilings),
        "token": against(count.token(context, rows), passes.tokens(cache), ceilings),
    }
    step, commit, token = (found[name]["seconds"]["median"] for name in ("step", "commit", "token"))
    even = BreakEven.of(canvas, step, commit, token)
    found["break_even"] = {"steps": even.steps, "tokens_per_forward": even.tokens_per_forward}
    found["assumed"] = {
        "steps": assumed,
        "diffusion": tokens_per_second(canvas, assumed, step, commit, rows),
        "autoregression": rows / token,
    }
    floor = count.denoise(context, rows).seconds_by_part(
        ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    )
    found["parts"] = {"seconds": parts, "floor_seconds": floor}
    return found
