"""Times passes on the seam: a text that is encoded, a denoise step, a commit, a token left to right.

A denoise step is timed as a run has it, with the sampler and the host. The first pass of each kind is kept apart.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, Continuation, DiffusionModel, Draw, Facts, Row, Text
from ..writing.batch import Batch
from ..writing.blocks import Open
from ..writing.sampling import Sampling
from ..writing.writing import Writing
from .count import Count, Work, break_even, tokens_per_second
from .runs import spread

WARM_UP = 512  # tokens that are encoded once before any are timed
Ceilings = tuple[float, float]  # bytes copied a second, FLOPs of a product a second


def check_context(facts: Facts, context: int) -> None:
    """Raises Mistake if no canvas could be written and committed behind so many tokens."""
    room = facts.max_position_embeddings - 2 * facts.canvas_length
    if context > room:
        raise Mistake(f"--context {context}: the model has room for {room} tokens before its canvases")


def endless_blocks(model: DiffusionModel, caches: Sequence[Cache], sampling: Sampling, seed: int) -> Batch:
    """Starts a canvas behind each of `caches`, denoised for `sampling.max_denoising_steps` passes in any case."""
    sampling = replace(sampling, stability_threshold=sampling.max_denoising_steps)
    batch, facts = Batch(model, len(caches)), model.facts
    for number, cache in enumerate(caches):
        layout = Open(facts, facts.max_position_embeddings - cache.length, max_tokens=1)
        batch.add(Writing(model, Text(), layout, sampling, np.random.default_rng(seed + number), cache))
    return batch


@dataclass(frozen=True)
class Passes:
    """Times the passes of `rows` sequences at once, each behind `context` random tokens, `repeat` times. Seconds."""

    model: DiffusionModel
    instruments: ModuleType  # `measure` of the backend
    sampling: Sampling
    context: int
    rows: int
    repeat: int
    seed: int

    def _text(self, count: int, number: int = 0) -> Text:
        return Text(np.random.default_rng((self.seed, number)).integers(self.model.facts.vocab_size, size=count))

    def _timed(self, compute: Callable[[], Any]) -> float:
        self.instruments.wait()
        start = time.perf_counter()
        compute()
        self.instruments.wait()
        return time.perf_counter() - start

    def prefill(self) -> tuple[float, Cache]:
        """Returns tokens a second of a text that is encoded alone, and its cache."""
        self.model.encode([self._text(min(self.context, WARM_UP))], [self.model.new_cache()])
        text, seconds = self._text(self.context), []
        for _ in range(3 if self.context <= 4096 else 1):
            cache = self.model.new_cache(self.context + 2 * self.model.facts.canvas_length)
            seconds.append(self._timed(lambda cache=cache: self.model.encode([text], [cache])))
        return self.context / statistics.median(seconds), cache

    def steps(self, cache: Cache) -> tuple[list[float], list[Row]]:
        """Times denoise steps of blocks that do not settle; and returns rows as they are late in a block."""
        passes = self.repeat + 1
        sampling = replace(self.sampling, max_denoising_steps=passes + 1)
        batch = endless_blocks(self.model, [cache.copy() for _ in range(self.rows)], sampling, self.seed)
        seconds = [self._timed(batch.step) for _ in range(passes)]
        return seconds, [writing.row() for writing in batch.texts]

    def commits(self, cache: Cache) -> list[float]:
        """Times encoding a canvas a row. In a run it goes with the next block's first pass."""
        forks, length = [cache.copy() for _ in range(self.rows)], self.model.facts.canvas_length
        canvases, seconds = [self._text(length, number) for number in range(self.rows)], []
        for _ in range(self.repeat + 1):
            seconds.append(self._timed(lambda: self.model.encode(canvases, forks)))
            for fork in forks:
                fork.trim(length)
        return seconds

    def tokens(self, cache: Cache) -> list[float]:
        """Times the next token of every row, left to right; the likeliest is taken."""
        uniforms = np.zeros(2 * self.repeat + 1, np.float32)
        rows = [Continuation(cache.copy(), self._text(1, number), uniforms) for number in range(self.rows)]
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in self.model.autoregress(rows, Draw())]
        return np.diff(times).tolist()


def compared(work: Work, seconds: Sequence[float], ceilings: Ceilings) -> dict[str, Any]:
    """Puts a pass's seconds beside what it has to do and what the machine can do; the first pass is kept apart."""
    median = statistics.median(seconds[1:])
    return {
        "first_seconds": seconds[0], "seconds": spread(seconds[1:]), **asdict(work),
        "floor_seconds": work.seconds(*ceilings), "share_of_copy": work.total_bytes / median / ceilings[0],
        "share_of_product": work.total_flops / median / ceilings[1],
    }  # fmt: skip


def measure_passes(passes: Passes, count: Count, ceilings: Ceilings, assumed: float) -> dict[str, Any]:
    """Measures one context and one number of rows: prefill, denoise step, commit, token; the break-even, and the speeds
    that `assumed` steps a block would give."""
    context, rows, canvas = passes.context, passes.rows, count.config.canvas_length
    prefill, cache = passes.prefill()
    steps, late = passes.steps(cache)
    parts = passes.instruments.step_parts(passes.model, late)
    del late  # and the forks of the cache with them
    work = count.passes(context, rows)
    seconds = {"step": steps, "commit": passes.commits(cache), "token": passes.tokens(cache)}
    timed = {name: compared(work[name], seconds[name], ceilings) for name in work}
    step, commit, token = (part["seconds"]["median"] for part in timed.values())
    speed = tokens_per_second(canvas, assumed, step, commit, rows)
    return {
        "context": context, "rows": rows, "prefill_tokens_per_second": prefill, **timed,
        "break_even": break_even(canvas, step, commit, token),
        "assumed": {"steps": assumed, "diffusion": speed, "autoregression": rows / token},
        "parts": {"seconds": parts, "floor_seconds": work["step"].seconds_by_part(*ceilings)},
        "peak_memory": passes.model.peak_memory(),
    }  # fmt: skip
