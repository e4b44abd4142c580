"""OpenAI's chat completions and completions: whole, and as streams."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ..tokens.tools import ToolCall
from .bodies import Chat
from .chat import plan_chat
from .engine import Engine
from .frames import sse
from .plan import Plan
from .refusal import Refusal
from .reply import Delta, Draft, Output, Result, counts
from .wire import Wire

REASONS = {"deadline": "length"}  # ours -> OpenAI's


class ChatWire(Wire):
    """A reply to /v1/chat/completions. It keeps what a stream has sent."""

    kind, id_prefix = "chat.completion", "chatcmpl-"

    def __init__(self, engine: Engine, plan: Plan):
        super().__init__(engine, plan)
        self.texts: dict[int, str] = {}  # sent of each answer
        self.calls: dict[int, int] = {}  # how many were sent of each

    def head(self, chunk: bool) -> dict[str, Any]:
        kind = f"{self.kind}.chunk" if chunk else self.kind
        plan = self.plan
        return {"id": self.id_prefix + plan.id, "object": kind, "created": plan.created, "model": self.model}

    def begin(self) -> Iterator[bytes]:
        if not self.body.diffusing:
            for index in range(self.plan.rows):
                yield self.chunk(index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, delta: dict, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return sse(self.head(chunk=True) | {"choices": [choice]} | more)

    def event(self, event: Delta | Draft) -> Iterator[bytes]:
        return self.mercury(event) if self.body.diffusing else super().event(event)

    def draft(self, index: int, shown: dict[str, Any]) -> Iterator[bytes]:
        yield self.chunk(index, {}, **shown)

    def delta(self, delta: Delta) -> Iterator[bytes]:
        shown = {"reasoning": delta.thinking, "reasoning_content": delta.thinking} if delta.thinking else {}
        shown |= {"content": delta.text} if delta.text else {}
        if delta.calls:
            first = self.calls.get(delta.index, 0)
            self.calls[delta.index] = first + len(delta.calls)
            entries = self.tool_calls(delta.index, delta.calls, first)
            shown["tool_calls"] = [{"index": i, **entry} for i, entry in enumerate(entries, first)]
        if shown:
            yield self.chunk(delta.index, shown, **self.running_usage(delta))

    def tool_calls(self, index: int, calls: Sequence[ToolCall], first: int = 0) -> list[dict[str, Any]]:
        return [call.to_openai(f"call_{self.plan.id[:16]}{index}{i}") for i, call in enumerate(calls, first)]

    def mercury(self, event: Delta | Draft) -> Iterator[bytes]:
        """Sends a frame of Inception's, which holds the whole text so far."""
        text, progress = self.texts.get(event.index, ""), 1.0
        if isinstance(event, Delta):
            text = self.texts[event.index] = text + event.text
        else:
            shown = self.frame(event)
            text += "" if shown["diffusion"]["reasoning"] else shown["text"]
            progress = min(0.99, (event.step.step + 1) / shown["total"])
        yield self.mercury_frame(event.index, text, progress)

    def mercury_frame(self, index: int, text: str, progress: float) -> bytes:
        meta = {"diffusion_content": True, "diffusion_progress": progress}
        return self.chunk(index, {"role": "assistant", "content": text, "tool_calls": []}, diffusion_meta=meta)

    def end(self, result: Result) -> Iterator[bytes]:
        for output in result.outputs:
            if self.body.diffusing:
                yield self.mercury_frame(output.index, output.text, 1.0)
            more = result.more if output.index == 0 else {}
            yield self.chunk(output.index, {}, reason_of(output), **more)
        if (self.body.stream_options or {}).get("include_usage"):
            yield sse(self.head(chunk=True) | {"choices": [], "usage": result.usage})
        yield sse("[DONE]")

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield sse(error.body("/v1"))
        yield sse("[DONE]")

    def running_usage(self, delta: Delta) -> dict[str, Any]:
        if not (self.body.stream_options or {}).get("continuous_usage_stats"):
            return {}
        return {"usage": counts(self.plan.prompt_tokens, delta.tokens)}

    def whole(self, result: Result) -> dict[str, Any]:
        choices = [self.choice(output) for output in result.outputs]
        return self.head(chunk=False) | {"choices": choices, "usage": result.usage} | result.more

    def choice(self, output: Output) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": output.text}
        if output.thinking:
            message |= {"reasoning": output.thinking, "reasoning_content": output.thinking}
        if output.calls:
            calls = self.tool_calls(output.index, output.calls)
            message |= {"content": output.text or None, "tool_calls": calls}
        slots = {} if output.slots is None else {"slots": output.slots}
        logprobs = None if output.scores is None else self.logprobs(output)
        choice = {"index": output.index, "message": message, "logprobs": logprobs} | slots
        return choice | {"finish_reason": reason_of(output)}

    def logprobs(self, output: Output) -> dict[str, Any]:
        tops = (self.body.model_extra or {}).get("top_logprobs")
        entries = [
            _entry(text, logprob) | {"top_logprobs": [_entry(*top)] if tops else []}
            for text, logprob, top in self.scored(output)
        ]
        return {"content": entries}

    def scored(self, output: Output) -> Iterator[tuple[str, float | None, tuple[str, float] | None]]:
        """Yields the text and log-probability of each token, and of the likeliest in its place; None of the first."""
        decode = self.engine.alphabet.decode
        for score in output.scores:
            top = None if score.likeliest is None else (decode([score.likeliest]), score.top)
            yield decode([score.token]), score.logprob, top


class CompletionWire(ChatWire):
    """A reply to completions and to fill-in-the-middle. Clients read `text`, `message` or `delta`: all are there."""

    kind, id_prefix = "text_completion", "cmpl-"

    def head(self, chunk: bool) -> dict[str, Any]:
        return super().head(chunk) | {"object": self.kind}

    def begin(self) -> Iterator[bytes]:
        return iter(())

    def chunk(self, index: int, delta: dict, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "text": delta.get("content", ""), "delta": delta, "logprobs": None}
        return sse(self.head(chunk=True) | {"choices": [choice | {"finish_reason": reason}]} | more)

    def choice(self, output: Output) -> dict[str, Any]:
        return {"text": output.text} | super().choice(output)

    def logprobs(self, output: Output) -> dict[str, Any]:
        """Returns lists, as completions have them, with null where nothing was before."""
        tokens, logprobs, tops = zip(*self.scored(output), strict=True)
        offsets = [0, *accumulate(map(len, tokens))][:-1]
        shown = [top and {top[0]: top[1]} for top in tops] if self.body.logprobs else None
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": shown, "text_offset": offsets}


def reason_of(output: Output) -> str:
    return "tool_calls" if output.calls else REASONS.get(output.reason, output.reason)


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


ENDPOINTS = {"/v1/chat/completions": (Chat, plan_chat, ChatWire)}
