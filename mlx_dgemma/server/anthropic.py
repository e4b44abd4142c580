"""Anthropic's messages, and their count of tokens."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..tokens.messages import prompt_tokens
from ..tokens.tools import ToolCall, read_tools
from .bodies import Body, Chat, Count, Stops, parse, read
from .drafts import frame
from .engine import Engine
from .frames import Json, read_body, sse
from .openai import usage
from .refusal import Refusal
from .reply import Delta, Draft
from .tasks import Written
from .wanted import Wanted, calls_of, chat_wanted

REASONS = {"stop": "end_turn", "length": "max_tokens", "deadline": "max_tokens"}


class Messages(Body):
    max_tokens: Count | None = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=1000)]
    system: str | list[dict] | None = None
    stop_sequences: Stops | None = None
    tools: list[Any] | None = None
    tool_choice: dict | None = None
    thinking: dict | bool | None = None
    output_config: dict | None = None  # its `format` is the form of the text
    output_format: dict | None = None  # an older name of that


def chat_fields(body: Messages) -> dict[str, Any]:
    """The body of a chat completion that asks for the same."""
    names = {"system", "stop_sequences", "tool_choice", "thinking", "output_config", "output_format"}
    given = body.model_dump(exclude_none=True, exclude=names)
    system = body.system
    if isinstance(system, list):
        system = "\n".join(str(part.get("text", "")) for part in system)
    messages = [{"role": "system", "content": system}, *body.messages] if system else body.messages
    kind = (body.tool_choice or {}).get("type")
    if (body.tool_choice or {}).get("disable_parallel_tool_use") is True:
        given["parallel_tool_calls"] = False
    choice: Any = {"any": "required", "auto": "auto", "none": "none", None: None}.get(kind, kind)
    if kind == "tool":
        choice = {"type": "function", "function": {"name": body.tool_choice.get("name")}}
    thinking = body.thinking.get("type") not in (None, "disabled") if isinstance(body.thinking, dict) else body.thinking
    fields = {"messages": messages, "stop": body.stop_sequences, "tool_choice": choice, "thinking": thinking}
    fields["response_format"] = (body.output_config or {}).get("format") or body.output_format or body.response_format
    return given | {name: value for name, value in fields.items() if value is not None}


def messages_wanted(engine: Engine, body: Messages) -> Wanted:
    if body.max_tokens is None:
        raise Refusal(400, "max_tokens is missing", "max_tokens")
    return chat_wanted(engine, read(Chat, chat_fields(body)))


class MessagesWire:
    """A reply: blocks of content one after another, of thoughts, of text, of calls."""

    media_type = "text/event-stream"
    ping = sse({"type": "ping"}, "ping")

    def __init__(self, engine: Engine, wanted: Wanted):
        self.engine, self.wanted = engine, wanted
        self.index, self.open = -1, None  # of the present block, and its kind

    def head(self) -> dict[str, Any]:
        head = {"id": f"msg_{self.wanted.id}", "type": "message", "role": "assistant", "model": self.wanted.model}
        return head | {"content": [], "stop_reason": None, "stop_sequence": None}

    def begin(self) -> Iterator[bytes]:
        counts = {"input_tokens": len(self.wanted.question.tokens), "output_tokens": 0}
        yield sse({"type": "message_start", "message": self.head() | {"usage": counts}}, "message_start")

    def event(self, event: Delta | Draft) -> Iterator[bytes]:
        if isinstance(event, Draft):
            tokens = self.wanted.body.drafts == "tokens"
            shown = frame(self.engine.tokenizer, self.engine.model.facts, event, self.wanted.total, tokens=tokens)
            yield sse(shown, "diffusion_frame")
            return
        if event.thinking:
            yield from self.delta("thinking", "thinking_delta", event.thinking)
        if event.text and self.wanted.tool is None:
            yield from self.delta("text", "text_delta", event.text)

    def delta(self, kind: str, name: str, text: str) -> Iterator[bytes]:
        if self.open != kind:
            yield from self.start({"type": kind, kind: ""})
        delta = {"type": name, kind: text}
        yield sse({"type": "content_block_delta", "index": self.index, "delta": delta}, "content_block_delta")

    def start(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self.stop()
        self.index, self.open = self.index + 1, block["type"]
        opened = {"type": "content_block_start", "index": self.index, "content_block": block}
        yield sse(opened, "content_block_start")

    def stop(self) -> Iterator[bytes]:
        if self.open:
            self.open = None
            yield sse({"type": "content_block_stop", "index": self.index}, "content_block_stop")

    def end(self, written: list[Written]) -> Iterator[bytes]:
        for number, call in enumerate(calls_of(self.wanted, written[0])):
            block = self.call(number, call)
            yield from self.start(block | {"input": {}})
            partial = {"type": "input_json_delta", "partial_json": call_json(call)}
            yield sse({"type": "content_block_delta", "index": self.index, "delta": partial}, "content_block_delta")
        yield from self.stop()
        whole = self.whole(written)
        delta = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
        warnings = {"warnings": whole["warnings"]} if "warnings" in whole else {}
        yield sse({"type": "message_delta", "delta": delta, "usage": whole["usage"]} | warnings, "message_delta")
        yield sse({"type": "message_stop"}, "message_stop")

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield sse(error.body("/v1/messages"), "error")

    def call(self, number: int, call: ToolCall) -> dict[str, Any]:
        identifier = f"toolu_{self.wanted.id[:20]}{number}"
        return {"type": "tool_use", "id": identifier, "name": call.name, "input": call.arguments}

    def whole(self, written: list[Written] | dict[str, Any]) -> dict[str, Any]:
        warnings = {"warnings": self.wanted.warnings} if self.wanted.warnings else {}
        if isinstance(written, dict):  # of choices
            content, reason = [{"type": "text", "text": written["text"]}], "end_turn"
            counts = {"input_tokens": written["prompt_tokens"], "output_tokens": 0}
            warnings |= {"probabilities": written["probabilities"]}
        else:
            [each] = written
            calls, counted = calls_of(self.wanted, each), usage(written)
            thinking = [{"type": "thinking", "thinking": each.answer.thinking, "signature": ""}]
            content = thinking if each.answer.thinking else []
            if self.wanted.tool is None and (each.text or not calls):
                content = [*content, {"type": "text", "text": each.text}]
            content = [*content, *(self.call(i, call) for i, call in enumerate(calls))]
            reason = "tool_use" if calls else "stop_sequence" if each.answer.found_stop else REASONS[each.reason]
            cached = counted["prompt_tokens_details"]["cached_tokens"]
            counts = {"input_tokens": counted["prompt_tokens"] - cached, "output_tokens": counted["completion_tokens"]}
            counts |= {"cache_read_input_tokens": cached, "diffusion": counted["diffusion"]}
        return self.head() | {"content": content, "stop_reason": reason, "usage": counts} | warnings


def call_json(call: ToolCall) -> str:
    return call.to_openai("")["function"]["arguments"]


async def count_tokens(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    body = read(Chat, chat_fields(read(Messages, parse(await read_body(request)))))
    tools = read_tools(body.tools) if body.tools else None
    return Json({"input_tokens": len(prompt_tokens(engine.tokenizer, body.messages, tools=tools))})
