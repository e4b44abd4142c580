"""A body -> a plan: what the engine is to do for it, and what the client is to be told."""

import argparse
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from ..errors import Mistake
from ..forms import template
from ..forms.choices import choosing
from ..forms.language import Language
from ..seam.model import Draw
from ..terminal.options import options_of, preset
from ..writing.ask import Ask
from ..writing.sampling import Sampling
from ..writing.task import Task
from . import tasks
from .bodies import Body, unknown
from .engine import Engine
from .refusal import Refusal, refusal
from .reply import Output, Result, counts
from .tasks import Put, Question, Written

DRAWN = ("temperature", "top_p", "top_k", "min_p")  # fields of a body


@dataclass(frozen=True)
class Plan:
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
class Answers(Plan):
    """Answers to one prompt or several; or a choice between texts."""

    questions: Sequence[Question]

    def run(self, engine: Engine, put: Put, ask: Ask) -> Task[Result]:
        questions = [replace(question, ask=ask) for question in self.questions]
        if self.body.choices:
            texts, tokens = self.body.choices, questions[0].tokens
            chosen = yield from choosing(engine.model, engine.tokenizer, tokens, texts, ask)
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
    denoising, drawing = options_of(Sampling, options) | single, options_of(Draw, options)
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


def form_of(engine: Engine, body: Body, ask: Ask, calls: Callable[[], Language] | None = None) -> Language | None:
    """Returns the language that a text must be of; `calls` makes that of forced tools. Refusal where there are several
    forms."""
    schema, asking = _schema_of(body)
    forms = {"template": body.template, "choices": body.choices, asking: schema, "tool_choice": calls}
    names = [name for name, value in forms.items() if value is not None]
    if len(names) > 1:
        raise Refusal(400, f"{names[0]} and {names[1]} do not go together: choose one", names[1])
    if names and (ask.mode == "auto" or (names == ["choices"] and (ask.mode == "ar" or ask.verify))):
        raise Refusal(400, f"mode or verify does not go with {names[0]}: leave it out", "mode")
    try:
        if calls:
            return calls()
        if body.template is not None:
            return engine.languages.of_template(body.template)
        return None if schema is None else engine.languages.of_schema(schema, ask.max_tokens)
    except Mistake as mistake:
        raise Refusal(400, refusal(mistake).message, names[0]) from None


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
