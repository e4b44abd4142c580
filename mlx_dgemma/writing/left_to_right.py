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

    unwritten: list[int]
    """Tokens behind the text that depart from it: the model goes on from them, but they are not written."""

    def allowed(self) -> TokenSet | None:
        """The tokens that may come next; None for any."""

    def take(self, token: int) -> list[int]:
        """Go on behind `token` -> the tokens that it writes: itself, none, or all that is left to write."""

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
    clock: Clock = field(default_factory=Clock)
    form: Constraint | None = None
    request: int = 0

    count: int = field(default=0, init=False)  # tokens written
    passes: int = field(default=0, init=False)
    scratch: Cache | None = field(default=None, init=False)  # holds the text and what is `unwritten`
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
        at = self.count + len(self.form.unwritten)
        return Continuation(self.scratch or self.cache, pending, self.uniforms[at : at + 1], self.form.allowed())

    def take(self, token: int) -> Step:
        """The step that `token` makes."""
        facts = self.model.facts
        block, step = divmod(self.passes, facts.canvas_length)
        tokens = [token] if self.form is None else self._constrained(self.form, token)
        self.passes, self.count = self.passes + 1, self.count + len(tokens)
        reason = "stop" if {*tokens} & {*facts.stop_ids} else "length" if self.count == self.limit else None
        self.late = self.clock.over()
        if self.late and reason is None:
            reason = "deadline"
            tokens = tokens if self.form is None else [*tokens, *self.form.ending().tolist()]
        self.done = reason is not None
        draft = np.array(tokens or [*self.form.unwritten, token][: facts.canvas_length], np.int32)
        return Step(
            request=self.request,
            block=block,
            step=step,
            canvas=draft[:1],
            draft=draft,
            accepted=np.ones(len(draft), bool),
            entropy=np.zeros(len(draft), np.float32),
            final=bool(tokens),
            reason=reason,
        )

    def _constrained(self, form: Constraint, token: int) -> list[int]:
        """What `form` writes for `token`. The cache holds the text and nothing that is unwritten."""
        tokens = form.take(token)
        if not tokens and self.scratch is None:
            self.scratch = self.cache.copy() if form.unwritten else None
            self.cache.trim(1)
        elif not form.unwritten:
            self.scratch = None
        return tokens
