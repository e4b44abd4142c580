"""Gaps in a text, in the several ways in which editors ask for them.

An editor gives up within a second, so the search for a gap's length is a short one: few lengths, and a canvas no wider
than the gap needs.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..fill.gap_length import SURE
from ..fill.infill import Filled, Infill, check_fill, fill_prompt, texts_around
from ..tokens.messages import prompt_tokens
from ..tokens.stops import Stops
from ..writing.ask import Ask
from ..writing.batch import PIECE
from ..writing.task import Task
from . import tasks
from .bodies import Body, InfillBody, unknown
from .engine import Engine
from .frames import sse
from .openai import CompletionWire
from .plan import Plan, ask_of
from .prefixes import common
from .refusal import Refusal
from .reply import Delta, Output, Result, counts
from .tasks import Put

LONGEST, HURRIED = 48, 63  # tokens of a gap at most: by default; where there is a deadline
WIDTHS = (64, 128, 256)  # of the canvas
EMPTY = ("", "<|endoftext|>")  # suffixes that mean none
# Sentinels that editors write themselves: before the prefix, before the suffix, at the gap.
SENTINELS = [
    re.compile(rf"{first}(?P<prefix>.*?){second}(?P<suffix>.*?){third}", re.DOTALL)
    for first, second, third in (
        (r"<\|fim_prefix\|>", r"<\|fim_suffix\|>", r"<\|fim_middle\|>\s*$"),
        (r"<fim_prefix>", r"<fim_suffix>", r"<fim_middle>\s*$"),
        (r"<PRE> ?", r" ?<SUF>", r" ?<MID>\s*$"),
        (r"<｜fim▁begin｜>", r"<｜fim▁hole｜>", r"<｜fim▁end｜>\s*$"),
        (r"<\|code_prefix\|>", r"<\|code_suffix\|>", r"<\|code_middle\|>\s*$"),
    )
] + [re.compile(r"\[SUFFIX\](?P<suffix>.*?)\[PREFIX\](?P<prefix>.*)$", re.DOTALL)]
Shown = Callable[[Filled], tuple[str, dict[str, Any]]]  # the text of the reply, and our own fields beside it


def sentinels(prompt: str) -> tuple[str, str] | None:
    """Returns prefix and suffix, if the prompt marks them. What stands before the first mark is part of the prefix."""
    for pattern in SENTINELS:
        if found := pattern.search(prompt):
            return prompt[: found.start()] + found["prefix"], found["suffix"]
    return None


@dataclass(frozen=True, kw_only=True)
class Gaps(Plan):
    """Gaps to be filled."""

    request: Infill
    mark: int = 0  # tokens of the prompt that others begin with, too
    show: Shown | None = None  # None: the text in the gap, up to a stop

    def run(self, engine: Engine, put: Put, ask: Ask) -> Task[Result]:
        request = replace(self.request, ask=ask)
        filled = yield from tasks.fill_gaps(engine, request, put, mark=self.mark, drafts=bool(self.body.drafts))
        text, more = self.show(filled) if self.show else (Stops(self.body.stops).push(filled.gaps[0], last=True), {})
        put(Delta(text=text))
        if filled.finish_reason == "deadline":
            self.warnings.append("the deadline came before the gap had settled")
        passes = {"blocks": len(filled.steps), "steps": sum(filled.steps), "canvases": filled.passes}
        usage = counts(self.prompt_tokens, sum(filled.lengths), diffusion=passes)
        return Result(outputs=[Output(text=text, reason=filled.finish_reason)], usage=usage, more=more)


def plan_gaps(
    engine: Engine, body: Body, request: Infill, warnings: list[str], *, mark: int = 0, show: Shown | None = None
) -> Gaps:
    """Plans to fill the gaps of `request`. Mistake where they cannot be filled."""
    check_fill(engine.model, engine.tokenizer, request)
    rows, tokens = min(SURE, engine.places), len(request.prompt)
    return Gaps(body, request.ask, tokens, warnings, rows=rows, request=request, mark=mark, show=show)


def plan_quick_gaps(engine: Engine, body: Body, request: Infill, *, mark: int = 0, show: Shown | None = None) -> Gaps:
    """Plans to fill the gaps of `request` with few tokens, on a narrow canvas, unless `body` says otherwise."""
    ask, warnings = ask_of(engine, body, request.longest)
    if ask.mode != "diffusion":
        raise Refusal(400, f"a gap is denoised: mode {ask.mode!r} is not for it", "mode")
    longest = min(request.longest or LONGEST, HURRIED if ask.deadline else 10**6)
    if ask.sampling.canvas_length is None:
        widths = [width for width in WIDTHS if longest < width < engine.model.facts.canvas_length]
        ask = replace(ask, sampling=replace(ask.sampling, canvas_length=min(widths, default=None)))
    return plan_gaps(engine, body, replace(request, ask=ask, longest=longest), warnings, mark=mark, show=show)


def plan_gap(engine: Engine, body: Body, prefix: str, suffix: str, *, longest: int | None, context: str = "") -> Gaps:
    """Plans to fill the gap between two texts by at most `longest` tokens, behind a `context` of other files."""
    texts = texts_around(None, prefix, "" if suffix in EMPTY else suffix)
    tokens = prompt_tokens(engine.tokenizer, context + fill_prompt(texts))
    start = prompt_tokens(engine.tokenizer, context + fill_prompt([texts[0], "\u2060"])) if len(tokens) > PIECE else []
    request = Infill(prompt=tokens, texts=texts, tries=SURE, longest=longest)
    return plan_quick_gaps(engine, body, request, mark=common(tokens, start))


@dataclass(frozen=True, kw_only=True)
class WarmUp(Plan):
    """Nothing but to read what later prompts begin with."""

    tokens: Sequence[int]

    def run(self, engine: Engine, put: Put, ask: Ask) -> Task[Result]:
        cache, _ = yield from engine.prefixes.read(engine.model, self.tokens, rest=0)
        engine.prefixes.keep(self.tokens, cache)
        return Result(outputs=[], usage=counts(self.prompt_tokens, 0))


def plan_warm_up(engine: Engine, body: Body, tokens: Sequence[int] = ()) -> WarmUp:
    return WarmUp(body, replace(engine.ask, max_tokens=1), len(tokens), unknown(body), tokens=tokens)


def plan_infill(engine: Engine, body: InfillBody) -> Plan:
    """Plans what llama.cpp's /infill asks for: with `n_predict` 0, only to read what later requests will begin with."""
    extras = [(str(extra.get("filename", "")), str(extra.get("text", ""))) for extra in body.input_extra or []]
    context = "".join(f"{name}:\n{text}\n\n" for name, text in extras)
    prefix = body.input_prefix + body.prompt
    if body.n_predict == 0:
        start, other = (
            prompt_tokens(engine.tokenizer, context + fill_prompt([prefix, rest])) for rest in ("\u2060", "\u2061")
        )
        return plan_warm_up(engine, body, start[: common(start, other)])
    longest = body.n_predict if body.n_predict and body.n_predict > 0 else None
    if body.t_max_predict_ms and body.deadline is None:
        body = body.model_copy(update={"deadline": body.t_max_predict_ms / 1000})
    return plan_gap(engine, body, prefix, body.input_suffix, longest=longest, context=context)


class InfillWire(CompletionWire):
    """A reply as llama.cpp's server gives it."""

    def delta(self, delta: Delta) -> Iterator[bytes]:
        yield sse({"content": delta.text, "stop": False})

    def end(self, result: Result) -> Iterator[bytes]:
        yield sse(self.whole(result) | ({"content": ""} if result.outputs else {}))

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield sse(error.body("/infill"))

    def whole(self, result: Result) -> dict[str, Any]:
        if not result.outputs:  # a warm-up
            return {}
        prompt, count = result.usage["prompt_tokens"], result.usage["completion_tokens"]
        seconds = max(time.monotonic() - self.plan.since, 1e-3)  # reading and writing are not told apart
        reply = {
            "index": 0,
            "content": result.output.text,
            "model": self.model,
            "stop": True,
            "stop_type": "limit" if result.output.reason == "deadline" else "eos",
            "truncated": False,
            "tokens_predicted": count,
            "tokens_evaluated": prompt,
            "tokens_cached": prompt,
            "warnings": result.more.get("warnings", []),
            "timings/prompt_n": prompt,
            "timings/prompt_ms": 0.0,
            "timings/prompt_per_token_ms": 0.0,
            "timings/prompt_per_second": 0.0,
            "timings/predicted_n": count,
            "timings/predicted_ms": 1000 * seconds,
            "timings/predicted_per_token_ms": 1000 * seconds / max(count, 1),
            "timings/predicted_per_second": count / seconds,
        }
        names = self.body.response_fields
        return reply if names is None else {name: reply[name] for name in names if name in reply}


ENDPOINTS = {"/infill": (InfillBody, plan_infill, InfillWire)}
