"""The loop: prompt tokens in, one `Step` out after every pass."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..seam.model import Cache, DiffusionModel, Text
from .ask import Ask
from .batch import InProgress, run
from .blocks import Layout, Open
from .clock import Clock
from .left_to_right import Constraint, LeftToRight
from .route import Route
from .verify import Verify
from .writing import Step, Writing, check_room


def begin(
    model: DiffusionModel,
    text: Text,
    ask: Ask,
    *,
    request: int = 0,
    cache: Cache | None = None,
    layout: Layout | None = None,
    form: Constraint | None = None,
) -> InProgress:
    """An answer to `text`, not yet begun, behind what `cache` holds. `layout`: what is denoised, if it is not an open
    text; `form`: what is written left to right. Mistake where there is no room for an answer."""
    length = len(text) + (cache.length if cache else 0)
    room = model.facts.max_position_embeddings - length
    rng, clock = np.random.default_rng(ask.seed), Clock(ask.deadline, model.now)
    if layout is None:
        check_answer(model, length, ask)
    if ask.mode == "ar":
        limit = min(ask.max_tokens, room)
        return LeftToRight(model, text, limit, ask.draw, rng, cache, clock, form, request)
    if ask.mode == "auto":
        return Route(model, text, ask.max_tokens, ask.sampling, ask.draw, rng, cache, clock, request)
    if layout is None:
        layout = Open(model.facts, room, ask.max_tokens, ask.sampling.canvas_length)
    check = Verify() if ask.verify else None
    return Writing(model, text, layout, ask.sampling, rng, cache, clock, check, request)


def check_answer(model: DiffusionModel, length: int, ask: Ask) -> None:
    """NoRoom where a prompt of `length` tokens leaves none for an answer."""
    facts = model.facts
    width = Open(facts, 0, ask.max_tokens, ask.sampling.canvas_length).width()
    check_room(model, length, {"ar": 1, "auto": facts.canvas_length}.get(ask.mode, width))


def diffuse(model: DiffusionModel, tokens: Sequence[int], ask: Ask) -> Iterator[Step]:
    """An answer to `tokens`, a batch of one: block after block until a stop token, or until whole canvases cover
    `max_tokens`."""
    yield from run(model, [begin(model, Text(tokens), ask)])
