"""OpenAI's responses, without a memory: each request brings the whole conversation."""

import re
from collections.abc import Iterator
from itertools import count
from typing import Annotated, Any

from pydantic import Field

from ..tokens.messages import MessageMistake
from ..tokens.tools import ToolCall
from .bodies import Body, Chat, Count, translated
from .chat import plan_chat
from .engine import Engine
from .frames import sse
from .plan import Plan
from .refusal import Refusal
from .reply import Delta, Result
from .wire import Wire

USAGE = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}  # OpenAI's older names -> these
USAGE |= {f"{name}_details": f"{new}_details" for name, new in USAGE.items()}


class Responses(Body):
    input: str | Annotated[list[Any], Field(min_length=1, max_length=1000)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict | None = None
    reasoning: dict | None = None
    text: dict | None = None  # the form of the text


def plan_response(engine: Engine, body: Responses) -> Plan:
    turns = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    functions = [tool for tool in body.tools or [] if isinstance(tool, dict) and tool.get("type") == "function"]
    form = (body.text or {}).get("format")
    if isinstance(form, dict) and "schema" in form:
        form = {"type": "json_schema", "json_schema": form}
    fields = {
        "messages": [*system, *turns],
        "max_tokens": body.max_output_tokens or body.max_tokens,
        "tools": functions or None,
        "tool_choice": body.tool_choice if functions else None,
        "response_format": form or body.response_format,
        "reasoning": body.reasoning,
    }
    try:
        plan = plan_chat(engine, translated(Chat, body, fields))
    except MessageMistake as mistake:  # it names a place in the chat's messages
        place = re.sub(r"^messages\[(\d+)\]", lambda m: f"input[{int(m[1]) - len(system)}]", mistake.where)
        raise Refusal(400, str(mistake).replace(mistake.where, place, 1), place) from None
    if left_out := len(body.tools or []) - len(functions):
        plan.warnings.append(f"tools: {left_out} that are no functions were left out")
    return plan


class ResponsesWire(Wire):
    """A reply: items of output, a message or calls."""

    def __init__(self, engine: Engine, plan: Plan):
        super().__init__(engine, plan)
        self.numbers, self.text = count(), ""
        self.open = False  # the message has begun

    def send(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, "sequence_number": next(self.numbers), **fields}, kind)

    def head(self, status: str, output: list, **more: Any) -> dict[str, Any]:
        plan = self.plan
        head = {"id": f"resp_{plan.id}", "object": "response", "created_at": plan.created, "status": status}
        head |= {"model": self.model, "output": output, "error": None, "incomplete_details": None}
        head |= {"instructions": None, "metadata": {}, "parallel_tool_calls": True, "tools": [], "tool_choice": "auto"}
        return head | {"temperature": None, "top_p": None, "usage": None} | more

    def begin(self) -> Iterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self.send(kind, response=self.head("in_progress", []))

    def delta(self, delta: Delta) -> Iterator[bytes]:
        if delta.text:
            yield from self.add(delta.text)

    def add(self, text: str) -> Iterator[bytes]:
        """Sends text of the message, which begins with it."""
        if not self.open:
            self.open = True
            item = self.message("", "in_progress") | {"content": []}
            yield self.send("response.output_item.added", output_index=0, item=item)
            yield self.send("response.content_part.added", **self.place(), part=_part(""))
        self.text += text
        yield self.send("response.output_text.delta", **self.place(), delta=text, logprobs=[])

    def place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self.plan.id}", "output_index": 0, "content_index": 0}

    def message(self, text: str, status: str) -> dict[str, Any]:
        item = {"id": f"msg_{self.plan.id}", "type": "message", "role": "assistant", "status": status}
        return item | {"content": [_part(text)]}

    def call(self, number: int, call: ToolCall) -> dict[str, Any]:
        item = {"id": f"fc_{self.plan.id}{number}", "type": "function_call", "status": "completed"}
        return item | {"call_id": f"call_{self.plan.id[:20]}{number}", "name": call.name, "arguments": call.json()}

    def end(self, result: Result) -> Iterator[bytes]:
        whole = self.whole(result)
        if not self.open and whole["output"][0]["type"] == "message":
            yield from self.add("")
        for index, item in enumerate(whole["output"]):
            if item["type"] == "message":
                yield self.send("response.output_text.done", **self.place(), text=self.text, logprobs=[])
                yield self.send("response.content_part.done", **self.place(), part=_part(self.text))
            else:
                place = {"item_id": item["id"], "output_index": index}
                empty = item | {"arguments": "", "status": "in_progress"}
                yield self.send("response.output_item.added", output_index=index, item=empty)
                yield self.send("response.function_call_arguments.delta", **place, delta=item["arguments"])
                done = {"arguments": item["arguments"], "name": item["name"]}
                yield self.send("response.function_call_arguments.done", **place, **done)
            yield self.send("response.output_item.done", output_index=index, item=item)
        kind = "response.completed" if whole["status"] == "completed" else "response.incomplete"
        yield self.send(kind, response=whole)

    def failed(self, error: Refusal) -> Iterator[bytes]:
        content = error.body("/v1")["error"]
        yield self.send("error", **{**content, "code": content["code"] or content["type"]})
        failure = {"code": error.code or "server_error", "message": error.message}
        yield self.send("response.failed", response=self.head("failed", [], error=failure))

    def whole(self, result: Result) -> dict[str, Any]:
        output = result.output
        cut = output.reason in ("length", "deadline")
        status = "incomplete" if cut else "completed"
        items = [self.message(output.text, status)] if output.text or not output.calls else []
        items += [self.call(number, call) for number, call in enumerate(output.calls)]
        usage = {USAGE.get(name, name): value for name, value in result.usage.items()}
        details = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        return self.head(status, items, usage=usage, **details, **result.more)


ENDPOINTS = {"/v1/responses": (Responses, plan_response, ResponsesWire)}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
