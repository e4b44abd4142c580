"""A text in progress whose blocks are each written in the way that costs less on this machine: denoised as long as that
promises to be cheaper than to keep what has settled and go on left to right."""

from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from ..seam.model import Cache, Continuation, DiffusionModel, Draw, Facts, Prediction, Text
from .blocks import Open, until_stop
from .clock import Clock
from .left_to_right import LeftToRight
from .sampling import Sampling
from .writing import Step, Writing

CHEAP = 2.0  # passes: where all that is left costs no more left to right, nothing is denoised


@dataclass(frozen=True)
class Pace:
    """Seconds, on this machine at this length of text."""

    denoise: float  # of one pass over a canvas
    token: float  # of one token left to right

    @property
    def ratio(self) -> float:
        """The cost of a token, in passes."""
        return self.token / self.denoise


def token_seconds(model: DiffusionModel, cache: Cache) -> float:
    """Seconds of a token, the mean of two behind the text of `cache`, which is left as it is."""
    start = Continuation(cache.copy(), Text(), np.zeros(3, np.float32))
    with closing(model.autoregress([start], Draw())) as tokens:
        next(tokens)
        began = model.now()
        next(tokens), next(tokens)
        return (model.now() - began) / 2


@dataclass(frozen=True)
class Outlook:
    """Where a block stands after `passes`, and what is to come either way, in passes."""

    passes: int
    prefix: int  # tokens from the first on that have settled
    settled: int  # settled tokens in all
    length: int  # tokens up to the stop token of the draft
    limit: int  # passes a block may take
    stalled: int = 0  # passes since more were settled than ever before

    @property
    def denoising(self) -> float:
        """Passes to go: positions settle on at the rate they did, passes without progress count again, one confirms."""
        left = self.passes * (self.length / max(self.settled, 0.5) - 1) + self.stalled + 1
        return min(left, self.limit - self.passes)

    def left_to_right(self, ratio: float) -> float:
        """Passes to go: one encodes the prefix, each token behind it costs `ratio`."""
        return (1 if self.prefix else 0) + (self.length - self.prefix) * ratio


def look_ahead(step: Step, last_draft: np.ndarray, facts: Facts, sampling: Sampling) -> Outlook:
    """The outlook after a pass; `last_draft` is that of the pass before."""
    length = len(until_stop(step.draft, facts.stop_ids))
    stable, entropy = (step.draft == last_draft)[:length], step.entropy[:length]
    settled = stable & (entropy <= sampling.entropy_bound)
    # The sum of entropies bounds what positions may still have to tell each other, as in `sampling.accept`.
    sure = stable & (np.cumsum(entropy) <= sampling.entropy_bound)
    prefix = length if sure.all() else int(sure.argmin())
    return Outlook(step.step + 1, prefix, int(settled.sum()), length, sampling.max_denoising_steps)


@dataclass(eq=False)
class Route:
    """Passes are over `current`, which is one of the two other kinds of text; `take` takes their results, until the
    text is `done`. Costs are counted in passes over a canvas."""

    model: DiffusionModel
    text: Text  # encoded before the first block
    max_tokens: int
    sampling: Sampling
    draw: Draw
    rng: np.random.Generator
    cache: Cache | None = None
    clock: Clock = field(default_factory=Clock)
    request: int = 0
    pace: Pace | None = None  # None: measured after the second pass

    block: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)
    pass_seconds: float = field(default=0.0, init=False)  # of the last pass, this text's share; the batch sets it
    current: Writing | LeftToRight = field(init=False)

    def __post_init__(self) -> None:
        self.cache = self.model.new_cache(len(self.text)) if self.cache is None else self.cache
        self.left, self.note = self.max_tokens, None
        self._denoising: Writing | None = None  # goes on from block to block until one is written left to right
        self._begin_block(self.text)

    def take(self, result: Prediction | int) -> Step:
        """The step that a pass over `current` makes by its prediction or token. Afterwards `current` may be another."""
        step = self._take_pass(result) if isinstance(result, Prediction) else self._take_token(result)
        self.done = step.reason is not None
        return step

    def _begin_block(self, pending: Text) -> None:
        canvas, ratio = self.model.facts.canvas_length, self.pace.ratio if self.pace else None
        if self._room(pending) < canvas or (ratio and self.left * ratio <= CHEAP):
            note = f"left to right: {self.left} tokens are left to write, each costs {ratio or 0:.2f} of a pass"
            self._go_left_to_right(pending, 0, min(self.left, canvas), f"block {self.block + 1}: {note}")
            return
        if self._denoising is None:
            layout = Open(self.model.facts, self._room(pending), self.left, self.sampling.canvas_length)
            self._denoising = Writing(
                self.model, pending, layout, self.sampling, self.rng, self.cache, self.clock, request=self.request
            )
        self.current, self._last_draft, self._most_settled, self._last_progress = self._denoising, None, 0, 0

    def _room(self, pending: Text) -> int:
        """Tokens of the context that are left behind the cache and `pending`."""
        return self.model.facts.max_position_embeddings - self.cache.length - len(pending)

    def _take_pass(self, prediction: Prediction) -> Step:
        step = replace(self.current.take(prediction), block=self.block)
        outlook = self._outlook(step)
        if step.final:
            self.left -= len(step.draft)
            note = self._note(f"denoised in {step.step + 1} passes", outlook)
            if not step.reason:
                self.block += 1
                self._begin_block(self.current.pending)
            return replace(step, note=note)
        # A canvas that has settled as a whole leaves nothing to write left to right.
        if outlook and outlook.prefix < len(step.draft) and outlook.left_to_right(self.pace.ratio) < outlook.denoising:
            return self._switch(step, outlook)
        self._last_draft = step.draft
        return step

    def _outlook(self, step: Step) -> Outlook | None:
        """None after the first pass, which read the text: nothing can be stable yet. The pace is not measured for a
        text that has ended."""
        if self._last_draft is None or (self.pace is None and step.reason):
            return None
        if self.pace is None:
            self.pace = Pace(self.pass_seconds, token_seconds(self.model, self.cache))
        outlook = look_ahead(step, self._last_draft, self.model.facts, self.sampling)
        if outlook.settled > self._most_settled:
            self._most_settled, self._last_progress = outlook.settled, step.step
        return replace(outlook, stalled=step.step - self._last_progress)

    def _switch(self, step: Step, outlook: Outlook) -> Step:
        """Keep the settled prefix, and write the rest of the block left to right."""
        note = self._note(f"left to right after {outlook.passes} passes", outlook)
        kept = step.draft[: outlook.prefix]
        self.left -= len(kept)
        reason = "length" if self.left <= 0 else "stop" if np.isin(kept, self.model.facts.stop_ids).any() else None
        if reason is None:
            self._go_left_to_right(Text(kept), step.step + 1, min(self.left, len(step.draft) - len(kept)))
        draft = kept if len(kept) else step.draft
        return replace(step, draft=draft, final=len(kept) > 0, reason=reason, note=note)

    def _go_left_to_right(self, pending: Text, first_step: int, count: int, note: str | None = None) -> None:
        """Write `count` tokens at most; they are this block's steps from `first_step` on."""
        self._denoising, self.first_step, self.note = None, first_step, note
        limit = min(count, self._room(pending))
        self.current = LeftToRight(
            self.model, pending, limit, self.draw, self.rng, self.cache, self.clock, request=self.request
        )

    def _take_token(self, token: int) -> Step:
        step, number = self.current.take(token), self.first_step + self.current.count - 1
        self.left -= 1
        whole = self.left <= 0 or self._room(Text()) <= 0
        reason = step.reason
        if reason == "length" and not whole:  # the end of a block, not of the text
            reason = "deadline" if self.current.late else None
        step, self.note = replace(step, block=self.block, step=number, reason=reason, note=self.note), None
        if reason is None and self.current.done:
            self.block += 1
            self._begin_block(Text())
        return step

    def _note(self, action: str, outlook: Outlook | None) -> str:
        if outlook is None:
            return f"block {self.block + 1}: {action}"
        settled = f"{outlook.settled} of {outlook.length} tokens settled, {outlook.prefix} from the first on"
        tokens = (
            f"{outlook.left_to_right(self.pace.ratio):.1f} left to right, where a token costs {self.pace.ratio:.2f}"
        )
        return f"block {self.block + 1}: {action}: {settled}; to go: {outlook.denoising:.1f} passes, or {tokens}"
