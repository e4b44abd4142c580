"""Ollama's endpoints, as far as they are about asking a model: lines of JSON, and a stream unless it is refused."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..tokens.tools import ToolCall
from ..version import __version__
from .bodies import Body, Chat, Completion, parse, read, translated
from .chat import plan_chat
from .completions import plan_completion
from .engine import Engine
from .fim import plan_warm_up
from .frames import Json, ndjson, read_body
from .plan import Plan
from .refusal import Refusal
from .reply import Delta, Result
from .wire import Wire

# Ollama's options -> our fields; those that are not here change nothing, and a warning says so.
OPTIONS = {"num_predict": "max_tokens"} | {
    name: name for name in ("seed", "temperature", "top_p", "top_k", "min_p", "stop")
}
QUIET = {"num_ctx", "num_keep", "num_gpu", "num_thread", "use_mmap", "main_gpu", "num_batch", "low_vram", "numa"}


class OllamaChat(Body):
    messages: Annotated[list[Any], Field(max_length=1000)] | None = None
    tools: list[Any] | None = None
    format: str | dict | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None


class OllamaGenerate(OllamaChat):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


def _options(body: OllamaChat) -> dict[str, Any]:
    """Returns the fields of ours that Ollama's options, `format` and default of `stream` stand for."""
    options = {name: value for name, value in (body.options or {}).items() if value is not None and name not in QUIET}
    fields: dict[str, Any] = {OPTIONS.get(name, name): value for name, value in options.items()}
    for name, least in (("max_tokens", 1), ("seed", 0)):  # -1 is "not given"
        if isinstance(fields.get(name), int) and fields[name] < least:
            del fields[name]
    if body.template is not None and ("{{" in body.template or not body.template):  # not ours, but the prompt's
        fields |= {"template": None, "template of the prompt": body.template or None}
    if isinstance(body.format, dict) and body.format.get("type") != "json_object":
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": body.format}}
    elif body.format:
        if body.format != "json" and not isinstance(body.format, dict):
            raise Refusal(400, f'format: need "json" or a schema, got {body.format!r:.80}', "format")
        fields["response_format"] = {"type": "json_object"}
    return fields | {"stream": body.stream is not False}


def _load(engine: Engine, body: OllamaChat) -> Plan:
    """Answers an empty request, which only loads the model."""
    return plan_warm_up(engine, read(Body, {"stream": body.stream is not False, "model": body.model}))


def _chat(engine: Engine, body: OllamaChat, messages: list[Any]) -> Plan:
    thinking = None if body.think is None else body.think not in (False, "none")
    fields = _options(body) | {"messages": messages, "tools": body.tools or None, "thinking": thinking}
    return plan_chat(engine, translated(Chat, body, fields))


def plan_ollama_chat(engine: Engine, body: OllamaChat) -> Plan:
    return _chat(engine, body, body.messages) if body.messages else _load(engine, body)


def plan_ollama_generate(engine: Engine, body: OllamaGenerate) -> Plan:
    if body.images:
        raise Refusal(400, "images: this reads text only, no pictures", "images")
    if body.suffix or body.raw:
        prompt = {"prompt": body.prompt, "suffix": body.suffix or None, "raw": body.raw}
        return plan_completion(engine, translated(Completion, body, _options(body) | prompt))
    if not body.prompt:
        return _load(engine, body)
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _chat(engine, body, [*system, {"role": "user", "content": body.prompt}])


class OllamaWire(Wire):
    """A reply to /api/chat."""

    media_type = "application/x-ndjson"

    @property
    def ping(self) -> bytes:
        return self.line("")

    def message(self, text: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        shown = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        more = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": shown} if shown else {})
        return {"message": {"role": "assistant", "content": text} | more}

    def line(self, *content: Any, **more: Any) -> bytes:
        return ndjson(self.reply(*content, **more))

    def reply(self, *content: Any, **more: Any) -> dict[str, Any]:
        head = {"model": self.model, "created_at": _when(datetime.now(UTC)), "done": False}
        return head | self.message(*content) | more

    def draft(self, index: int, shown: dict[str, Any]) -> Iterator[bytes]:
        yield self.line("", **shown)

    def delta(self, delta: Delta) -> Iterator[bytes]:
        if delta.text or delta.thinking:
            yield self.line(delta.text, delta.thinking)

    def end(self, result: Result) -> Iterator[bytes]:
        if result.output.calls:
            yield self.line("", "", result.output.calls)
        yield self.line("", **self.last(result))

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield ndjson(error.body("/api/"))

    def last(self, result: Result) -> dict[str, Any]:
        """Returns what the last line has more. Durations are nanoseconds."""
        reason, nanoseconds = result.output.reason, int(result.usage.get("diffusion", {}).get("seconds", 0) * 1e9)
        return {
            "done": True,
            "done_reason": "length" if reason == "deadline" else reason,
            "total_duration": nanoseconds,
            "load_duration": 0,
            "prompt_eval_count": result.usage["prompt_tokens"],
            "prompt_eval_duration": 0,
            "eval_count": result.usage["completion_tokens"],
            "eval_duration": nanoseconds,
            **result.more,
        }

    def whole(self, result: Result) -> dict[str, Any]:
        output = result.output
        return self.reply(output.text, output.thinking, output.calls, **self.last(result))


class OllamaGenerateWire(OllamaWire):
    """A reply to /api/generate."""

    def message(self, text: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        return {"response": text} | ({"thinking": thinking} if thinking else {})


ENDPOINTS = {
    "/api/chat": (OllamaChat, plan_ollama_chat, OllamaWire),
    "/api/generate": (OllamaGenerate, plan_ollama_generate, OllamaGenerateWire),
}


def _when(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _entry(engine: Engine, since: int) -> dict[str, Any]:
    """Returns the one model, as Ollama lists it."""
    name = f"{engine.name}:latest" if ":" not in engine.name else engine.name
    about = {"modified_at": _when(datetime.fromtimestamp(since, UTC)), "size": 0, "details": DETAILS}
    return {"name": name, "model": name, "digest": hashlib.sha256(engine.name.encode()).hexdigest()} | about


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
    """Answers by what clients decide: Continue asks for gaps only where `template` speaks of a suffix."""
    engine: Engine = request.app.state.engine
    parse(await read_body(request))
    info = {
        "general.architecture": "diffusion_gemma",
        "diffusion_gemma.context_length": engine.model.facts.max_position_embeddings,
    }
    able = ["completion", "insert", *(["tools"] if engine.hears_tools else []), "thinking"]
    entry = {"modelfile": "", "parameters": "", "template": "{{ .Prompt }}{{ .Suffix }}", "details": DETAILS}
    return Json(entry | {"model_info": info, "capabilities": able})
