"""How a reply is written: as a stream that begins, goes on with events, and ends or fails; or whole."""

from collections.abc import Iterable
from typing import Any, Protocol

from .drafts import frame
from .engine import Engine
from .frames import sse
from .plan import Plan
from .refusal import Refusal
from .reply import Delta, Draft, Result


class Wire(Protocol):
    """What all protocols share; `delta`, `end`, `failed` and `whole` are for each to say."""

    media_type = "text/event-stream"
    ping = b": ping\n\n"  # sent where nothing else is for a while

    def __init__(self, engine: Engine, plan: Plan):
        self.engine, self.plan, self.body = engine, plan, plan.body
        self.model = plan.body.model or engine.name  # as the client calls it

    def begin(self) -> Iterable[bytes]:
        return ()

    def event(self, event: Delta | Draft) -> Iterable[bytes]:
        return self.draft(event.index, self.frame(event)) if isinstance(event, Draft) else self.delta(event)

    def frame(self, draft: Draft) -> dict[str, Any]:
        passes, tokens = self.plan.ask.sampling.max_denoising_steps, self.body.drafts == "tokens"
        return frame(self.engine.tokenizer, self.engine.model.facts, draft, passes, tokens=tokens)

    def draft(self, index: int, shown: dict[str, Any]) -> Iterable[bytes]:
        yield sse(shown, "diffusion_frame")

    def delta(self, delta: Delta) -> Iterable[bytes]: ...
    def end(self, result: Result) -> Iterable[bytes]: ...
    def failed(self, error: Refusal) -> Iterable[bytes]: ...
    def whole(self, result: Result) -> dict[str, Any]: ...
