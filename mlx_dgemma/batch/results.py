"""The results of a batch: one object a request, in the order of the requests, as soon as all before it are there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..fill.infill import infill
from ..forms.choices import PASSES, choose
from ..forms.language import Language, begin_within
from ..seam.model import DiffusionModel, Text
from ..terminal.requests import Request
from ..tokens.tokenizer import Tokenizer
from ..writing.answer import Answer
from ..writing.batch import InProgress, run
from ..writing.diffuse import begin

Result = dict[str, Any]


def answers(
    model: DiffusionModel, tokenizer: Tokenizer, requests: Sequence[Request], size: int, language: Language | None
) -> Iterator[Result]:
    """Answers `requests`, at most `size` at a time. Text, steps and blocks are those that a request has alone; seconds
    run from its admission. `language`: each answer is a text of it, or "incomplete" and then empty."""
    running: dict[int, tuple[Answer, Request]] = {}
    finished: dict[int, Result] = {}

    def texts() -> Iterator[InProgress]:
        for request in requests:
            running[request.number] = Answer(model.facts, tokenizer, request.ask.max_tokens), request
            text = Text(request.tokens)
            if language:
                yield begin_within(model, text, request.ask, language, request=request.number)
            else:
                yield begin(model, text, request.ask, request=request.number)

    steps = run(model, texts(), size)
    for awaited in requests:
        while awaited.number not in finished:
            step = next(steps)
            answer, request = running[step.request]
            answer.add(step)
            if step.reason is not None:
                del running[step.request]
                finished[step.request] = _result(answer, request, language)
        yield finished.pop(awaited.number)


def _result(answer: Answer, request: Request, language: Language | None) -> Result:
    numbers = answer.statistics(len(request.tokens)) | {"seed": request.ask.seed}
    if language and len(language.ending(answer.tokens)):
        numbers |= {"text": "", "finish_reason": "incomplete"}
    return {"request": request.number, **numbers}


def fillings(model: DiffusionModel, tokenizer: Tokenizer, requests: Sequence[Request], size: int) -> Iterator[Result]:
    """Fills the gaps of `requests`, `size` texts at a time, each as it is filled alone. Seconds are those of all that
    were filled together."""
    for first in range(0, len(requests), size):
        together, start = requests[first : first + size], time.perf_counter()
        results = infill(model, tokenizer, [request.fill for request in together], size=size)
        seconds = time.perf_counter() - start
        for request, filled in zip(together, results, strict=True):
            counts = {"tokens": sum(filled.lengths), "steps": sum(filled.steps)}
            numbers = counts | {"seconds": seconds, "seed": request.ask.seed}
            yield {"request": request.number, "text": filled.text, **asdict(filled), **numbers}


def choices(
    model: DiffusionModel, tokenizer: Tokenizer, requests: Sequence[Request], texts: Sequence[str]
) -> Iterator[Result]:
    """The most probable of `texts` for each of `requests`; the branches of one request are denoised together."""
    for request in requests:
        start = time.perf_counter()
        choice = choose(model, tokenizer, request.tokens, texts, request.ask)
        numbers = {"tokens": len(tokenizer.encode(choice["text"])), "steps": PASSES, "seed": request.ask.seed}
        yield {"request": request.number, **choice, **numbers, "seconds": time.perf_counter() - start}
