"""A text in progress that is denoised block by block.

A block is a canvas of uniform noise that is denoised until it settles, then encoded, in the same pass that first
denoises the next one. transformers' `DiffusionGemmaGenerationMixin.generate` with a dynamic cache is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..errors import Mistake, NoRoom
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
    clock: Clock = field(default_factory=Clock)
    check: Check | None = None
    request: int = 0

    block: int = field(default=0, init=False)  # number of the block
    step: int = field(default=0, init=False)  # number of the step in it
    done: bool = field(default=False, init=False)
    current: Block = field(init=False)  # the block as its next pass sees it
    canvas: np.ndarray = field(init=False)  # [L] int32
    accepted: np.ndarray = field(init=False)  # [L] bool, by the last pass
    self_conditioning: Any = field(default=None, init=False)
    prediction: Prediction | None = field(default=None, init=False)  # of the last pass

    left_to_right = False

    def __post_init__(self) -> None:
        self.cache = self.model.new_cache(len(self.pending)) if self.cache is None else self.cache
        self._begin(self.layout.first())

    def row(self) -> Row:
        """The canvas for the next pass. Draws its uniforms, so it is called once a pass."""
        return Row(
            canvas=self.canvas,
            cache=self.cache,
            temperature=temperature(self._sampling, self._passes),
            uniforms=self.rng.random(len(self.canvas), dtype=np.float32),
            pending=self.pending,
            self_conditioning=self.self_conditioning,
            hint=self._hint(),
            fixed=self.current.fixed,
            allowed=self.current.allowed,
            token_sets=self.current.token_sets,
        )

    def take(self, prediction: Prediction) -> Step:
        """The step that `prediction` makes; then `row` is that of the next pass."""
        self.prediction = prediction = self.layout.revise(prediction, self.current)
        self._renoise(prediction)
        self._passes += 1
        after, draft = self._after(prediction)
        reason = after if isinstance(after, str) else None
        step = Step(
            request=self.request,
            block=self.block,
            step=self.step,
            canvas=self.canvas,
            draft=draft.copy(),
            accepted=self.accepted,
            entropy=prediction.entropy,
            final=reason is not None or (after is not None and not after.again),
            reason=reason,
            note=after.note if isinstance(after, Block) else None,
        )
        self.done, self.step = reason is not None, self.step + 1
        if after is None:
            self._narrow()
        elif isinstance(after, Block):
            self._go_on(after, draft)
        return step

    def _begin(self, block: Block) -> None:
        self.current, self._passes, self._narrowed = block, 0, False
        self.pending = self.pending + block.before
        self.canvas = np.where(block.tokens < 0, self._noise(), block.tokens).astype(np.int32)
        self.accepted, self.self_conditioning = ~block.free, None
        most = self.sampling.max_denoising_steps if block.max_steps is None else block.max_steps
        self._sampling = replace(self.sampling, max_denoising_steps=most)
        self._settled = STOPS[self.sampling.stop](self.sampling, self.model.facts.stop_ids)

    def _noise(self) -> np.ndarray:
        return self.rng.integers(self.model.facts.vocab_size, size=len(self.current.tokens))

    def _hint(self) -> np.ndarray | None:
        """The self-conditioning on fixed tokens, certain from the first pass on; for later passes only where they have
        changed."""
        block, first = self.current, self._passes == 0
        hint = block.hint if first else None
        if block.fixed is None or not (first or self._narrowed):
            return hint
        return np.where(block.fixed, self.canvas, -1 if hint is None else hint).astype(np.int32)

    def _renoise(self, prediction: Prediction) -> None:
        """Make the canvas of the next pass. Fixed positions spend nothing and do not change."""
        free = self.current.free
        accepted = ~free
        accepted[free] = SAMPLERS[self.sampling.sampler](
            prediction.entropy[free], prediction.confidence[free], self.accepted[free], self._passes, self._sampling
        )
        noised = renoise(prediction.sample, accepted, self._noise())
        self.canvas = np.where(free, noised, self.canvas).astype(np.int32)
        self.accepted, self.self_conditioning, self.pending = accepted, prediction.self_conditioning, Text()

    def _after(self, prediction: Prediction) -> tuple[Block | str | None, np.ndarray]:
        """Decide what follows this pass: a block, the reason why the text ends, or None, another pass over the same
        canvas. Return it with the draft, which a deadline may finish."""
        draft = prediction.argmax
        settled = self._settled(draft, prediction.entropy, self.current.free)
        settled = settled or self._passes == self._sampling.max_denoising_steps
        if self.clock.over():
            after = self.layout.after(draft)
            if settled and isinstance(after, str):
                return after, draft
            return "deadline", self.layout.finish(draft)
        if not settled:
            return None, draft
        again = self.check and self.check.review(self, prediction)
        return again or self.layout.after(draft), draft

    def _go_on(self, block: Block, draft: np.ndarray) -> None:
        if not block.again:
            self.block, self.step = self.block + 1, 0
            # The pass that first denoises the next canvas commits this one, unless a check has.
            self.pending = Text() if self.check and self.check.encoded else Text(draft)
        self._begin(block)

    def _narrow(self) -> None:
        late = self._passes > self._sampling.max_denoising_steps // 2
        before, self.current = self.current, self.layout.narrow(self.current, self.accepted, late)
        self._narrowed = self.current is not before
        if self.current.fixed is not None:
            self.canvas = np.where(self.current.fixed, self.current.tokens, self.canvas).astype(np.int32)


def check_room(model: DiffusionModel, length: int, canvas: int) -> None:
    """NoRoom where `length` tokens of text leave no room for `canvas` more."""
    room = model.facts.max_position_embeddings
    if length == 0:
        raise Mistake("the prompt is empty: need at least one token")
    if length + canvas > room:
        raise NoRoom(
            f"the prompt is longer than the context: {length} tokens and a canvas of {canvas} do not fit in {room}; "
            "shorten it"
        )
