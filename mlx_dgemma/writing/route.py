"""Which way a text is written: by denoising, left to right, or, block by block, by what costs less on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..checkpoint.config import ModelConfig
from ..errors import Mistake
from ..seam.model import DiffusionModel
from . import left_to_right
from . import verify as repair
from . import writing as diffusion
from .batch import batch
from .blocks import Open
from .clock import Clock
from .left_to_right import Telling
from .sampling import Sampling
from .writing import Step, Writing, check_request

MODES = ("diffusion", "ar", "auto")


def way(
    mode: str = "diffusion", verify: bool = False, begin: Callable[..., Writing] = diffusion.begin
) -> tuple[Callable[..., Any], Callable[..., Iterator[Step]]]:
    """What begins a text in one of MODES, `begin` where nothing else is asked for, and what writes many such texts, a
    number of them at a time. With `verify`, what is denoised is checked and repaired."""
    if mode not in MODES:
        raise Mistake(f"need mode to be one of {', '.join(MODES)}, got {mode!r}")
    if verify and mode != "diffusion":
        raise Mistake(f"verify checks what was denoised: leave it out, or mode {mode!r}")
    if mode == "ar":
        return left_to_right.begin, left_to_right.batch
    if mode == "auto":
        return Router, in_turn
    return (repair.begin if verify else begin), batch


def write(
    model: DiffusionModel,
    tokens: Sequence[int],
    *,
    mode: str = "diffusion",
    verify: bool = False,
    begin: Callable[..., Writing] = diffusion.begin,
    **options: Any,
) -> Iterator[Step]:
    """An answer to `tokens` by `way`; `options` are `begin`'s."""
    start, passes = way(mode, verify, begin)
    return passes(model, [start(model, tokens, **options)], 1)


@dataclass(frozen=True)
class Pace:
    """Seconds, of this machine at this length of text."""

    denoise: float  # of one pass over a canvas
    token: float  # of one written left to right

    @property
    def ratio(self) -> float:
        """What a token costs, in passes."""
        return self.token / self.denoise


def token_seconds(model: DiffusionModel, writing: Writing) -> float:
    """Of two tokens behind the writing's text, which is left as it is."""
    telling = Telling(model, (), limit=3, sampling=Sampling(), cache=writing.cache.copy())
    passes = model.autoregress([telling.row()], telling.sampling)
    next(passes)
    start = time.perf_counter()
    for _ in range(2):
        next(passes)
    seconds = (time.perf_counter() - start) / 2
    passes.close()
    return seconds


@dataclass(frozen=True)
class Outlook:
    """Where a block stands after `passes`, and what is to come either way, in passes."""

    passes: int
    prefix: int  # tokens from the first on that are settled
    settled: int  # of all that will be said
    length: int  # how many that are, by the draft
    limit: int  # passes a block may take
    stalled: int = 0  # passes since more were settled than ever before

    @property
    def denoising(self) -> float:
        """Passes to go if positions settle at the rate they did; as many as nothing came of; and one that confirms."""
        left = self.passes * (self.length / max(self.settled, 0.5) - 1) + self.stalled + 1
        return min(left, self.limit - self.passes)

    def telling(self, ratio: float) -> float:
        """One pass encodes the prefix, and each token behind it costs `ratio`."""
        return (1 if self.prefix else 0) + (self.length - self.prefix) * ratio


def outlook(step: Step, earlier: np.ndarray, config: ModelConfig, sampling: Sampling) -> Outlook:
    """After a pass whose predecessor's draft was `earlier`."""
    stops = np.flatnonzero(np.isin(step.draft, config.stop_ids))
    length = int(stops[0]) + 1 if len(stops) else len(step.draft)
    stable = (step.draft == earlier)[:length]
    settled = stable & (step.entropy[:length] <= sampling.entropy_bound)
    # The sum of entropies bounds what positions may still have to tell each other, as in `sampling.accept`.
    sure = stable & (np.cumsum(step.entropy[:length]) <= sampling.entropy_bound)
    prefix = length if sure.all() else int(sure.argmin())
    return Outlook(step.step + 1, prefix, int(settled.sum()), length, sampling.max_denoising_steps)


class Router:
    """One text, whose every block is denoised as long as that promises to cost less than to keep what is settled of it
    and go on left to right. Costs are counted in passes over a canvas; a token's is measured, or `pace` says it."""

    FEW = 2.0  # passes: where all that is left costs no more left to right, nothing is denoised

    def __init__(
        self,
        model: DiffusionModel,
        tokens: Sequence[int],
        *,
        max_tokens: int = 2048,
        sampling: Sampling,
        seed: int = 0,
        request: int = 0,
        pace: Pace | None = None,
    ):
        check_request(model, tokens, max_tokens)
        self.model, self.config, self.sampling, self.pace = model, model.config, sampling, pace
        self.request = request
        self.left, self.rng = max_tokens, np.random.default_rng(seed)
        self.cache, self.pending = model.new_cache(len(tokens)), np.asarray(tokens)
        self.clock, self.block = Clock(sampling.deadline), 0
        self.writing: Writing | None = None  # goes on from block to block until one is told

    def steps(self) -> Iterator[Step]:
        reason = None
        while reason is None:
            for step in self._block():
                reason = step.reason
                yield step
            self.block += 1

    @property
    def _room(self) -> int:
        return self.config.max_position_embeddings - self.cache.length - len(self.pending)

    def _block(self) -> Iterator[Step]:
        ratio = self.pace.ratio if self.pace else None
        if self._room < self.config.canvas_length or (ratio and self.left * ratio <= self.FEW):
            note = f"left to right: {self.left} tokens are left to write, each costs {ratio or 0:.2f} of a pass"
            yield from self._tell(0, min(self.left, self.config.canvas_length), note)
            return
        writing, earlier, most, when = self._writing(), None, 0, 0
        while True:
            start = time.perf_counter()
            [prediction] = self.model.denoise([writing.row()])
            seconds = time.perf_counter() - start
            step, self.pending = replace(writing.take(prediction), block=self.block), ()
            if earlier is None:  # the first pass read the text, and nothing can be stable yet
                look = None
            else:
                self.pace = self.pace or Pace(seconds, token_seconds(self.model, writing))
                look = outlook(step, earlier, self.config, self.sampling)
                if look.settled > most:
                    most, when = look.settled, step.step
                look = replace(look, stalled=step.step - when)
            if step.final or step.reason:
                self._keep(step.draft)
                yield replace(step, note=self._say(f"denoised in {step.step + 1} passes", look))
                return
            if look and look.telling(self.pace.ratio) < look.denoising:
                yield from self._switch(step, look)
                return
            yield step
            earlier = step.draft

    def _writing(self) -> Writing:
        if self.writing is None:
            layout = Open(self.config, self._room, self.left, self.sampling.canvas_length)
            options = {"sampling": self.sampling, "seed": self.rng, "request": self.request, "cache": self.cache}
            self.writing = Writing(self.model, self.pending, layout=layout, **options)
            self.writing.clock = self.clock
        return self.writing

    def _switch(self, step: Step, look: Outlook) -> Iterator[Step]:
        note = self._say(f"left to right after {look.passes} passes", look)
        kept = step.draft[: look.prefix]
        self._keep(kept)
        ends = bool(np.isin(kept, self.config.stop_ids).any()) or self.left <= 0
        reason = None if not ends else "length" if self.left <= 0 else "stop"
        yield replace(step, draft=kept if len(kept) else step.draft, final=len(kept) > 0, reason=reason, note=note)
        if not ends:
            yield from self._tell(step.step + 1, min(self.left, len(step.draft) - len(kept)))

    def _keep(self, draft: np.ndarray) -> None:
        self.pending, self.left = draft, self.left - len(draft)

    def _tell(self, first: int, count: int, note: str | None = None) -> Iterator[Step]:
        """`count` tokens, or fewer where the text ends; they are this block's steps from `first` on."""
        self.writing = None
        count = min(count, self._room)
        options = {"sampling": self.sampling, "seed": self.rng, "request": self.request, "cache": self.cache}
        telling = Telling(self.model, self.pending, limit=count, **options)
        telling.clock, self.pending = self.clock, ()
        for step in left_to_right.batch(self.model, [telling]):
            self.left -= 1
            whole = self.left <= 0 or self._room <= 0
            reason = None if step.reason == "length" and not whole else step.reason
            said = note and f"block {self.block + 1}: {note}"
            yield replace(step, block=self.block, step=first + telling.said - 1, reason=reason, note=said)
            note = None

    def _say(self, what: str, look: Outlook | None) -> str:
        if look is None:
            return f"block {self.block + 1}: {what}"
        return (
            f"block {self.block + 1}: {what}: {look.settled} of {look.length} tokens settled, {look.prefix} from the "
            f"first on; to go: {look.denoising:.1f} passes, or {look.telling(self.pace.ratio):.1f} left to right, "
            f"where a token costs {self.pace.ratio:.2f}"
        )


def in_turn(model: DiffusionModel, routers: Iterable[Router], size: int) -> Iterator[Step]:
    """Steps of all of `routers`, one text after another whatever `size` is: what a pass costs was measured for one."""
    for router in routers:
        yield from router.steps()
