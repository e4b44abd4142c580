"""The loop: prompt tokens in, one `Step` out after every pass.

A block is a canvas of uniform noise that is denoised until it settles, then encoded, in the same pass that first
denoises the next one. transformers' `DiffusionGemmaGenerationMixin.generate` with a dynamic cache is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .interface import DiffusionModel, Prediction, Row
from .mistake import Mistake
from .sampling import Sampling, Settled, accept, renoise, temperature


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
    final: bool  # the last of its block: `draft` is what the block says
    reason: str | None = None  # why the whole text ends here: "stop" (a stop token) or "length"


def check_request(model: DiffusionModel, tokens: Sequence[int], max_tokens: int) -> None:
    """ValueError where nothing could be written after `tokens`."""
    room = model.config.max_position_embeddings
    if len(tokens) == 0:
        raise Mistake("the prompt is empty: need at least one token")
    if max_tokens < 1:
        raise Mistake(f"need max_tokens >= 1, got {max_tokens}")
    if len(tokens) + model.config.canvas_length > room:
        raise Mistake(
            f"the prompt is longer than the context: {len(tokens)} tokens and a canvas of "
            f"{model.config.canvas_length} do not fit in {room}; shorten it"
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
        max_tokens: int = 2048,
        sampling: Sampling,
        seed: int = 0,
        request: int = 0,
    ):
        check_request(model, tokens, max_tokens)
        self.config, self.sampling, self.request = model.config, sampling, request
        length, room = model.config.canvas_length, model.config.max_position_embeddings - len(tokens)
        self.blocks = min(-(-max_tokens // length), room // length)
        self.rng = np.random.default_rng(seed)
        self.cache, self.pending = model.new_cache(len(tokens)), np.asarray(tokens)
        self.block, self.done = -1, False
        self._begin()

    def _begin(self) -> None:
        """A block: a canvas of noise, and nothing known of it."""
        self.block, self.step = self.block + 1, 0
        self.canvas = self._noise().astype(np.int32)
        self.settled, self.self_conditioning = Settled(self.sampling), None

    def _noise(self) -> np.ndarray:
        return self.rng.integers(self.config.vocab_size, size=self.config.canvas_length)

    def row(self) -> Row:
        """Draws this pass's uniforms: to be called once a pass."""
        return Row(
            canvas=self.canvas,
            cache=self.cache,
            temperature=temperature(self.sampling, self.step),
            uniforms=self.rng.random(self.config.canvas_length, dtype=np.float32),
            pending=self.pending,
            self_conditioning=self.self_conditioning,
        )

    def take(self, prediction: Prediction) -> Step:
        noise, draft = self._noise(), prediction.argmax
        accepted = accept(prediction.entropy, self.sampling.entropy_bound)
        self.canvas = renoise(prediction.sample, accepted, noise)
        self.self_conditioning, self.pending = prediction.self_conditioning, ()
        final = self.settled(draft, prediction.entropy) or self.step == self.sampling.max_denoising_steps - 1
        stopped = final and bool(np.isin(draft, self.config.stop_ids).any())
        self.done = final and (stopped or self.block == self.blocks - 1)
        step = Step(
            request=self.request,
            block=self.block,
            step=self.step,
            canvas=self.canvas.copy(),
            draft=draft.copy(),
            accepted=accepted,
            entropy=prediction.entropy,
            final=final,
            reason=("stop" if stopped else "length") if self.done else None,
        )
        self.step += 1
        if final and not self.done:
            self.pending = draft  # committed by the pass that first looks at the next canvas
            self._begin()
        return step


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
    writing = Writing(model, tokens, max_tokens=max_tokens, sampling=sampling, seed=seed, request=request)
    while not writing.done:
        [prediction] = model.denoise([writing.row()])
        yield writing.take(prediction)
