"""Left to right on the same weights: the causal pass and the tied head, one token a pass, each a `Step` of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..seam.model import Cache, DiffusionModel, Row
from .clock import Clock
from .sampling import Sampling
from .writing import Step, check_request


class Telling:
    """One text being told: `row` is where it goes on, `take` what was said, until it is `done`.

    Its uniforms are the generator's next `limit` numbers, one a token: a seed means the same draws alone or in company.
    """

    def __init__(
        self,
        model: DiffusionModel,
        tokens: Sequence[int],
        *,
        limit: int,
        sampling: Sampling,
        seed: int | np.random.Generator = 0,
        request: int = 0,
        cache: Cache | None = None,
    ):
        """At most `limit` tokens, behind what `cache` holds, and then `tokens`."""
        self.config, self.sampling, self.limit, self.request = model.config, sampling, limit, request
        self.cache = model.new_cache(len(tokens) + limit) if cache is None else cache
        self.pending: Sequence[int] = tokens
        self.uniforms = np.random.default_rng(seed).random(limit, dtype=np.float32)
        self.clock = Clock(sampling.deadline)
        self.said, self.done = 0, False

    def row(self) -> Row:
        pending, self.pending = self.pending, ()
        nothing = np.zeros(0, np.int32)
        return Row(nothing, self.cache, self.sampling.temp, self.uniforms[self.said :], pending=pending)

    def take(self, token: int) -> Step:
        block, step = divmod(self.said, self.config.canvas_length)
        self.said += 1
        reason = "stop" if token in self.config.stop_ids else "length" if self.said == self.limit else None
        reason = reason or ("deadline" if self.clock.over() else None)
        self.done = reason is not None
        said, sure = np.array([token], np.int32), np.ones(1, bool)
        arrays = {"canvas": said, "draft": said.copy(), "accepted": sure, "entropy": np.zeros(1, np.float32)}
        return Step(request=self.request, block=block, step=step, **arrays, final=True, reason=reason)


def begin(
    model: DiffusionModel,
    tokens: Sequence[int],
    *,
    max_tokens: int = 2048,
    sampling: Sampling,
    seed: int = 0,
    request: int = 0,
) -> Telling:
    """An answer to `tokens`, not yet begun. Mistake where there is no room for one."""
    check_request(model, tokens, max_tokens, 1)
    limit = min(max_tokens, model.config.max_position_embeddings - len(tokens))
    return Telling(model, tokens, limit=limit, sampling=sampling, seed=seed, request=request)


def batch(model: DiffusionModel, tellings: Iterable[Telling], size: int = 1) -> Iterator[Step]:
    """Steps of all of `tellings`, at most `size` at a time, token by token. Their sampling must be the same."""
    waiting, active = iter(tellings), []
    while True:
        while len(active) < size and (new := next(waiting, None)) is not None:
            active.append(new)
        if not active:
            return
        passes = model.autoregress([telling.row() for telling in active], active[0].sampling)
        try:
            # Where one leaves, the others go on in passes without it.
            while not any(telling.done for telling in active):
                for telling, token in zip(active, next(passes), strict=True):
                    yield telling.take(token)
        finally:
            passes.close()
        active = [telling for telling in active if not telling.done]
