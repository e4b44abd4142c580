"""What becomes of a request, from the thread of the model to the handler that answers: events, then a result.

Text that stays is queued and never dropped. Of drafts the latest is kept: a reader that is slow sees fewer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..tokens.tools import ToolCall
from ..writing.writing import Step

HEARTBEAT = 5.0  # seconds without anything to send, after which a stream says that it lives


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Text that stays, of one of the answers to a request."""

    index: int = 0
    thinking: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: int = 0  # of the answer so far


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A pass that ended nothing."""

    index: int = 0
    step: Step
    start: int  # characters of the answer before it
    thinking: bool = False  # the draft begins within a thinking channel


@dataclass(frozen=True)
class Scored:
    """A token, and what the causal pass predicted in its place; None of a text's first."""

    token: int
    logprob: float | None
    likeliest: int | None = None
    top: float | None = None  # its log-probability


@dataclass(frozen=True, kw_only=True)
class Output:
    """One of the texts of a reply."""

    index: int = 0
    text: str
    thinking: str = ""
    calls: Sequence[ToolCall] = ()
    reason: str = "stop"  # or "length", "deadline"
    cut: str = ""  # the one of the request's stops before which it ends
    slots: dict[str, str] | None = None  # of a template
    scores: Sequence[Scored] | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    outputs: Sequence[Output]  # none where a prompt was only read
    usage: dict[str, Any]  # counts, under OpenAI's names
    more: dict[str, Any] = field(default_factory=dict)  # our own fields, which every protocol's reply has

    @property
    def output(self) -> Output:
        """The one text of a protocol that has no others; empty where a prompt was only read."""
        return self.outputs[0] if self.outputs else Output(text="", reason="load")


def counts(prompt: int, answer: int, **more: Any) -> dict[str, Any]:
    """Returns the `usage` of a reply, for so many tokens of the prompt and of the answer."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer, **more}


@dataclass(eq=False)
class Reply:
    loop: asyncio.AbstractEventLoop
    result: Result | None = None  # once the events are over
    _events: deque = field(default_factory=deque)
    _error: Exception | None = None
    _over: bool = False
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Delta | Draft) -> None:
        """From any thread."""
        self._soon(self._add, event)

    def end(self, result: Any = None, error: Exception | None = None) -> None:
        """From any thread."""
        self._soon(self._end, result, error)

    def _soon(self, act: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # a server that has ended closed its loop: nobody listens any more
            self.loop.call_soon_threadsafe(act, *arguments)

    def _add(self, event: Delta | Draft) -> None:
        self._ready.set()
        for i in reversed(range(len(self._events))):
            if self._events[i].index == event.index:
                if isinstance(event, Draft) and isinstance(self._events[i], Draft):
                    self._events[i] = event
                    return
                break
        self._events.append(event)

    def _end(self, result: Any, error: Exception | None) -> None:
        if not self._over:
            self.result, self._error, self._over = result, error, True
            self._ready.set()

    async def events(self) -> AsyncIterator[Delta | Draft | None]:
        """Yields events until the result is there, None after HEARTBEAT seconds without. Raises what went wrong."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._error:
                raise self._error
            if self._over:
                return
            self._ready.clear()
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._ready.wait()
            except TimeoutError:
                yield None

    async def wait(self) -> Any:
        """Waits for the result."""
        async for _ in self.events():
            pass
        return self.result
