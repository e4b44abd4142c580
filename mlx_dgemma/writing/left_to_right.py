"""A text in progress that is written left to right on the same weights: the causal pass and the tied head, one token a
pass, each a `Step`."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..seam.model import Cache, Continuation, DiffusionModel, Draw, Text, TokenSet
from .clock import Clock
from .writing import Step


class Constraint(Protocol):
    """The texts that are allowed, token by token. It keeps the state of one text."""

    def allowed(self) -> TokenSet:
        """The tokens that may come next."""

    def take(self, token: int) -> None:
        """Go on behind `token`."""

    def ending(self) -> np.ndarray:
        """int32: the shortest way to end the text from here, the stop token included."""


@dataclass(eq=False)
class LeftToRight:
    """`continuation` is where the text goes on, `take` takes a token, until it is `done`.

    Its uniforms are the generator's next `limit` numbers, one a token: a seed means the same draws alone or in company.
    """

    model: DiffusionModel
    pending: Text  # encoded before the first token, behind what `cache` holds
    limit: int  # tokens at most
    draw: Draw
    rng: np.random.Generator
    cache: Cache | None = None  # None: an empty one
    clock: Clock | None = None  # None: no deadline
    form: Constraint | None = None
    request: int = 0

    count: int = field(default=0, init=False)  # tokens written
    done: bool = field(default=False, init=False)
    late: bool = field(default=False, init=False)  # the deadline leaves no time for another pass
    uniforms: np.ndarray = field(init=False)  # [limit] float32

    left_to_right = True

    def __post_init__(self) -> None:
        if self.cache is None:
            self.cache = self.model.new_cache(len(self.pending) + self.limit)
        self.uniforms = self.rng.random(self.limit, dtype=np.float32)

    def continuation(self) -> Continuation:
        """The place from which a stream of tokens goes on. It takes what is pending."""
        pending, self.pending = self.pending, Text()
        if self.form is None:
            return Continuation(self.cache, pending, self.uniforms[self.count :])
        return Continuation(self.cache, pending, self.uniforms[self.count : self.count + 1], self.form.allowed())

    def take(self, token: int) -> Step:
        """The step that `token` makes."""
        facts = self.model.facts
        block, step = divmod(self.count, facts.canvas_length)
        self.count += 1
        if self.form is not None:
            self.form.take(token)
        reason = "stop" if token in facts.stop_ids else "length" if self.count == self.limit else None
        tokens = np.array([token], np.int32)
        self.late = self.clock is not None and self.clock.over()
        if self.late and reason is None:
            reason = "deadline"
            tokens = tokens if self.form is None else np.append(tokens, self.form.ending()).astype(np.int32)
        self.done = reason is not None
        return Step(
            request=self.request,
            block=block,
            step=step,
            canvas=tokens[:1],
            draft=tokens,
            accepted=np.ones(1, bool),
            entropy=np.zeros(1, np.float32),
            final=True,
            reason=reason,
        )
