"""The loop: prompt tokens in, one `Step` out after every pass.

A block is a canvas of uniform noise that is denoised until it settles, then encoded, in the same pass that first
denoises the next one. transformers' `DiffusionGemmaGenerationMixin.generate` with a dynamic cache is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .interface import DiffusionModel, Row
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


def diffuse(
    model: DiffusionModel,
    tokens: Sequence[int],
    *,
    max_tokens: int = 2048,
    sampling: Sampling,
    seed: int = 0,
    request: int = 0,
) -> Iterator[Step]:
    """Denoise block after block until a stop token, or until whole canvases cover `max_tokens`.

    One NumPy generator makes every random number, in this order: a block's first canvas; then each pass, the last
    included, its uniforms and its renoise. So a seed means the same draws on every device.
    """
    check_request(model, tokens, max_tokens)
    config = model.config
    length, vocabulary = config.canvas_length, config.vocab_size
    rng = np.random.default_rng(seed)
    used = len(tokens)
    blocks = min(-(-max_tokens // length), (config.max_position_embeddings - used) // length)
    cache, pending = model.new_cache(used), np.asarray(tokens)
    for block in range(blocks):
        canvas = rng.integers(vocabulary, size=length).astype(np.int32)
        settled, self_conditioning = Settled(sampling), None
        for step in range(sampling.max_denoising_steps):
            row = Row(
                canvas=canvas,
                cache=cache,
                temperature=temperature(sampling, step),
                uniforms=rng.random(length, dtype=np.float32),
                pending=pending,
                self_conditioning=self_conditioning,
            )
            [prediction] = model.denoise([row])
            noise = rng.integers(vocabulary, size=length)
            accepted = accept(prediction.entropy, sampling.entropy_bound)
            canvas = renoise(prediction.sample, accepted, noise)
            self_conditioning, pending = prediction.self_conditioning, ()
            draft = prediction.argmax
            final = settled(draft, prediction.entropy) or step == sampling.max_denoising_steps - 1
            stopped = final and bool(np.isin(draft, config.stop_ids).any())
            last = final and (stopped or block == blocks - 1)
            yield Step(
                request=request,
                block=block,
                step=step,
                canvas=canvas.copy(),
                draft=draft.copy(),
                accepted=accepted,
                entropy=prediction.entropy,
                final=final,
                reason=("stop" if stopped else "length") if last else None,
            )
            if final:
                break
        if last:
            return
        pending = draft
