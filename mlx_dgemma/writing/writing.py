"""The loop: prompt tokens in, one `Step` out after every pass.

A block is a canvas of uniform noise that is denoised until it settles, then encoded, in the same pass that first
denoises the next one. transformers' `DiffusionGemmaGenerationMixin.generate` with a dynamic cache is the reference.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Prediction, Row
from .blocks import Given, Layout, Open
from .clock import Clock
from .sampling import SAMPLERS, STOPS, Sampling, renoise, temperature

NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One pass, done. Arrays are of the canvas's length, and the consumer's own."""

    request: int
    block: int
    step: int  # of this block, from 0
    canvas: np.ndarray  # [L] int32, what the next pass would see: accepted tokens among noise
    draft: np.ndarray  # [L] int32, the argmax everywhere; nothing is cut at a stop token
    accepted: np.ndarray  # [L] bool
    entropy: np.ndarray  # [L] float32, nats
    final: bool  # `draft` is said and stays; the last of its block, but left to right every token is
    reason: str | None = None  # why the whole text ends here: "stop" (a stop token), "length" or "deadline"
    note: str | None = None  # what was decided here, for the user to know


def check_request(model: DiffusionModel, tokens: Sequence[int], max_tokens: int, canvas_length: int = 0) -> None:
    """ValueError where nothing could be written after `tokens`."""
    room, length = model.config.max_position_embeddings, canvas_length or model.config.canvas_length
    if len(tokens) == 0:
        raise Mistake("the prompt is empty: need at least one token")
    if max_tokens < 1:
        raise Mistake(f"need max_tokens >= 1, got {max_tokens}")
    if len(tokens) + length > room:
        raise Mistake(
            f"the prompt is longer than the context: {len(tokens)} tokens and a canvas of "
            f"{length} do not fit in {room}; shorten it"
        )


class Writing:
    """One text being written: `row` says what the next pass is about, `take` what came of it, until it is `done`.

    One NumPy generator makes every random number, in this order: a block's first canvas; then each pass, the last
    included, its uniforms and its renoise. So a seed means the same draws on every device, alone or in company.
    """

    def __init__(
        self,
        model: DiffusionModel,
        tokens: Sequence[int],
        *,
        sampling: Sampling,
        layout: Layout,
        seed: int | np.random.Generator = 0,
        request: int = 0,
        cache: Cache | None = None,
    ):
        """Behind what `cache` holds, and then `tokens`, whose first pass encodes them."""
        self.config, self.sampling, self.request, self.layout = model.config, sampling, request, layout
        self.rng = np.random.default_rng(seed)
        self.cache = model.new_cache(len(tokens)) if cache is None else cache
        self.pending = np.asarray(tokens, np.int32)
        self.clock = Clock(sampling.deadline)
        self.block, self.step, self.done = 0, 0, False
        self._begin(layout.first())

    def _begin(self, given: Given) -> None:
        self.given, self.first_step = given, self.step
        self.pending = np.append(self.pending, np.asarray(given.before, np.int32))
        self.free = np.ones(len(given.tokens), bool) if given.fixed is None else ~given.fixed
        self.canvas = np.where(given.tokens < 0, self._noise(), given.tokens).astype(np.int32)
        self.accepted = ~self.free
        self.settled = STOPS[self.sampling.stop](self.sampling, self.config.stop_ids)
        self.self_conditioning = None

    def _noise(self) -> np.ndarray:
        return self.rng.integers(self.config.vocab_size, size=len(self.given.tokens))

    def row(self) -> Row:
        """Draws this pass's uniforms: to be called once a pass."""
        return Row(
            canvas=self.canvas,
            cache=self.cache,
            temperature=temperature(self.sampling, self.step - self.first_step),
            uniforms=self.rng.random(len(self.canvas), dtype=np.float32),
            pending=self.pending,
            self_conditioning=self.self_conditioning,
            hint=self._hint() if self.step == self.first_step else None,
            fixed=self.given.fixed,
            allowed=self.given.allowed,
        )

    def _hint(self) -> np.ndarray | None:
        """What is fixed is certain from the first pass on."""
        if self.given.fixed is None:
            return self.given.hint
        return np.where(self.free, -1 if self.given.hint is None else self.given.hint, self.canvas).astype(np.int32)

    def take(self, prediction: Prediction) -> Step:
        noise, draft, free, passes = self._noise(), prediction.argmax, self.free, self.step - self.first_step
        # What is fixed spends nothing, does not change, and is no reason to stop.
        own = (prediction.entropy[free], prediction.confidence[free], self.accepted[free])
        accepted = ~free
        accepted[free] = SAMPLERS[self.sampling.sampler](*own, passes, self.sampling)
        self.canvas = np.where(free, renoise(prediction.sample, accepted, noise), self.canvas).astype(np.int32)
        self.accepted, self.self_conditioning, self.pending = accepted, prediction.self_conditioning, NOTHING
        final = self.settled(draft[free], prediction.entropy[free])
        final = final or passes == self.sampling.max_denoising_steps - 1
        following = self._following(prediction) if final else None
        if self.clock.over() and not isinstance(following, str):
            following = "deadline"
        given = following if isinstance(following, Given) else None
        said = len(draft) if given is None or given.said is None else given.said
        step = Step(
            request=self.request,
            block=self.block,
            step=self.step,
            canvas=self.canvas.copy(),
            draft=draft[:said].copy() if said else draft.copy(),
            accepted=accepted,
            entropy=prediction.entropy,
            final=following is not None and said > 0,
            reason=following if isinstance(following, str) else None,
            note=given and given.note,
        )
        self.done = step.reason is not None
        self.step += 1
        if given:
            self._follow(given, draft[:said])
        return step

    def _following(self, prediction: Prediction) -> Given | str:
        return self.layout.after(prediction.argmax)

    def _follow(self, given: Given, said: np.ndarray) -> None:
        if len(said):
            self.block, self.step = self.block + 1, 0
            # Committed by the pass that first looks at the next canvas, unless it was already.
            self.pending = NOTHING if given.encoded else said
        self._begin(given)


def begin(
    model: DiffusionModel,
    tokens: Sequence[int],
    *,
    max_tokens: int = 2048,
    sampling: Sampling,
    seed: int = 0,
    request: int = 0,
    kind: type[Writing] = Writing,
) -> Writing:
    """An answer to `tokens`, not yet begun. Mistake where there is no room for one."""
    config, room = model.config, model.config.max_position_embeddings - len(tokens)
    layout = Open(config, room, max_tokens, sampling.canvas_length)
    check_request(model, tokens, max_tokens, layout.width())
    return kind(model, tokens, sampling=sampling, layout=layout, seed=seed, request=request)


def diffuse(
    model: DiffusionModel,
    tokens: Sequence[int],
    *,
    max_tokens: int = 2048,
    sampling: Sampling,
    seed: int = 0,
    request: int = 0,
) -> Iterator[Step]:
    """Denoise block after block until a stop token, or until whole canvases cover `max_tokens`."""
    writing = begin(model, tokens, max_tokens=max_tokens, sampling=sampling, seed=seed, request=request)
    yield from steps(model, writing)


def steps(model: DiffusionModel, writing: Writing) -> Generator[Step, None, None]:
    """One after every pass."""
    while not writing.done:
        [prediction] = model.denoise([writing.row()])
        yield writing.take(prediction)
