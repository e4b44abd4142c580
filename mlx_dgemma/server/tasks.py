"""The tasks that requests are: answers to a prompt, gaps and edits, choices, scores. They run in the model's thread."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..fill.infill import Filled, Infill, fill
from ..forms.choices import choosing
from ..forms.language import Language, begin_within
from ..seam.model import Cache, Text
from ..tokens.stream import open_channel, split_thinking
from ..writing.answer import Answer
from ..writing.ask import Ask
from ..writing.batch import PIECE, InProgress
from ..writing.diffuse import begin
from ..writing.task import Task
from ..writing.writing import Step
from .engine import Engine
from .reply import Delta, Draft

Put = Callable[[Delta | Draft], None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be answered, in tokens."""

    tokens: Sequence[int]
    ask: Ask
    count: int = 1  # answers, with one seed after the other
    stops: Sequence[str] = ()  # texts before which an answer is cut
    language: Language | None = None  # of which an answer is
    mark: int = 0  # tokens that other prompts begin with, too
    drafts: bool = False
    scored: bool = False  # the log-probability of each token is wanted


@dataclass(eq=False, kw_only=True)
class Written:
    """One of the answers to a request, as it grows."""

    index: int
    row: InProgress
    answer: Answer
    cached_tokens: int
    encoded: list[int] = field(default_factory=list)  # tokens of finished blocks
    logprobs: np.ndarray | None = None  # [tokens] float32

    @property
    def done(self) -> bool:
        return self.answer.finish_reason is not None

    @property
    def reason(self) -> str | None:
        return self.answer.finish_reason

    @property
    def text(self) -> str:
        """As it is sent, cut before a stop."""
        return self.answer.text

    @property
    def thinking_tokens(self) -> int:
        opened = open_channel(self.answer.tokenizer, self.answer.prompt)
        return len(split_thinking(self.answer.tokenizer, [*opened, *self.answer.tokens])[0])

    def add(self, step: Step) -> Delta | None:
        """What is new of it, once a block is final."""
        calls = len(self.answer.calls)
        thinking, text = self.answer.add(step)
        if not step.final:
            return None
        self.encoded += step.draft.tolist()
        new = tuple(self.answer.calls[calls:])
        return Delta(index=self.index, thinking=thinking, text=text, calls=new, tokens=len(self.answer.tokens))


def answer(engine: Engine, question: Question, put: Put) -> Task[list[Written]]:
    """Write the answers to `question`. Deltas are put as blocks finish, drafts after the passes between."""
    prompt, start = list(question.tokens), time.monotonic()
    cache, known = yield from engine.prefixes.read(engine.model, prompt, question.mark)
    engine.metrics.cached.inc(known)
    caches = [cache] + [cache.copy() for _ in range(question.count - 1)]
    written = [_begin(engine, question, index, own, known) for index, own in enumerate(caches)]
    beginning = None  # the cache of the prompt alone
    try:
        while running := {each.row: each for each in written if not each.done}:
            steps = yield list(running)
            if beginning is None and steps:
                engine.metrics.first_draft.observe(time.monotonic() - start)
                beginning = cache.copy()
                beginning.trim(cache.length - len(prompt))
            for row, step in steps.items():
                _take(running[row], step, question, put)
        if any(not each.row.done for each in written):
            yield []  # cut at a stop: they leave the batch now
        for each in written if question.scored else ():
            each.logprobs = yield from score(engine, each.answer.tokens, beginning.copy())
    except GeneratorExit:
        _keep(engine, prompt, written, beginning)
        raise
    _keep(engine, prompt, written, beginning)
    engine.metrics.answered(len(prompt), [each.answer for each in written])
    return written


def _begin(engine: Engine, question: Question, index: int, cache: Cache, known: int) -> Written:
    ask, text = replace(question.ask, seed=question.ask.seed + index), Text(question.tokens[cache.length :])
    if question.language:
        row = begin_within(engine.model, text, ask, question.language, cache=cache)
    else:
        row = begin(engine.model, text, ask, cache=cache)
    grows = Answer(engine.model.facts, engine.tokenizer, ask.max_tokens, question.tokens, question.stops)
    return Written(index=index, row=row, answer=grows, cached_tokens=known)


def _take(each: Written, step: Step, question: Question, put: Put) -> None:
    if delta := each.add(step):
        put(delta)
    elif question.drafts:
        opened = bool(open_channel(each.answer.tokenizer, [*each.answer.prompt, *each.answer.tokens]))
        put(Draft(index=each.index, step=step, start=len(each.text), thinking=opened))


def _keep(engine: Engine, prompt: list[int], written: Sequence[Written], beginning: Cache | None) -> None:
    """Give the caches to the store: of the prompt alone, and of each answer."""
    if beginning is not None:
        engine.prefixes.keep(prompt, beginning)
    for each in written:
        text, cache = [*prompt, *each.encoded], each.row.cache
        engine.prefixes.keep(text[: cache.length], cache)


def score(engine: Engine, tokens: Sequence[int], cache: Cache) -> Task[np.ndarray]:
    """[tokens] float32: the log-probability of each of `tokens` behind what `cache` holds, NaN of a text's first."""
    parts = []
    for start in range(0, len(tokens), PIECE):
        yield []
        [scored] = engine.model.encode([Text(tokens[start : start + PIECE])], [cache], score=True)
        parts.append(scored.logprob)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def fill_gaps(engine: Engine, request: Infill, put: Put, *, mark: int = 0, drafts: bool = False) -> Task[Filled]:
    """Fill the gaps of `request`, as `infill` does."""
    prompt = list(request.prompt)
    cache, known = yield from engine.prefixes.read(engine.model, prompt, mark, rest=0)
    engine.metrics.cached.inc(known)
    engine.prefixes.keep(prompt, cache.copy())

    def show(step: Step) -> None:
        if drafts and not step.final:
            put(Draft(step=step, start=0))

    [filled] = yield from fill(engine.model, engine.alphabet, [request], engine.places, prompt=cache, show=show)
    return filled


def choose(engine: Engine, question: Question, texts: Sequence[str]) -> Task[dict[str, Any]]:
    """Choose among `texts`, as the command does."""
    return (yield from choosing(engine.model, engine.tokenizer, question.tokens, texts, question.ask))


def warm_up(engine: Engine, tokens: Sequence[int]) -> Task[None]:
    """Encode `tokens` for a prompt that will begin so."""
    cache, _ = yield from engine.prefixes.read(engine.model, list(tokens), rest=0)
    engine.prefixes.keep(tokens, cache)
