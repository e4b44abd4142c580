"""Ollama's endpoints, as far as they are about asking a model: lines of JSON, and a stream unless it is refused."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..fill.infill import Filled
from ..version import __version__
from .bodies import Body, Chat, Completion, parse, read
from .drafts import frame
from .engine import Engine
from .fim import completion_wanted, filled_text, filled_warnings, warm_up_wanted
from .frames import Json, ndjson, read_body
from .refusal import Refusal
from .reply import Delta, Draft
from .tasks import Written
from .wanted import Wanted, calls_of, chat_wanted

# Ollama's options -> our fields; those that are not here change nothing, and a warning says so.
OPTIONS = {"num_predict": "max_tokens"} | {
    name: name for name in ("seed", "temperature", "top_p", "top_k", "min_p", "stop")
}
QUIET = {"num_ctx", "num_keep", "num_gpu", "num_thread", "use_mmap", "main_gpu", "num_batch", "low_vram", "numa"}
OWN = set(Body.model_fields) - {"model", "stream", "stop", "stream_options"}  # our fields, taken here as elsewhere


class OllamaChat(Body):
    messages: Annotated[list[Any], Field(max_length=1000)] | None = None
    tools: list[Any] | None = None
    format: str | dict | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None


class OllamaGenerate(OllamaChat):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


def _fields(body: OllamaChat) -> dict[str, Any]:
    """The fields of ours that a body stands for."""
    options = {name: value for name, value in (body.options or {}).items() if value is not None}
    fields: dict[str, Any] = {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
    for name, none in (("max_tokens", lambda n: n < 1), ("seed", lambda n: n < 0)):  # -1 is "not given"
        if isinstance(fields.get(name), int) and none(fields[name]):
            del fields[name]
    fields |= {name: value for name in OWN if (value := getattr(body, name)) is not None}
    fields |= {name: options[name] for name in options if name not in OPTIONS and name not in QUIET}
    fields |= body.model_extra or {}
    if body.format:
        known = {"type": "json_object"} if body.format == "json" else body.format
        if isinstance(known, str):
            raise Refusal(400, f'format: need "json" or a schema, got {known!r:.80}', "format")
        wrapped = {"type": "json_schema", "json_schema": {"schema": known}}
        fields["response_format"] = known if known.get("type") == "json_object" else wrapped
    return fields | {"model": body.model, "stream": body.stream is not False}


def ollama_chat_wanted(engine: Engine, body: OllamaChat) -> Wanted:
    given = _fields(body)
    if not body.messages:  # only to load the model, which is there
        return warm_up_wanted(engine, read(Body, {"stream": given["stream"], "model": body.model}), [])
    thinking = {} if body.think is None else {"thinking": body.think not in (False, "none")}
    given |= thinking | {"messages": body.messages, "tools": body.tools or None}
    return chat_wanted(engine, read(Chat, given))


def ollama_generate_wanted(engine: Engine, body: OllamaGenerate) -> Wanted:
    if body.images:
        raise Refusal(400, "images: this reads text only, no pictures", "images")
    given = _fields(body)
    if body.suffix or body.raw:
        given |= {"prompt": body.prompt, "suffix": body.suffix or None, "raw": body.raw}
        return completion_wanted(engine, read(Completion, given))
    if not body.prompt:
        return warm_up_wanted(engine, read(Body, {"stream": given["stream"], "model": body.model}), [])
    system = [{"role": "system", "content": body.system}] if body.system else []
    thinking = {} if body.think is None else {"thinking": body.think not in (False, "none")}
    given |= thinking | {"messages": [*system, {"role": "user", "content": body.prompt}]}
    return chat_wanted(engine, read(Chat, given))


class OllamaWire:
    """A reply to /api/chat, or with `field` "response" to /api/generate."""

    media_type = "application/x-ndjson"

    def __init__(self, engine: Engine, wanted: Wanted, field: str = "message"):
        self.engine, self.wanted, self.field = engine, wanted, field

    @property
    def ping(self) -> bytes:
        return ndjson(self.line(""))

    def line(self, text: str, thinking: str = "", calls: list | None = None, **more: Any) -> dict[str, Any]:
        head = {"model": self.wanted.model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        thought = {"thinking": thinking} if thinking else {}
        if self.field == "response":
            return head | {"response": text} | thought | {"done": False} | more
        called = {"tool_calls": calls} if calls else {}
        return head | {"message": {"role": "assistant", "content": text} | thought | called, "done": False} | more

    def begin(self) -> Iterator[bytes]:
        return iter(())

    def event(self, event: Delta | Draft) -> Iterator[bytes]:
        if isinstance(event, Draft):
            tokens = self.wanted.body.drafts == "tokens"
            shown = frame(self.engine.tokenizer, self.engine.model.facts, event, self.wanted.total, tokens=tokens)
            yield ndjson(self.line("") | shown)
        elif (event.text or event.thinking) and self.wanted.tool is None:
            yield ndjson(self.line(event.text, event.thinking))

    def end(self, result: Any) -> Iterator[bytes]:
        if isinstance(result, Filled):
            yield ndjson(self.line(filled_text(self.wanted, result)))
        calls = self.calls(result)
        if calls:
            yield ndjson(self.line("", calls=calls))
        yield ndjson(self.line("", **self.last(result)))

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield ndjson(error.body("/api/"))

    def calls(self, result: Any) -> list[dict[str, Any]]:
        calls = calls_of(self.wanted, result[0]) if isinstance(result, list) else []
        return [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]

    def last(self, result: list[Written] | Filled | dict[str, Any]) -> dict[str, Any]:
        """The numbers of the last line. Durations are nanoseconds."""
        prompt, warnings = len(self.wanted.question.tokens), self.wanted.warnings
        tokens, seconds, reason = 0, 0.0, "load" if result is None else "stop"
        if isinstance(result, list):
            answer = result[0].answer
            tokens, seconds = len(answer.tokens), answer.seconds
            reason = "stop" if result[0].reason == "stop" else "length"
        elif isinstance(result, Filled):
            tokens, warnings = sum(result.lengths), filled_warnings(self.wanted, result)
            reason = "length" if result.finish_reason == "deadline" else "stop"
        numbers = {
            "done": True,
            "done_reason": reason,
            "total_duration": int(seconds * 1e9),
            "load_duration": 0,
            "prompt_eval_count": prompt,
            "prompt_eval_duration": 0,
            "eval_count": tokens,
            "eval_duration": int(seconds * 1e9),
        }
        return numbers | ({"warnings": warnings} if warnings else {})

    def whole(self, result: list[Written] | Filled | dict[str, Any]) -> dict[str, Any]:
        text, thinking, more = "", "", {}
        if isinstance(result, Filled):
            text = filled_text(self.wanted, result)
        elif isinstance(result, dict):  # of choices
            text, more = result["text"], {"probabilities": result["probabilities"]}
        elif result is not None:
            thinking, text = result[0].answer.thinking, result[0].text if self.wanted.tool is None else ""
        return self.line(text, thinking, self.calls(result), **more, **self.last(result))


def generate_wire(engine: Engine, wanted: Wanted) -> OllamaWire:
    return OllamaWire(engine, wanted, "response")


def _entry(engine: Engine, since: int) -> dict[str, Any]:
    """The one model, as Ollama lists it."""
    name = f"{engine.name}:latest" if ":" not in engine.name else engine.name
    when = datetime.fromtimestamp(since, UTC).isoformat().replace("+00:00", "Z")
    digest = hashlib.sha256(engine.name.encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": when, "size": 0, "digest": digest, "details": DETAILS}


DETAILS = {"format": "safetensors", "family": "diffusion_gemma", "families": ["diffusion_gemma"], "parent_model": ""}
DETAILS |= {"parameter_size": "", "quantization_level": ""}


async def tags(request: Request) -> Response:
    return Json({"models": [_entry(request.app.state.engine, request.app.state.since)]})


async def running(request: Request) -> Response:
    entry = _entry(request.app.state.engine, request.app.state.since)
    return Json({"models": [entry | {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0}]})


async def version(request: Request) -> Response:
    return Json({"version": __version__})


async def show(request: Request) -> Response:
    """What clients decide by: Continue asks for gaps only where `template` speaks of a suffix."""
    engine: Engine = request.app.state.engine
    parse(await read_body(request))
    info = {
        "general.architecture": "diffusion_gemma",
        "diffusion_gemma.context_length": engine.model.facts.max_position_embeddings,
    }
    able = ["completion", "insert", *(["tools"] if engine.hears_tools else []), "thinking"]
    entry = {"modelfile": "", "parameters": "", "template": "{{ .Prompt }}{{ .Suffix }}", "details": DETAILS}
    return Json(entry | {"model_info": info, "capabilities": able})
