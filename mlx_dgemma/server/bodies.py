"""The fields of requests: what is taken, of which type and within which bounds."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..checkpoint.description import nests_deeper
from ..writing.ask import MODES
from .refusal import Refusal

Unless = BeforeValidator(lambda value: None if value == -1 else value)  # llama.cpp's clients say so: not given
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]
Stops = str | Annotated[list[str], Field(max_length=4)]
Texts = Annotated[list[str], Field(min_length=2, max_length=1000)]
MOST_PROMPTS = 64  # of one request
DEEPEST = 64  # lists and objects within each other

# Fields that clients send and that change nothing here: no warning is needed.
QUIET = {
    "user", "metadata", "store", "prompt_cache_key", "cache_prompt", "client_metadata", "nextEdit", "keep_alive",
    "include", "safety_identifier", "service_tier", "parallel_tool_calls", "verbosity", "prediction", "modalities",
    "truncation", "text", "reasoning", "context", "id_slot", "stop_sequences", "betas", "context_management",
}  # fmt: skip
# Fields that would change the answer and cannot be done -> the values that ask for nothing.
REFUSED: dict[str, tuple] = {
    "logit_bias": ({}, None), "frequency_penalty": (0, None), "presence_penalty": (0, None), "best_of": (1, None),
    "audio": (None,), "previous_response_id": (None, ""), "top_logprobs": (0, 1, None), "repetition_penalty": (1, None),
    "functions": ([], None), "background": (False, None), "conversation": (None,),
    "n": (1, None),  # where a protocol has no such field
}  # fmt: skip


class Body(BaseModel):
    """What every endpoint that writes takes. The words are those of the commands' flags, and OpenAI's."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    stream: bool | None = None
    stream_options: dict | None = None
    max_tokens: Annotated[Count | None, Unless] = None
    seed: Annotated[Annotated[int, Field(ge=0, lt=2**63)] | None, Unless] = None
    stop: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    mode: Literal[MODES] | None = None
    preset: str | None = None
    verify: bool | None = None
    deadline: Annotated[float, Field(gt=0, le=86_400)] | None = None  # seconds
    max_denoising_steps: Count | None = None
    canvas_length: Count | Literal["auto"] | None = None
    sampler: str | None = None
    template: str | None = None
    choices: Texts | None = None
    json_schema: dict | bool | None = None
    response_format: dict | None = None
    drafts: bool | Literal["tokens"] | None = None
    diffusing: bool | None = None  # drafts as Mercury sends them

    @property
    def stops(self) -> list[str]:
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]


class Chat(Body):
    messages: Annotated[list[Any], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Count | None = None  # OpenAI's newer word for max_tokens
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    tools: Annotated[list[Any], Field(max_length=512)] | None = None
    tool_choice: str | dict | None = None
    logprobs: bool | None = None
    thinking: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict | None = None


class Completion(Body):
    prompt: str | list[Any] = ""
    suffix: str | None = None
    fill: str | None = None  # a text with gaps, <fill>; `prompt` then says what to write there
    echo: bool | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    raw: bool | None = None  # no chat template
    logprobs: Annotated[int, Field(ge=0, le=1)] | bool | None = None  # 1: of the likeliest token, too
    gap: Count | Annotated[list[Count], Field(max_length=64)] | None = None  # tokens of gaps, where they are known
    heal: bool | None = None
    tries: Annotated[int, Field(ge=1, le=64)] | None = None  # lengths of a gap


class InfillBody(Body):
    """llama.cpp's."""

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = ""
    input_extra: Annotated[list[dict], Field(max_length=256)] | None = None
    n_predict: Annotated[int, Field(ge=-1)] | None = None
    t_max_predict_ms: Annotated[float, Field(ge=0)] | None = None
    response_fields: list[str] | None = None


AnyBody = TypeVar("AnyBody", bound=Body)


def parse(data: bytes) -> dict[str, Any]:
    """Reads a JSON object. Refusal where it is none, or nested too deep."""
    try:
        value = json.loads(data, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, "need a JSON object as the body")
    if nests_deeper(value, DEEPEST):
        raise Refusal(400, f"the body is nested too deep: {DEEPEST} levels are taken")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise ValueError(f"{text} is too large")
    return value


def read(kind: type[AnyBody], fields: dict[str, Any]) -> AnyBody:
    """Checks the fields of a body. Refusal names the first that is wrong."""
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        first = max(errors[:2], key=lambda each: len(each["loc"]))  # of a list, the item rather than "no text"
        param = _place(first["loc"], fields)
        raise Refusal(400, f"{param}: {first['msg']}, got {first['input']!r:.80}", param) from None
    for name, neutral in REFUSED.items():
        if (value := (body.model_extra or {}).get(name)) not in neutral:
            raise Refusal(400, f"{name} cannot be done here, got {value!r:.80}: leave it out", name)
    return body


def translated(kind: type[AnyBody], body: Body, fields: dict[str, Any]) -> AnyBody:
    """Makes of a body of another protocol one of `kind`: with the fields that all bodies have, those that nobody knows,
    and `fields`, of which None takes one out."""
    others = type(body).model_fields.keys() - Body.model_fields.keys()
    every = body.model_dump(exclude=others) | fields
    return read(kind, {name: value for name, value in every.items() if value is not None})


def _place(location: tuple, value: Any) -> str:
    """Returns the place of a mistake as a path, "messages[1].role", without the marks that pydantic adds."""
    path = ""
    for part in location:
        if isinstance(value, list) and isinstance(part, int):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict):
            path, value = f"{path}.{part}" if path else str(part), value.get(part)
    return path


def unknown(body: Body) -> list[str]:
    """Returns warnings about fields that have no effect."""
    extra = (body.model_extra or {}).keys() - QUIET - REFUSED.keys()
    return [f"{name} is not known here and has no effect" for name in sorted(extra)]
