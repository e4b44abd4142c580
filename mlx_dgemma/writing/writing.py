"""A text in progress that is denoised block by block.

A block is a canvas of uniform noise that is denoised until it settles, then encoded, in the same pass that first
denoises the next one. transformers' `DiffusionGemmaGenerationMixin.generate` with a dynamic cache is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Prediction, Row, Text
from .blocks import Block, Layout
from .clock import Clock
from .sampling import SAMPLERS, STOPS, Sampling, renoise, temperature


@dataclass(frozen=True, kw_only=True)
class Step:
    """One pass, done. Arrays are of the canvas's length, and the consumer may keep them."""

    request: int
    block: int
    step: int  # of this block, from 0
    canvas: np.ndarray  # [L] int32, what the next pass would see: accepted tokens among noise
    draft: np.ndarray  # int32, the argmax everywhere, not cut at a stop token; longer where a text is finished early
    accepted: np.ndarray  # [L] bool
    entropy: np.ndarray  # [L] float32, nats
    final: bool  # `draft` stays; the last of its block, but left to right every token is
    reason: str | None = None  # why the whole text ends here: "stop" (a stop token), "length" or "deadline"
    note: str | None = None  # what was decided here, for the user to know


class Check(Protocol):
    """A second opinion on a block that has settled."""

    encoded: bool  # the block that was reviewed last is in the cache already

    def review(self, writing: Writing, prediction: Prediction) -> Block | None:
        """The block that is to be written again; None: the draft stands."""


@dataclass(eq=False)
class Writing:
    """`row` is what the next pass denoises, `take` takes its prediction, until the text is `done`.

    One NumPy generator makes every random number, in this order: a block's first canvas; then each pass, the last
    included, its uniforms and its renoise. So a seed means the same draws on every device, alone or in company.
    """

    model: DiffusionModel
    pending: Text  # encoded by the next pass, behind what `cache` holds
    layout: Layout
    sampling: Sampling
    rng: np.random.Generator
    cache: Cache | None = None  # None: an empty one
    clock: Clock | None = None  # None: no deadline
    check: Check | None = None
    request: int = 0

    block: int = field(default=0, init=False)  # number of the block
    step: int = field(default=0, init=False)  # number of the step in it
    done: bool = field(default=False, init=False)
    given: Block = field(init=False)  # the block as its next pass sees it
    canvas: np.ndarray = field(init=False)  # [L] int32
    accepted: np.ndarray = field(init=False)  # [L] bool, by the last pass
    self_conditioning: Any = field(default=None, init=False)
    prediction: Prediction | None = field(default=None, init=False)  # of the last pass

    left_to_right = False

    def __post_init__(self) -> None:
        self.cache = self.model.new_cache(len(self.pending)) if self.cache is None else self.cache
        self._begin(self.layout.first())

    def _begin(self, block: Block) -> None:
        self.given, self.first_step, self.narrowed = block, self.step, False
        self.pending = self.pending + block.before
        self.canvas = np.where(block.tokens < 0, self._noise(), block.tokens).astype(np.int32)
        self.accepted = ~block.free
        limits = {} if block.max_steps is None else {"max_denoising_steps": block.max_steps}
        self.schedule = replace(self.sampling, **limits)
        self.settled = STOPS[self.sampling.stop](self.sampling, self.model.facts.stop_ids)
        self.self_conditioning = None

    def _noise(self) -> np.ndarray:
        facts, length = self.model.facts, len(self.given.tokens)
        return self.rng.integers(facts.vocab_size, size=length) if facts.noise is None else np.full(length, facts.noise)

    def row(self) -> Row:
        """The canvas for the next pass. Draws its uniforms, so it is called once a pass."""
        return Row(
            canvas=self.canvas,
            cache=self.cache,
            temperature=temperature(self.schedule, self.step - self.first_step),
            uniforms=self.rng.random(len(self.canvas), dtype=np.float32),
            pending=self.pending,
            self_conditioning=self.self_conditioning,
            hint=self._hint(),
            fixed=self.given.fixed,
            allowed=self.given.allowed,
            token_sets=self.given.token_sets,
        )

    def _hint(self) -> np.ndarray | None:
        """What is fixed is certain, from the first pass on; later passes hear of it only where it has changed."""
        first = self.step == self.first_step
        hint = self.given.hint if first else None
        if self.given.fixed is None or not (first or self.narrowed):
            return hint
        return np.where(self.given.fixed, self.canvas, -1 if hint is None else hint).astype(np.int32)

    def take(self, prediction: Prediction) -> Step:
        block, passes, noise = self.given, self.step - self.first_step, self._noise()
        self.prediction = prediction = self.layout.revise(prediction, block)
        draft, free = prediction.argmax, block.free
        # Fixed positions spend nothing, do not change, and are no reason to stop.
        accepted = ~free
        accepted[free] = SAMPLERS[self.sampling.sampler](
            prediction.entropy[free], prediction.confidence[free], self.accepted[free], passes, self.schedule
        )
        self.canvas = np.where(free, renoise(prediction.sample, accepted, noise), self.canvas).astype(np.int32)
        self.accepted, self.self_conditioning, self.pending = accepted, prediction.self_conditioning, Text()
        settled = self.settled(draft, prediction.entropy, free) or passes == self.schedule.max_denoising_steps - 1
        over = self.clock is not None and self.clock.over()
        after = self._after(prediction) if settled and not over else None
        if over:
            after = self.layout.after(draft)
            if not (settled and isinstance(after, str)):
                after, draft = "deadline", self.layout.finish(draft)
        step = self._step(after, draft, accepted, prediction.entropy)
        self.done, self.step = step.reason is not None, self.step + 1
        if isinstance(after, Block):
            self._go_on(after, step.draft)
        elif after is None:
            self._narrow(accepted, passes)
        return step

    def _after(self, prediction: Prediction) -> Block | str:
        """What follows a block that has settled."""
        if self.check is None:
            return self.layout.after(prediction.argmax)
        if again := self.check.review(self, prediction):
            return again
        after = self.layout.after(prediction.argmax)
        return replace(after, encoded=self.check.encoded) if isinstance(after, Block) else after

    def _step(self, after: Block | str | None, draft: np.ndarray, accepted: np.ndarray, entropy: np.ndarray) -> Step:
        again = isinstance(after, Block) and after.keep == 0
        kept = draft[: after.keep] if isinstance(after, Block) and after.keep else draft
        return Step(
            request=self.request,
            block=self.block,
            step=self.step,
            canvas=self.canvas.copy(),
            draft=kept.copy(),
            accepted=accepted,
            entropy=entropy,
            final=after is not None and not again,
            reason=after if isinstance(after, str) else None,
            note=after.note if isinstance(after, Block) else None,
        )

    def _go_on(self, after: Block, draft: np.ndarray) -> None:
        if after.keep != 0:
            self.block, self.step = self.block + 1, 0
            # Committed by the pass that first denoises the next canvas, unless it was already.
            self.pending = Text() if after.encoded else Text(draft)
        self._begin(after)

    def _narrow(self, accepted: np.ndarray, passes: int) -> None:
        late = passes + 1 > self.schedule.max_denoising_steps // 2
        before, self.given = self.given, self.layout.narrow(self.given, accepted, late)
        self.narrowed = self.given is not before
        if self.given.fixed is not None:
            self.canvas = np.where(self.given.fixed, self.given.tokens, self.canvas).astype(np.int32)


def check_room(model: DiffusionModel, length: int, canvas: int) -> None:
    """Mistake where `length` tokens of text leave no room for `canvas` more."""
    room = model.facts.max_position_embeddings
    if length == 0:
        raise Mistake("the prompt is empty: need at least one token")
    if length + canvas > room:
        raise Mistake(
            f"the prompt is longer than the context: {length} tokens and a canvas of {canvas} do not fit in {room}; "
            "shorten it"
        )
