"""A body -> what is asked of the engine, and what the client is to be told about it."""

import argparse
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import partial
from typing import Any

from ..errors import Mistake
from ..forms import template
from ..forms.language import Language
from ..forms.notation import JSON
from ..terminal.options import preset
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import read_tools
from ..writing.ask import Ask
from ..writing.batch import PIECE
from ..writing.diffuse import check_answer
from ..writing.sampling import Sampling
from ..writing.task import Task
from . import tasks
from .bodies import Body, Chat, unknown
from .engine import Engine
from .prefixes import common
from .refusal import Refusal, refusal
from .reply import Output, Result, counts
from .tasks import Put, Question, Written

DENOISING = {each.name for each in fields(Sampling)}
DRAWN = ("temperature", "top_p", "top_k", "min_p")  # fields of a body
OFF = {"none", "minimal", "instant", "off"}  # levels of thinking that are none


@dataclass(frozen=True)
class Wanted:
    """What the engine is to do for a body, and what the wire must know of it."""

    body: Body
    ask: Ask
    prompt_tokens: int  # of several prompts, those of the longest
    warnings: list[str]
    _: KW_ONLY
    rows: int = 1  # that run at once
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    since: float = field(default_factory=time.monotonic)

    def task(self, engine: Engine, put: Put, waited: float) -> Task[Result]:
        """Begins the work, after so many seconds in the queue, which count against a deadline."""
        ask = self.ask
        if ask.deadline is not None:
            ask = replace(ask, deadline=max(ask.deadline - waited, 1e-3))
        result = yield from self.run(engine, put, ask)
        return replace(result, more=result.more | {"warnings": self.warnings}) if self.warnings else result

    def run(self, engine: Engine, put: Put, ask: Ask) -> Task[Result]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Answers(Wanted):
    """Answers to one prompt or several; or a choice between texts."""

    questions: Sequence[Question]

    def run(self, engine: Engine, put: Put, ask: Ask) -> Task[Result]:
        questions = [replace(question, ask=ask) for question in self.questions]
        if self.body.choices:
            chosen = yield from tasks.choose(engine, questions[0], self.body.choices)
            more = {"probabilities": chosen["probabilities"]}
            return Result(outputs=[Output(text=chosen["text"])], usage=counts(chosen["prompt_tokens"], 0), more=more)
        written = yield from tasks.answers(engine, questions, put)
        return Result(outputs=[self.output(each) for each in written], usage=tasks.usage(written))

    def output(self, each: Written) -> Output:
        return Output(
            index=each.index,
            text=each.text,
            thinking=each.answer.thinking,
            calls=each.calls,
            reason=each.answer.finish_reason,
            cut=each.answer.found_stop,
            slots=None if self.body.template is None else template.filled(self.body.template, each.answer.text),
            scores=each.scores,
        )


def ask_of(engine: Engine, body: Body, max_tokens: int | None) -> tuple[Ask, list[str]]:
    """Returns how to write what `body` asks for, over what the server's flags say, and warnings about what has no
    effect. Refusal where fields contradict each other."""
    default, mode, warnings = engine.ask, body.mode or engine.ask.mode, unknown(body)
    try:
        options = preset(body.preset) if body.preset else {}
        verify = options.pop("verify", None) if body.verify is None else body.verify
    except argparse.ArgumentTypeError as error:
        raise Refusal(400, f"preset: {error}", "preset") from None
    single = {name: getattr(body, name) for name in ("max_denoising_steps", "canvas_length", "sampler")}
    single = {name: value for name, value in single.items() if value is not None}
    denoising = {name: value for name, value in options.items() if name in DENOISING} | single
    drawing = {name: value for name, value in options.items() if name not in DENOISING}
    if (mode == "ar" and denoising) or (mode == "diffusion" and drawing):
        name = next(iter(single)) if mode == "ar" and single else "preset"
        raise Refusal(400, f"{name} does not go with mode {mode!r}: leave one of them out", name)
    drawn = {name: value for name in DRAWN if (value := getattr(body, name)) is not None}
    if mode == "diffusion":
        warnings += [f"{name} has no effect: a canvas is denoised, give mode ar or auto" for name in drawn]
    else:
        drawing |= _draw(drawn, warnings)
    changes: dict[str, Any] = {"mode": mode, "max_tokens": max_tokens or default.max_tokens}
    changes |= {} if body.seed is None else {"seed": body.seed}
    changes["deadline"] = min(filter(None, (body.deadline, default.deadline, engine.limit)), default=None)
    changes["verify"] = default.verify and mode == "diffusion" if verify is None else verify
    try:
        draw = replace(default.draw, **drawing)
        return replace(default, sampling=replace(default.sampling, **denoising), draw=draw, **changes), warnings
    except Mistake as mistake:
        text = str(mistake)
        raise Refusal(400, text, min(filter(text.count, body.model_fields_set), key=text.find, default=None)) from None


def _draw(drawn: dict[str, float], warnings: list[str]) -> dict[str, float]:
    """Returns the fields of a `Draw`. The likeliest token is taken unless a temperature is given."""
    if not drawn.get("temperature"):
        warnings += [f"{name} has no effect without a temperature" for name in drawn if name != "temperature"]
        return {}
    values = {("temp" if name == "temperature" else name): value for name, value in drawn.items()}
    return values | ({"top_k": max(0, values["top_k"])} if "top_k" in values else {})


def thinks(body: Chat) -> bool:
    """Returns whether the model is to think first."""
    given = (body.model_extra or {}).get("reasoning")
    levels = [body.reasoning_effort, given.get("effort") if isinstance(given, dict) else None]
    level = next((level for level in levels if isinstance(level, str)), None)
    asked = [body.thinking, (body.chat_template_kwargs or {}).get("enable_thinking")]
    return next((bool(each) for each in asked if each is not None), level is not None and level not in OFF)


def chat_wanted(engine: Engine, body: Chat) -> Wanted:
    """Plans an answer to messages. Refusal, or Mistake, where it cannot be given."""
    tools = read_tools(body.tools) if body.tools and body.tool_choice != "none" else []
    ask, warnings = ask_of(engine, body, body.max_completion_tokens or body.max_tokens)
    forced, thinking = forced_tools(tools, body.tool_choice), thinks(body)
    most_calls = 1 if (body.model_extra or {}).get("parallel_tool_calls") is False else None
    several = body.tool_choice == "required" and most_calls is None
    calls = partial(engine.languages.of_calls, forced, ask.max_tokens, several=several, thinking=thinking)
    language = form_of(engine, body, ask, calls if forced else None)
    as_json = language is not None and language.notation is JSON
    if thinking and (as_json or body.choices):
        warnings.append("thinking has no effect: the text has a form from its first token on")
        thinking = False
    if tools and not engine.hears_tools:
        warnings.append("tools: the chat template of this model does not tell it of them")
    flags = {"thinking": thinking, "tools": tools or None}
    tokens = prompt_tokens(engine.tokenizer, body.messages, **flags)
    check_answer(engine.model, len(tokens), ask)
    if body.choices and body.stream:
        raise Refusal(400, "choices are given at once: leave out stream", "stream")
    if body.logprobs and body.stream:
        warnings.append("logprobs has no effect in a stream: they are of the whole text")
    question = Question(
        tokens=tokens,
        ask=ask,
        count=body.n or 1,
        stops=body.stops,
        language=language,
        mark=mark_of(engine.tokenizer, body.messages, tokens, flags),
        drafts=bool(body.drafts or body.diffusing),
        scored=bool(body.logprobs) and not body.stream,
        tool=_named(forced) if as_json and forced else None,
        most_calls=most_calls,
    )
    return Answers(body, ask, len(tokens), warnings, rows=body.n or 1, questions=[question])


def mark_of(tokenizer: Tokenizer, messages: Sequence[Any], tokens: Sequence[int], flags: dict) -> int:
    """Returns how many tokens the system's turns and the tools have: other prompts begin so, too."""
    system = [i for i, message in enumerate(messages) if message.get("role") in ("system", "developer")]
    if len(tokens) < PIECE or not (system or flags["tools"]):
        return 0
    other = [message for i, message in enumerate(messages) if i in system]
    return common(tokens, prompt_tokens(tokenizer, [*other, {"role": "user", "content": "\u2060"}], **flags))


def forced_tools(tools: list[dict], choice: str | dict | None) -> list[dict]:
    """The tools of which one must be called; none where the model may choose."""
    if isinstance(choice, dict):
        function = choice.get("function")
        name = (function if isinstance(function, dict) else choice).get("name")
        found = [tool for tool in tools if tool["function"]["name"] == name]
        if not found:
            raise Refusal(400, f"tool_choice: there is no tool {name!r:.80}", "tool_choice")
        return found
    if choice not in (None, "auto", "none", "required"):
        raise Refusal(400, f"tool_choice: need auto, none, required or a tool, got {choice!r:.80}", "tool_choice")
    if choice == "required" and not tools:
        raise Refusal(400, "tool_choice: there are no tools to choose from", "tool_choice")
    return tools if choice == "required" else []


def _named(tools: list[dict]) -> str:
    """The name of the only tool; "" where there are several."""
    return tools[0]["function"]["name"] if len(tools) == 1 else ""


def form_of(engine: Engine, body: Body, ask: Ask, calls: Callable[[], Language] | None = None) -> Language | None:
    """The language that a text must be of; `calls` makes that of forced tools. Refusal where several forms are asked
    for."""
    schema, asked = _schema_of(body)
    forms = {"template": body.template, "choices": body.choices, asked: schema, "tool_choice": calls}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) > 1:
        raise Refusal(400, f"{given[0]} and {given[1]} do not go together: choose one", given[1])
    if given and (ask.mode == "auto" or (given == ["choices"] and (ask.mode == "ar" or ask.verify))):
        raise Refusal(400, f"mode or verify does not go with {given[0]}: leave it out", "mode")
    try:
        if calls:
            return calls()
        if body.template is not None:
            return engine.languages.of_template(body.template)
        return None if schema is None else engine.languages.of_schema(schema, ask.max_tokens)
    except Mistake as mistake:
        raise Refusal(400, refusal(mistake).message, given[0]) from None


def _schema_of(body: Body) -> tuple[Any, str]:
    """Returns the schema that is asked for, and the field that asks. Refusal where it is none."""
    shape = body.response_format
    if not shape or shape.get("type") == "text":
        return body.json_schema, "json_schema"
    if body.json_schema is not None:
        raise Refusal(400, "response_format and json_schema do not go together: choose one", "json_schema")
    if shape.get("type") == "json_object":
        return {"type": "object"}, "response_format"
    named = shape.get("json_schema")
    schema = named.get("schema", shape.get("schema")) if isinstance(named, dict) else shape.get("schema")
    if shape.get("type") != "json_schema" or not isinstance(schema, dict | bool):
        need = 'need {"type": "json_schema", "json_schema": {"schema": …}}, or type json_object or text'
        raise Refusal(400, f"response_format: {need}", "response_format")
    return schema, "response_format"
