"""OpenAI's responses, without a memory: each request brings the whole conversation."""

from collections.abc import Iterator
from itertools import count
from typing import Annotated, Any

from pydantic import Field

from .bodies import Body, Chat, Count, read
from .drafts import frame
from .engine import Engine
from .frames import sse
from .openai import usage
from .refusal import Refusal
from .reply import Delta, Draft
from .tasks import Written
from .wanted import Wanted, calls_of, chat_wanted


class Responses(Body):
    input: str | Annotated[list[Any], Field(max_length=1000)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict | None = None
    reasoning: dict | None = None
    text: dict | None = None  # the form of the text


def messages_of(body: Responses) -> list[Any]:
    """The turns of `input`: messages, calls and their results."""
    turns: list[Any] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, {"role": "user", "content": body.input}]
    for i, item in enumerate(body.input):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            turns.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if turns and turns[-1].get("tool_calls"):
                turns[-1]["tool_calls"].append(call)
            else:
                turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":
            raise Refusal(400, f"input[{i}]: need a message, a call or its output, got {item!r:.80}", f"input[{i}]")
    return turns


def responses_wanted(engine: Engine, body: Responses) -> Wanted:
    names = {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text"}
    given = body.model_dump(exclude_none=True, exclude=names)
    functions = [tool for tool in body.tools or [] if isinstance(tool, dict) and tool.get("type") == "function"]
    form = (body.text or {}).get("format")
    if isinstance(form, dict) and "schema" in form:
        form = {"type": "json_schema", "json_schema": form}
    fields = {"messages": messages_of(body), "max_tokens": body.max_output_tokens, "tools": functions or None}
    fields |= {"response_format": form, "tool_choice": body.tool_choice if functions else None}
    given |= {name: value for name, value in fields.items() if value is not None}
    wanted = chat_wanted(engine, read(Chat, given))
    if left_out := len(body.tools or []) - len(functions):
        wanted.warnings.append(f"tools: {left_out} that are no functions were left out")
    return wanted


class ResponsesWire:
    media_type = "text/event-stream"
    ping = b": ping\n\n"

    def __init__(self, engine: Engine, wanted: Wanted):
        self.engine, self.wanted = engine, wanted
        self.numbers, self.items, self.said = count(), 0, ""
        self.item: dict[str, Any] | None = None  # of the text

    def send(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, "sequence_number": next(self.numbers), **fields}, kind)

    def head(self, status: str, output: list, **more: Any) -> dict[str, Any]:
        wanted = self.wanted
        head = {"id": f"resp_{wanted.id}", "object": "response", "created_at": wanted.created, "status": status}
        head |= {"model": wanted.model, "output": output, "error": None, "incomplete_details": None}
        head |= {"instructions": None, "metadata": {}, "parallel_tool_calls": True, "tools": [], "tool_choice": "auto"}
        return head | {"temperature": None, "top_p": None, "usage": None} | more

    def begin(self) -> Iterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self.send(kind, response=self.head("in_progress", []))

    def event(self, event: Delta | Draft) -> Iterator[bytes]:
        if isinstance(event, Draft):
            tokens = self.wanted.body.drafts == "tokens"
            shown = frame(self.engine.tokenizer, self.engine.model.facts, event, self.wanted.total, tokens=tokens)
            yield sse(shown, "diffusion_frame")
        elif event.text and self.wanted.tool is None:
            yield from self.text(event.text)

    def text(self, text: str) -> Iterator[bytes]:
        if self.item is None:
            self.item = self.message("", "in_progress") | {"content": []}
            yield self.send("response.output_item.added", output_index=0, item=self.item)
            yield self.send("response.content_part.added", **self.place(), part=_part(""))
        self.said += text
        yield self.send("response.output_text.delta", **self.place(), delta=text, logprobs=[])

    def place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self.wanted.id}", "output_index": 0, "content_index": 0}

    def message(self, text: str, status: str) -> dict[str, Any]:
        item = {"id": f"msg_{self.wanted.id}", "type": "message", "role": "assistant", "status": status}
        return item | {"content": [_part(text)]}

    def end(self, written: list[Written]) -> Iterator[bytes]:
        whole = self.whole(written)
        if self.item is None and whole["output"][0]["type"] == "message":
            yield from self.text("")
        for index, item in enumerate(whole["output"]):
            if item["type"] == "message":
                yield self.send("response.output_text.done", **self.place(), text=self.said, logprobs=[])
                yield self.send("response.content_part.done", **self.place(), part=_part(self.said))
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
        told = error.body("/v1")["error"]
        yield self.send("error", **{**told, "code": told["code"] or told["type"]})
        failure = {"code": error.code or "server_error", "message": error.message}
        yield self.send("response.failed", response=self.head("failed", [], error=failure))

    def whole(self, written: list[Written] | dict[str, Any]) -> dict[str, Any]:
        warnings = {"warnings": self.wanted.warnings} if self.wanted.warnings else {}
        if isinstance(written, dict):  # of choices
            more = {"probabilities": written["probabilities"]} | warnings
            return self.head("completed", [self.message(written["text"], "completed")], **more)
        [each] = written
        calls = calls_of(self.wanted, each)
        cut = each.reason in ("length", "deadline")
        status = "incomplete" if cut else "completed"
        output = [] if self.wanted.tool is not None or (calls and not each.text) else [self.message(each.text, status)]
        for i, call in enumerate(calls):
            identifier, called = f"call_{self.wanted.id[:20]}{i}", call.to_openai("")["function"]
            item = {"id": f"fc_{self.wanted.id}{i}", "type": "function_call", "status": "completed"}
            output.append(item | {"call_id": identifier, **called})
        counted = usage(written)
        counts = {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": counted["prompt_tokens_details"],
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": counted["completion_tokens_details"],
            "total_tokens": counted["total_tokens"],
            "diffusion": counted["diffusion"],
        }
        details = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        return self.head(status, output, usage=counts, **details, **warnings)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
