"""Anthropic's messages, and their count of tokens."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..tokens.messages import prompt_tokens
from ..tokens.tools import ToolCall, read_tools
from .bodies import Body, Chat, Count, Stops, parse, read, translated
from .chat import plan_chat
from .engine import Engine
from .frames import Json, read_body, sse
from .plan import Plan
from .refusal import Refusal
from .reply import Delta, Result
from .wire import Wire

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


def chat_of(body: Messages) -> Chat:
    """Returns the chat completion that asks for the same."""
    system, thinking, choice = body.system, body.thinking, body.tool_choice or {}
    if isinstance(system, list):
        system = "\n".join(str(part.get("text", "")) for part in system)
    kind = choice.get("type")
    if not isinstance(kind, str | None):
        raise Refusal(400, f"tool_choice: need a type that is a text, got {kind!r:.80}", "tool_choice")
    chosen: Any = {"any": "required"}.get(kind, kind)
    if kind == "tool":
        chosen = {"type": "function", "function": {"name": choice.get("name")}}
    fields = {
        "messages": [{"role": "system", "content": system}, *body.messages] if system else body.messages,
        "stop": body.stop_sequences or body.stop,
        "tools": body.tools,
        "tool_choice": chosen,
        "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") is True else None,
        "thinking": thinking.get("type") not in (None, "disabled") if isinstance(thinking, dict) else thinking,
        "response_format": (body.output_config or {}).get("format") or body.output_format or body.response_format,
    }
    return translated(Chat, body, fields)


def plan_message(engine: Engine, body: Messages) -> Plan:
    if body.max_tokens is None:
        raise Refusal(400, "max_tokens is missing", "max_tokens")
    return plan_chat(engine, chat_of(body))


class MessagesWire(Wire):
    """A reply: blocks of content one after another, of thoughts, of text, of calls."""

    ping = sse({"type": "ping"}, "ping")

    def __init__(self, engine: Engine, plan: Plan):
        super().__init__(engine, plan)
        self.index, self.open = -1, None  # of the present block, and its kind

    def head(self) -> dict[str, Any]:
        head = {"id": f"msg_{self.plan.id}", "type": "message", "role": "assistant", "model": self.model}
        return head | {"content": [], "stop_reason": None, "stop_sequence": None}

    def send(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, **fields}, kind)

    def begin(self) -> Iterator[bytes]:
        usage = {"input_tokens": self.plan.prompt_tokens, "output_tokens": 0}
        yield self.send("message_start", message=self.head() | {"usage": usage})

    def delta(self, delta: Delta) -> Iterator[bytes]:
        if delta.thinking:
            yield from self.add("thinking", "thinking_delta", delta.thinking)
        if delta.text:
            yield from self.add("text", "text_delta", delta.text)

    def add(self, kind: str, name: str, text: str) -> Iterator[bytes]:
        """Sends text of a block, which begins if none of its kind is open."""
        if self.open != kind:
            yield from self.start({"type": kind, kind: ""})
        yield self.send("content_block_delta", index=self.index, delta={"type": name, kind: text})

    def start(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self.stop()
        self.index, self.open = self.index + 1, block["type"]
        yield self.send("content_block_start", index=self.index, content_block=block)

    def stop(self) -> Iterator[bytes]:
        if self.open:
            self.open = None
            yield self.send("content_block_stop", index=self.index)

    def end(self, result: Result) -> Iterator[bytes]:
        for number, call in enumerate(result.output.calls):
            yield from self.start(self.call(number, call) | {"input": {}})
            partial = {"type": "input_json_delta", "partial_json": call.json()}
            yield self.send("content_block_delta", index=self.index, delta=partial)
        yield from self.stop()
        whole = self.whole(result)
        delta = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
        yield self.send("message_delta", delta=delta, usage=whole["usage"], **result.more)
        yield self.send("message_stop")

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield sse(error.body("/v1/messages"), "error")

    def call(self, number: int, call: ToolCall) -> dict[str, Any]:
        identifier = f"toolu_{self.plan.id[:20]}{number}"
        return {"type": "tool_use", "id": identifier, "name": call.name, "input": call.arguments}

    def whole(self, result: Result) -> dict[str, Any]:
        output, counted = result.output, result.usage
        content = [{"type": "thinking", "thinking": output.thinking, "signature": ""}] if output.thinking else []
        if output.text or not output.calls:
            content.append({"type": "text", "text": output.text})
        content += [self.call(number, call) for number, call in enumerate(output.calls)]
        reason = "tool_use" if output.calls else "stop_sequence" if output.cut else REASONS[output.reason]
        cached = counted.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        usage = {"input_tokens": counted["prompt_tokens"] - cached, "output_tokens": counted["completion_tokens"]}
        usage |= {"cache_read_input_tokens": cached, "diffusion": counted.get("diffusion", {})}
        why = {"stop_reason": reason, "stop_sequence": output.cut if reason == "stop_sequence" else None}
        return self.head() | {"content": content} | why | {"usage": usage} | result.more


ENDPOINTS = {"/v1/messages": (Messages, plan_message, MessagesWire)}


async def count_tokens(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    body = chat_of(read(Messages, parse(await read_body(request))))
    tools = read_tools(body.tools) if body.tools else None
    return Json({"input_tokens": len(prompt_tokens(engine.tokenizer, body.messages, tools=tools))})
