"""The tasks that requests are: answers to prompts and their scores, gaps. They run in the model's thread."""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..fill.infill import Filled, Infill, fill
from ..forms.language import Language, begin_within
from ..seam.model import Cache, Text
from ..seam.shared import join_scores
from ..tokens.stream import open_channel, split_thinking
from ..tokens.tools import ToolCall
from ..writing.answer import Answer
from ..writing.ask import Ask
from ..writing.batch import InProgress
from ..writing.diffuse import begin
from ..writing.task import Task
from ..writing.writing import Step
from .engine import Engine
from .reply import Delta, Draft, Scored, counts

Put = Callable[[Delta | Draft], None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be answered, in tokens."""

    tokens: Sequence[int]
    ask: Ask
    count: int = 1  # answers, with one seed after the other
    first: int = 0  # the index of the first of them
    stops: Sequence[str] = ()  # texts before which an answer is cut
    language: Language | None = None  # of which an answer is
    mark: int = 0  # tokens that other prompts begin with, too
    drafts: bool = False
    scored: bool = False  # the log-probability of each token is wanted
    echo: str | None = None  # the prompt's text, to stand before the answer; its tokens are scored, too
    tool: str | None = None  # the tool whose arguments the text is, as JSON; "" where the text names it, too
    most_calls: int | None = None  # of tools; None: any number


@dataclass(eq=False, kw_only=True)
class Written:
    """One of the answers to a request, as it grows."""

    index: int
    question: Question
    row: InProgress
    answer: Answer
    cached_tokens: int
    encoded: list[int] = field(default_factory=list)  # tokens of finished blocks
    scores: list[Scored] | None = None

    @property
    def done(self) -> bool:
        return self.answer.finish_reason is not None

    @property
    def text(self) -> str:
        """The text that is sent: behind the prompt if that is echoed, cut before a stop; no call of a tool."""
        return "" if self.question.tool is not None else (self.question.echo or "") + self.answer.text

    @property
    def calls(self) -> list[ToolCall]:
        """The tools that it calls. One that had to be called as JSON is read from the text, once that is whole."""
        tool = self.question.tool
        if tool is None:
            return self.answer.calls[: self.question.most_calls]
        if not self.done:
            return []
        with suppress(ValueError):  # it was cut by a stop
            call = json.loads(self.answer.text)
            return [ToolCall(tool, call) if tool else ToolCall(call["name"], call["arguments"])]
        return []

    @property
    def thinking_tokens(self) -> int:
        opened = open_channel(self.answer.tokenizer, self.answer.prompt)
        return len(split_thinking(self.answer.tokenizer, [*opened, *self.answer.tokens])[0])

    def add(self, step: Step) -> Delta | None:
        """Takes a step -> what is new, once a block is final."""
        calls = len(self.calls)
        thinking, text = self.answer.add(step)
        if not step.final:
            return None
        self.encoded += step.draft.tolist()
        text = "" if self.question.tool is not None else text
        new = tuple(self.calls[calls:])
        return Delta(index=self.index, thinking=thinking, text=text, calls=new, tokens=len(self.answer.tokens))


def answer(engine: Engine, question: Question, put: Put) -> Task[list[Written]]:
    """Write the answers to `question`. Deltas are put as blocks finish, drafts after the passes between."""
    prompt, start = list(question.tokens), time.monotonic()
    if question.echo:
        for index in range(question.first, question.first + question.count):
            put(Delta(index=index, text=question.echo))
    cache, cached = yield from engine.prefixes.read(engine.model, prompt, question.mark)
    engine.metrics.cached.inc(cached)
    caches = [cache] + [cache.copy() for _ in range(question.count - 1)]
    written = [_begin(engine, question, index, caches[index], cached) for index in range(question.count)]
    beginning = None  # the cache of the prompt alone
    try:
        while running := {each.row: each for each in written if not each.done}:
            steps = yield list(running)
            if beginning is None and steps:
                engine.metrics.first_draft.observe(time.monotonic() - start)
                beginning = cache.copy()
                beginning.trim(cache.length - len(prompt))
            for row, step in steps.items():
                _take(running[row], step, put)
        if any(not each.row.done for each in written):
            yield []  # cut at a stop: they leave the batch now
        for each in written if question.scored else ():
            each.scores = yield from score(engine, question, each.answer.tokens, beginning)
    except GeneratorExit:
        _keep(engine, prompt, written, beginning)
        raise
    _keep(engine, prompt, written, beginning)
    engine.metrics.answered(len(prompt), [each.answer for each in written])
    return written


def _begin(engine: Engine, question: Question, index: int, cache: Cache, cached: int) -> Written:
    ask, text = replace(question.ask, seed=question.ask.seed + index), Text(question.tokens[cache.length :])
    if question.language:
        row = begin_within(engine.model, text, ask, question.language, cache=cache)
    else:
        row = begin(engine.model, text, ask, cache=cache)
    grows = Answer(engine.model.facts, engine.tokenizer, ask.max_tokens, question.tokens, question.stops)
    return Written(index=question.first + index, question=question, row=row, answer=grows, cached_tokens=cached)


def _take(each: Written, step: Step, put: Put) -> None:
    if delta := each.add(step):
        put(delta)
    elif each.question.drafts:
        opened = bool(open_channel(each.answer.tokenizer, [*each.answer.prompt, *each.answer.tokens]))
        put(Draft(index=each.index, step=step, start=len(each.answer.text), thinking=opened))


def _keep(engine: Engine, prompt: list[int], written: Sequence[Written], beginning: Cache | None) -> None:
    """Give the caches to the store: of the prompt alone, and of each answer."""
    if beginning is not None:
        engine.prefixes.keep(prompt, beginning)
    for each in written:
        text, cache = [*prompt, *each.encoded], each.row.cache
        engine.prefixes.keep(text[: cache.length], cache)


def answers(engine: Engine, questions: Sequence[Question], put: Put) -> Task[list[Written]]:
    """Write the answers to one prompt or several, to as many at once as there are places for."""
    if len(questions) == 1:
        return (yield from answer(engine, questions[0], put))
    waiting = deque(answer(engine, question, put) for question in questions)
    most, running, written = max(1, engine.places // questions[0].count), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < most:
                task = waiting.popleft()
                running[task] = next(task)
            steps = yield [text for texts in running.values() for text in texts]
            reader = next((task for task, texts in running.items() if not texts), None)
            for task, texts in list(running.items()):
                if not texts and task is not reader:  # a piece of one prompt a pass
                    continue
                try:
                    running[task] = task.send({text: steps[text] for text in texts if text in steps})
                except StopIteration as end:
                    written += end.value
                    del running[task]
    finally:
        for task in running:
            task.close()
    return sorted(written, key=lambda each: each.index)


def usage(written: Sequence[Written]) -> dict[str, Any]:
    """Counts tokens and passes, of all answers together."""
    answers = [each.answer for each in written]
    prompts = {id(each.answer.prompt): each for each in written}.values()  # answers to one share it
    steps = sum(answer.steps for answer in answers)
    first = [answer.seconds_to_first_block for answer in answers if answer.seconds_to_first_block is not None]
    return counts(
        sum(len(each.answer.prompt) for each in prompts),
        sum(len(answer.tokens) for answer in answers),
        prompt_tokens_details={"cached_tokens": sum(each.cached_tokens for each in prompts)},
        completion_tokens_details={"reasoning_tokens": sum(each.thinking_tokens for each in written)},
        diffusion={
            "blocks": sum(len(answer.steps_per_block) for answer in answers),
            "steps": steps,
            "tokens_per_forward": round(sum(a.tokens_per_forward * a.steps for a in answers) / max(steps, 1), 3),
            "seconds": round(max(answer.seconds for answer in answers), 4),
            "seconds_to_first_block": round(min(first, default=0.0), 4),
        },
    )


def score(engine: Engine, question: Question, tokens: Sequence[int], beginning: Cache) -> Task[list[Scored]]:
    """Score the answer `tokens` behind the prompt, of which `beginning` is the cache; with `echo`, score both."""
    parts, start = [], 0
    if question.echo is None:
        cache, text = beginning.copy(), [question.tokens[-1], *tokens]
        cache.trim(1)
    else:
        cache, text = engine.model.new_cache(), [*question.tokens, *tokens]
    while start < len(text):
        yield []
        end = start + engine.prefixes.piece(engine.model)
        [scored] = engine.model.encode([Text(text[start:end])], [cache], score=True)
        parts.append((scored.argmax, scored.logprob, scored.top))
        start = end
    scores = join_scores(parts)
    behind = zip(text[1:], scores.logprob[1:].tolist(), scores.argmax.tolist(), scores.top.tolist(), strict=False)
    first = [] if question.echo is None else [Scored(text[0], None)]
    return [*first, *(Scored(*each) for each in behind)]


def fill_gaps(engine: Engine, request: Infill, put: Put, *, mark: int = 0, drafts: bool = False) -> Task[Filled]:
    """Fill the gaps of `request`, as `infill` does."""
    prompt = list(request.prompt)
    cache, cached = yield from engine.prefixes.read(engine.model, prompt, mark, rest=0)
    engine.metrics.cached.inc(cached)
    engine.prefixes.keep(prompt, cache.copy())

    def show(step: Step) -> None:
        if drafts and not step.final:
            put(Draft(step=step, start=0))

    [filled] = yield from fill(engine.model, engine.alphabet, [request], engine.places, prompt=cache, show=show)
    return filled
