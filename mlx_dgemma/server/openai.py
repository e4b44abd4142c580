"""OpenAI's chat completions and completions: whole, and as streams."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..forms import template
from ..tokens.tools import ToolCall
from .drafts import frame
from .engine import Engine
from .frames import sse
from .refusal import Refusal
from .reply import Delta, Draft
from .tasks import Written
from .wanted import Wanted, calls_of

REASONS = {"deadline": "length"}  # ours -> OpenAI's


class ChatWire:
    """A reply to /v1/chat/completions. It keeps what a stream has sent."""

    media_type = "text/event-stream"
    kind, id_prefix = "chat.completion", "chatcmpl-"
    ping = b": ping\n\n"

    def __init__(self, engine: Engine, wanted: Wanted):
        self.engine, self.wanted, self.body = engine, wanted, wanted.body
        self.said: dict[int, str] = {}  # of each answer
        self.calls: dict[int, int] = {}  # how many each has made

    def head(self, chunk: bool) -> dict[str, Any]:
        kind = f"{self.kind}.chunk" if chunk else self.kind
        wanted = self.wanted
        return {"id": self.id_prefix + wanted.id, "object": kind, "created": wanted.created, "model": wanted.model}

    def begin(self) -> Iterator[bytes]:
        if not self.body.diffusing:
            for index in range(self.wanted.rows):
                yield self.chunk(index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, delta: dict, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return sse(self.head(chunk=True) | {"choices": [choice]} | more)

    def event(self, event: Delta | Draft) -> Iterator[bytes]:
        if self.body.diffusing:
            yield from self.replaced(event)
        elif isinstance(event, Draft):
            tokens = self.body.drafts == "tokens"
            shown = frame(self.engine.tokenizer, self.engine.model.facts, event, self.wanted.total, tokens=tokens)
            yield self.chunk(event.index, {}, **shown)
        else:
            if delta := self.delta(event):
                yield self.chunk(event.index, delta, **self.running_usage(event))

    def delta(self, event: Delta) -> dict[str, Any]:
        thinking = {"reasoning": event.thinking, "reasoning_content": event.thinking} if event.thinking else {}
        content = {"content": event.text} if event.text and self.wanted.tool is None else {}
        return thinking | content | self.new_calls(event.index, event.calls)

    def new_calls(self, index: int, calls: Sequence[ToolCall]) -> dict[str, Any]:
        first = self.calls.get(index, 0)
        calls = calls if self.wanted.most_calls is None else calls[: max(0, self.wanted.most_calls - first)]
        self.calls[index] = first + len(calls)
        shown = [{"index": i, **call.to_openai(self.call_id(index, i))} for i, call in enumerate(calls, first)]
        return {"tool_calls": shown} if shown else {}

    def call_id(self, index: int, number: int) -> str:
        return f"call_{self.wanted.id[:16]}{index}{number}"

    def replaced(self, event: Delta | Draft) -> Iterator[bytes]:
        """Mercury's frames: each holds the whole text so far."""
        said, progress = self.said.get(event.index, ""), 1.0
        if isinstance(event, Delta):
            said = self.said[event.index] = said + event.text
        else:
            shown = frame(self.engine.tokenizer, self.engine.model.facts, event, self.wanted.total, tokens=False)
            said += "" if shown["diffusion"]["reasoning"] else shown["text"]
            progress = min(0.99, (event.step.step + 1) / shown["total"])
        yield self.mercury(event.index, said, progress)

    def mercury(self, index: int, text: str, progress: float) -> bytes:
        meta = {"diffusion_content": True, "diffusion_progress": progress}
        return self.chunk(index, {"role": "assistant", "content": text, "tool_calls": []}, diffusion_meta=meta)

    def end(self, written: list[Written]) -> Iterator[bytes]:
        for each in written:
            calls = calls_of(self.wanted, each)
            if self.body.diffusing:
                yield self.mercury(each.index, each.text, 1.0)
            if fresh := self.new_calls(each.index, calls[self.calls.get(each.index, 0) :]):
                yield self.chunk(each.index, fresh)
            warnings = {"warnings": self.wanted.warnings} if self.wanted.warnings and each.index == 0 else {}
            yield self.chunk(each.index, {}, self.reason(each), **warnings)
        if (self.body.stream_options or {}).get("include_usage"):
            yield sse(self.head(chunk=True) | {"choices": [], "usage": usage(written)})
        yield sse("[DONE]")

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield sse(error.body("/v1"))
        yield sse("[DONE]")

    def reason(self, each: Written) -> str:
        if calls_of(self.wanted, each):
            return "tool_calls"
        return REASONS.get(each.reason, each.reason)

    def running_usage(self, event: Delta) -> dict[str, Any]:
        if not (self.body.stream_options or {}).get("continuous_usage_stats"):
            return {}
        prompt = len(self.wanted.question.tokens)
        return {
            "usage": {"prompt_tokens": prompt, "completion_tokens": event.tokens, "total_tokens": prompt + event.tokens}
        }

    def whole(self, result: list[Written] | dict[str, Any]) -> dict[str, Any]:
        if isinstance(result, dict):  # of choices
            message = {"role": "assistant", "content": result["text"]}
            choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
            more = {"probabilities": result["probabilities"], "usage": chosen_usage(result)}
        else:
            choices, more = [self.choice(each) for each in result], {"usage": usage(result)}
        warnings = {"warnings": self.wanted.warnings} if self.wanted.warnings else {}
        return self.head(chunk=False) | {"choices": choices} | more | warnings

    def choice(self, each: Written) -> dict[str, Any]:
        calls = calls_of(self.wanted, each)
        content = None if self.wanted.tool is not None else each.text
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if each.answer.thinking:
            message |= {"reasoning": each.answer.thinking, "reasoning_content": each.answer.thinking}
        if calls:
            shown = [call.to_openai(self.call_id(each.index, i)) for i, call in enumerate(calls)]
            message |= {"content": content or None, "tool_calls": shown}
        choice = {"index": each.index, "message": message, "logprobs": self.logprobs(each)}
        if self.wanted.template is not None:
            choice["slots"] = template.filled(self.wanted.template, each.text)
        return choice | {"finish_reason": self.reason(each)}

    def logprobs(self, each: Written) -> dict[str, Any] | None:
        if each.scores is None:
            return None
        asked = (self.body.model_extra or {}).get("top_logprobs")
        shown = [
            _entry(text, logprob) | {"top_logprobs": [_entry(*top)] if asked else []}
            for text, logprob, top in self.scored(each)
        ]
        return {"content": shown}

    def scored(self, each: Written) -> Iterator[tuple[str, float | None, tuple[str, float] | None]]:
        """Each token's text and log-probability, and those of the likeliest in its place; None of a text's first."""
        decode = self.engine.alphabet.decode
        for one in each.scores:
            top = None if one.likeliest is None else (decode([one.likeliest]), one.top)
            yield decode([one.token]), one.logprob, top


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(written: Sequence[Written]) -> dict[str, Any]:
    """Counts of tokens and passes, of all answers together."""
    answers = [each.answer for each in written]
    prompts = {id(each.answer.prompt): each for each in written}.values()  # answers to one share it
    prompt, answer = sum(len(each.answer.prompt) for each in prompts), sum(len(answer.tokens) for answer in answers)
    steps = sum(answer.steps for answer in answers)
    first = [answer.seconds_to_first_block for answer in answers if answer.seconds_to_first_block is not None]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(each.thinking_tokens for each in written)},
        "diffusion": {
            "blocks": sum(len(answer.steps_per_block) for answer in answers),
            "steps": steps,
            "tokens_per_forward": round(sum(a.tokens_per_forward * a.steps for a in answers) / max(steps, 1), 3),
            "seconds": round(max(answer.seconds for answer in answers), 4),
            "seconds_to_first_block": round(min(first, default=0.0), 4),
        },
    }


def chosen_usage(result: dict[str, Any]) -> dict[str, Any]:
    prompt = result["prompt_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
