"""Gaps: what editors ask for, in the several ways in which they do, and completions of a prompt as it is.

An editor gives up within a second, so the search for a gap's length is a short one: few lengths, and a canvas no wider
than the gap needs.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

from ..fill.gap_length import SURE
from ..fill.infill import Filled, Infill, around, check_fill, fill_prompt, gap_lengths
from ..tokens.messages import prompt_tokens
from ..tokens.stops import Stops
from ..writing.ask import Ask
from ..writing.batch import PIECE
from ..writing.diffuse import check_answer
from . import tasks
from .bodies import MOST_PROMPTS, Body, Completion, InfillBody, unknown
from .engine import Engine
from .frames import sse
from .openai import REASONS, ChatWire
from .prefixes import common
from .refusal import Refusal
from .reply import Delta, Draft
from .tasks import Question, Written
from .wanted import Wanted, ask_of, form_of

LONGEST, HURRIED = 48, 63  # tokens of a gap: where nothing is said; where there is a deadline
WIDTHS = (64, 128, 256)  # of the canvas
EMPTY = ("", "<|endoftext|>")  # suffixes that say that there is none
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


def sentinels(prompt: str) -> tuple[str, str] | None:
    """Prefix and suffix, if the prompt marks them. What stands before the first mark is part of the prefix."""
    for pattern in SENTINELS:
        if found := pattern.search(prompt):
            return prompt[: found.start()] + found["prefix"], found["suffix"]
    return None


def gap_wanted(engine: Engine, body: Body, request: Infill, mark: int = 0) -> Wanted:
    """The gaps of `request`, written as `body` says. `mark`: tokens of its prompt that others begin with, too."""
    warnings = unknown(body)
    ask = ask_of(engine, body, request.longest, warnings)
    if ask.mode != "diffusion":
        raise Refusal(400, f"a gap is denoised: mode {ask.mode!r} is not for it", "mode")
    longest = min(request.longest or LONGEST, HURRIED if ask.deadline else 10**6)
    if ask.sampling.canvas_length is None:
        widths = [width for width in WIDTHS if longest < width < engine.model.facts.canvas_length]
        ask = replace(ask, sampling=replace(ask.sampling, canvas_length=min(widths, default=None)))
    request = replace(request, ask=ask, longest=longest)
    check_fill(engine.model, engine.tokenizer, request)
    return Wanted(
        body=body,
        question=Question(tokens=request.prompt, ask=ask),
        model=body.model or engine.name,
        warnings=warnings,
        rows=min(SURE, engine.places),
        task=partial(fill_task, request, mark, bool(body.drafts)),
    )


def asked_to_fill(engine: Engine, texts: Sequence[str], context: str = "") -> tuple[list[int], int]:
    """The prompt where nothing else is asked, behind other texts, and how many of its tokens come before the gap."""
    tokens = prompt_tokens(engine.tokenizer, context + fill_prompt(texts))
    start = prompt_tokens(engine.tokenizer, context + fill_prompt([texts[0], "\u2060"])) if len(tokens) > PIECE else []
    return tokens, common(tokens, start)


def fill_task(request: Infill, mark: int, drafts: bool, engine: Engine, put: tasks.Put, ask: Ask):
    return tasks.fill_gaps(engine, replace(request, ask=ask), put, mark=mark, drafts=drafts)


def completion_wanted(engine: Engine, body: Completion) -> Wanted:
    """A text behind a prompt, or in its gap. Without `raw` the prompt is a question to the model, as in a chat."""
    prompts = _prompts(body.prompt)
    if body.fill is not None:
        _no_scores(body)
        return fill_wanted(engine, body, around(body.fill))
    if len(prompts) > 1 and body.suffix is not None:
        raise Refusal(400, "suffix goes with one prompt", "suffix")
    if isinstance(prefix := prompts[0], str) and len(prompts) == 1:
        marked = (prefix, body.suffix) if body.suffix is not None else sentinels(prefix)
        if marked:
            _no_scores(body)
            return fim_wanted(engine, body, *marked)
    warnings = unknown(body)
    ask = ask_of(engine, body, body.max_tokens, warnings)
    if body.choices:
        raise Refusal(400, "choices are for /v1/chat/completions", "choices")
    scored = body.logprobs is not None and body.logprobs is not False
    if scored and body.stream:
        raise Refusal(400, "logprobs are of the whole text: leave out stream", "logprobs")
    count, language, questions = body.n or 1, form_of(engine, body, ask), []
    for number, prompt in enumerate(prompts):
        tokens = _prompt(engine, prompt, bool(body.raw))
        check_answer(engine.model, len(tokens), ask)
        echo = None
        if body.echo:
            echo = prompt if isinstance(prompt, str) else engine.alphabet.decode(tokens)
        asked = {"tokens": tokens, "ask": ask, "stops": body.stops, "language": language, "drafts": bool(body.drafts)}
        questions.append(Question(**asked, count=count, first=number * count, echo=echo, scored=scored))
    return Wanted(
        body=body,
        question=questions[0],
        more=questions[1:],
        model=body.model or engine.name,
        warnings=warnings,
        rows=min(count * len(questions), max(engine.places, count)),
        template=body.template,
    )


def _prompts(given: str | list) -> list[str | list]:
    """The prompts of a completion: one text, one list of token ids, or several of either."""
    several = isinstance(given, list) and given and all(isinstance(each, str | list) for each in given)
    if several and len(given) > MOST_PROMPTS:
        raise Refusal(400, f"prompt: {MOST_PROMPTS} are taken at once, got {len(given)}", "prompt")
    return given if several else [given]


def _no_scores(body: Completion) -> None:
    if body.echo or (body.logprobs is not None and body.logprobs is not False):
        raise Refusal(400, "echo and logprobs are of a text behind a prompt, not of a gap", "echo")


def _prompt(engine: Engine, prompt: str | list, raw: bool) -> list[int]:
    if not prompt:
        raise Refusal(400, "the prompt is empty: say what you want", "prompt")
    if isinstance(prompt, str) and raw:
        start = [] if engine.tokenizer.bos_token_id is None else [engine.tokenizer.bos_token_id]
        tokens = start + engine.tokenizer.encode(prompt)
    elif isinstance(prompt, str):
        return prompt_tokens(engine.tokenizer, prompt)
    else:
        tokens, size = prompt, engine.model.facts.vocab_size
        if not all(type(token) is int and 0 <= token < size for token in tokens):
            raise Refusal(400, f"prompt: need texts, or lists of token ids below {size}", "prompt")
    return list(tokens)


def fim_wanted(engine: Engine, body: Body, prefix: str, suffix: str) -> Wanted:
    texts = around(None, prefix, "" if suffix in EMPTY else suffix)
    tokens, mark = asked_to_fill(engine, texts)
    return gap_wanted(engine, body, Infill(prompt=tokens, texts=texts, tries=SURE, longest=body.max_tokens), mark)


def fill_wanted(engine: Engine, body: Completion, texts: Sequence[str]) -> Wanted:
    """Our own fields, as the command has them."""
    gap = [body.gap] if isinstance(body.gap, int) else body.gap
    request = Infill(
        prompt=_prompt(engine, body.prompt, bool(body.raw)) if body.prompt else asked_to_fill(engine, texts)[0],
        texts=texts,
        lengths=gap_lengths(gap, len(texts) - 1),
        heal=bool(body.heal),
        tries=body.tries or SURE,
        longest=body.max_tokens,
    )
    return gap_wanted(engine, body, request)


def fim_body_wanted(engine: Engine, body: Completion) -> Wanted:
    """/v1/fim/completions: a gap in any case."""
    if not isinstance(body.prompt, str):
        raise Refusal(400, "prompt: need a text", "prompt")
    return fim_wanted(engine, body, body.prompt, body.suffix or "")


class CompletionWire(ChatWire):
    """A reply to completions and to fill-in-the-middle. Clients read `text`, `message` or `delta`: all are there."""

    kind, id_prefix = "text_completion", "cmpl-"

    def head(self, chunk: bool) -> dict[str, Any]:
        return super().head(chunk) | {"object": self.kind}

    def begin(self) -> Iterator[bytes]:
        for question in (self.wanted.question, *self.wanted.more):
            for index in range(question.first, question.first + question.count) if question.echo else ():
                yield self.chunk(index, {"content": question.echo})

    def chunk(self, index: int, delta: dict, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "text": delta.get("content", ""), "delta": delta, "logprobs": None}
        return sse(self.head(chunk=True) | {"choices": [choice | {"finish_reason": reason}]} | more)

    def choice(self, each: Written) -> dict[str, Any]:
        choice = super().choice(each)
        return {"index": each.index, "text": each.echo + each.text} | choice

    def logprobs(self, each: Written) -> dict[str, Any] | None:
        """As completions have them: lists, with null where nothing was before."""
        if each.scores is None:
            return None
        tokens, logprobs, tops = zip(*self.scored(each), strict=True)
        offsets = [0, *accumulate(map(len, tokens))][:-1]
        shown = [top and {top[0]: top[1]} for top in tops] if self.body.logprobs else None
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": shown, "text_offset": offsets}

    def end(self, result: list[Written] | Filled) -> Iterator[bytes]:
        if isinstance(result, list):
            yield from super().end(result)
            return
        yield self.chunk(0, {"content": filled_text(self.wanted, result)})
        yield self.chunk(0, {}, REASONS.get(result.finish_reason, "stop"), **self.more(result))
        if (self.body.stream_options or {}).get("include_usage"):
            yield sse(self.head(chunk=True) | {"choices": [], "usage": filled_usage(self.wanted, result)})
        yield sse("[DONE]")

    def whole(self, result: list[Written] | Filled) -> dict[str, Any]:
        if isinstance(result, list):
            return super().whole(result)
        text = filled_text(self.wanted, result)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "text": text, "message": message, "logprobs": None}
        choice["finish_reason"] = REASONS.get(result.finish_reason, "stop")
        usage = filled_usage(self.wanted, result)
        return self.head(chunk=False) | {"choices": [choice], "usage": usage} | self.more(result)

    def more(self, result: Filled) -> dict[str, Any]:
        warnings = filled_warnings(self.wanted, result)
        gaps = {"gaps": result.gaps} if whole_wanted(self.wanted) else {}
        return gaps | ({"warnings": warnings} if warnings else {})


def whole_wanted(wanted: Wanted) -> bool:
    """Whether the whole text is wanted, not its gap alone."""
    return isinstance(wanted.body, Completion) and wanted.body.fill is not None


def filled_text(wanted: Wanted, filled: Filled) -> str:
    """What stands in the gap, up to a stop; or the whole text."""
    if whole_wanted(wanted):
        return filled.text
    return Stops(wanted.body.stops).push(filled.gaps[0], last=True)


def filled_warnings(wanted: Wanted, filled: Filled) -> list[str]:
    late = ["the deadline came before the gap had settled"] if filled.finish_reason == "deadline" else []
    return [*wanted.warnings, *late]


def filled_usage(wanted: Wanted, filled: Filled) -> dict[str, Any]:
    prompt, answer = len(wanted.question.tokens), sum(filled.lengths)
    counts = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    passes = {"blocks": len(filled.steps), "steps": sum(filled.steps), "canvases": filled.passes}
    return counts | {"diffusion": passes}


def infill_wanted(engine: Engine, body: InfillBody) -> Wanted:
    """llama.cpp's /infill. With `n_predict` 0 it only reads what later requests will begin with."""
    extras = [(str(extra.get("filename", "")), str(extra.get("text", ""))) for extra in body.input_extra or []]
    context = "".join(f"{name}:\n{text}\n\n" for name, text in extras)
    prefix = body.input_prefix + body.prompt
    if body.n_predict == 0:
        start, other = (
            prompt_tokens(engine.tokenizer, context + fill_prompt([prefix, rest])) for rest in ("\u2060", "\u2061")
        )
        return warm_up_wanted(engine, body, start[: common(start, other)])
    longest = body.n_predict if body.n_predict and body.n_predict > 0 else None
    if body.t_max_predict_ms and body.deadline is None:
        body = body.model_copy(update={"deadline": body.t_max_predict_ms / 1000})
    texts = around(None, prefix, body.input_suffix)
    tokens, mark = asked_to_fill(engine, texts, context)
    return gap_wanted(engine, body, Infill(prompt=tokens, texts=texts, tries=SURE, longest=longest), mark)


def warm_up_wanted(engine: Engine, body: Body, tokens: Sequence[int]) -> Wanted:
    """Nothing but to read `tokens`."""
    question = Question(tokens=tokens, ask=replace(engine.ask, max_tokens=1))
    task = partial(_warm_up, tokens)
    return Wanted(body=body, question=question, model=body.model or engine.name, warnings=unknown(body), task=task)


def _warm_up(tokens: Sequence[int], engine: Engine, put: tasks.Put, ask: Ask):
    return tasks.warm_up(engine, tokens)


class InfillWire(CompletionWire):
    """A reply as llama.cpp's server gives it."""

    def event(self, event: Delta | Draft) -> Iterator[bytes]:
        if isinstance(event, Draft):
            yield from super().event(event)

    def end(self, result: Filled | None) -> Iterator[bytes]:
        reply = self.whole(result)
        if result is not None:
            yield sse({"content": reply.get("content", ""), "stop": False})
            reply |= {"content": ""}
        yield sse(reply)

    def failed(self, error: Refusal) -> Iterator[bytes]:
        yield sse(error.body("/infill"))

    def whole(self, result: Filled | None) -> dict[str, Any]:
        if result is None:  # a warm-up
            return {}
        prompt, count = len(self.wanted.question.tokens), sum(result.lengths)
        seconds = max(time.monotonic() - self.wanted.since, 1e-3)  # reading and writing are not told apart
        timings = {"prompt": (prompt, 0.0), "predicted": (count, seconds)}
        reply = {
            "index": 0,
            "content": filled_text(self.wanted, result),
            "model": self.wanted.model,
            "stop": True,
            "stop_type": "limit" if result.finish_reason == "deadline" else "eos",
            "truncated": False,
            "tokens_predicted": count,
            "tokens_evaluated": prompt,
            "tokens_cached": prompt,
            "warnings": filled_warnings(self.wanted, result),
        }
        for name, (tokens, took) in timings.items():
            each, rate = 1000 * took / max(tokens, 1), tokens / took if took else 0.0
            reply |= {f"timings/{name}_n": tokens, f"timings/{name}_ms": 1000 * took}
            reply |= {f"timings/{name}_per_token_ms": each, f"timings/{name}_per_second": rate}
        names = self.body.response_fields
        return reply if names is None else {name: reply[name] for name in names if name in reply}
