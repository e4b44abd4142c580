"""`python -m mlx_dgemma.batch`: a file of requests in, one JSON object a line out."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.hub import find
from ..checkpoint.memory import gigabytes
from ..errors import Mistake
from ..fill.infill import infill
from ..forms import choices
from ..forms.language import Language, begin_within
from ..seam.model import DiffusionModel, Text
from ..terminal.command import Parser, at_least, note, progress, run, to_stdout
from ..terminal.form import INCOMPLETE, Form, add_form, read_form
from ..terminal.options import add_ask, add_max_tokens, add_model, add_stop, check_ask, check_stop, open_model
from ..terminal.requests import Request, encode, read_lines
from ..tokens.tokenizer import Tokenizer
from ..writing.answer import Answer
from ..writing.ask import Ask
from ..writing.batch import InProgress
from ..writing.batch import run as run_batch
from ..writing.diffuse import begin
from .answer_file import AnswerFile, fingerprints

NAME = "mlx_dgemma.batch"
Result = dict[str, Any]


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Answer many requests at once, or fill many texts.")
    add = parser.add_argument_group("what to write").add_argument
    lines = 'one request a line, {"prompt": …}, {"messages": […]} or {"fill": …}; - reads standard input'
    add("file", metavar="FILE.jsonl", help=lines)
    add("--size", type=at_least(1), default=8, metavar="N", help="write N texts at once")
    add("--out", metavar="FILE", help="write there; requests whose answers it holds are not done again")
    add("--system", help="a system turn before each prompt")
    add("--thinking", action="store_true", help="let the model think first")
    add_max_tokens(add)
    add_stop(add)
    add_form(parser)
    add_ask(parser)
    add_model(parser)
    add("-q", "--quiet", action="store_true", help="nothing on stderr but mistakes")
    parser.set_defaults(watch=False)
    return parser


def read(options: argparse.Namespace, form: Form | None) -> list[Request]:
    """Reads the file. Mistake where its lines do not go with the flags."""
    ask = Ask(max_tokens=options.max_tokens, seed=options.seed)
    requests = read_lines(options.file, Request(system=options.system, thinking=options.thinking, ask=ask))
    if requests[0].texts and (form or options.mode != "diffusion"):
        flag = form.flag if form else f"--mode {options.mode}"
        raise Mistake(f"{flag} does not go with lines that are to be filled: leave it out")
    if requests[0].texts and options.stop:
        raise Mistake("--stop does not go with lines that are to be filled: leave it out")
    if form and (thinking := [request for request in requests if request.thinking]):
        raise Mistake(f"{thinking[0].where}: thinking does not go with {form.flag}: leave it out")
    return requests


def batch(options: argparse.Namespace) -> int:
    check_ask(options)
    check_stop(options)
    form = read_form(options)
    requests = read(options, form)
    with AnswerFile(Path(options.out)) if options.out is not None else contextlib.nullcontext() as out:
        runs = fingerprints(requests, options, find(options.model))
        done = out.go_on(runs, options.model or "tiny") if out else 0
        if done and not options.quiet:
            note(f"{NAME}: {out.path} holds {done} of {len(requests)} answers already")
        if done == len(requests):
            return 0
        model, tokenizer, ask = open_model(NAME, options)
        requests = encode(requests, model, tokenizer, ask)
        results = write(model, tokenizer, requests[done:], form, options.size, options.stop)
        name = {"model": options.model or "tiny"}
        lines = (run | result | name for run, result in zip(runs[done:], results, strict=True))
        summary, incomplete = record(lines, done, len(requests), out)
    if not options.quiet:
        note(f"{summary}, peak memory {gigabytes(model.peak_memory())}")
    if incomplete:
        note(f"{NAME}: {incomplete} answers do not fit {form.flag}: give more --max-tokens")
    return INCOMPLETE if incomplete else 0


def record(lines: Iterator[Result], done: int, total: int, out: AnswerFile | None) -> tuple[str, int]:
    """Writes each line as it comes. Returns a line about it, and how many answers are incomplete."""
    start, count, tokens, steps, incomplete = time.perf_counter(), 0, 0, 0, 0
    try:
        with progress(total, done, beside=None if out else sys.stdout) as bar:
            for line in lines:
                text = json.dumps(line, ensure_ascii=False)
                out.write(text) if out else to_stdout(f"{text}\n")
                count, tokens, steps = count + 1, tokens + line["tokens"], steps + line["steps"]
                incomplete += line.get("finish_reason") == "incomplete"
                bar()
    except (KeyboardInterrupt, SystemExit):
        goes_on = "the same command goes on behind them" if out else "with --out FILE, the same command would go on"
        note(f"{NAME}: stopped with {done + count} of {total} answers written; {goes_on}")
        raise
    seconds = time.perf_counter() - start
    summary = f"{count} answers, {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens a second"
    return f"{summary}, {steps / max(count, 1):.1f} steps an answer", incomplete


def write(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    requests: list[Request],
    form: Form | None,
    size: int,
    stops: Sequence[str] = (),
) -> Iterator[Result]:
    """Yields the results of `requests` in their order, each as soon as it and all before it are there. Mistake where a
    form fits into no answer to one."""
    if requests[0].texts:
        return fill_all(model, tokenizer, requests, size)
    if form is None:
        return answer_all(model, tokenizer, requests, size, stops=stops)
    if form.choices:
        return choose_all(model, tokenizer, requests, form.choices)
    language = form.language(model, tokenizer)
    for request in requests:
        room = model.facts.max_position_embeddings - len(request.tokens)
        try:
            language.check_fits(min(request.ask.max_tokens, room))
        except Mistake as mistake:
            raise Mistake(f"{request.where}: {mistake}") from None
    return (result | form.slots(result["text"]) for result in answer_all(model, tokenizer, requests, size, language))


def answer_all(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    size: int,
    language: Language | None = None,
    stops: Sequence[str] = (),
) -> Iterator[Result]:
    """Answers `requests`, at most `size` at a time. Text, steps and blocks are those that a request has alone, but with
    mode "auto", whose pace is measured; seconds run from its admission. `language`: each answer is a text of it, or
    "incomplete" and then empty. `stops`: texts before which an answer ends."""
    answers: dict[int, Answer] = {}
    ended: set[int] = set()

    def texts() -> Iterator[InProgress]:
        for request in requests:
            answers[request.number] = Answer(model.facts, tokenizer, request.ask.max_tokens, request.tokens, stops)
            text = Text(request.tokens)
            if language:
                yield begin_within(model, text, request.ask, language, request=request.number)
            else:
                yield begin(model, text, request.ask, request=request.number)

    steps = run_batch(model, texts(), size, ended)
    for request in requests:
        while request.number not in answers or not answers[request.number].finish_reason:
            step = next(steps)
            answers[step.request].add(step)
            if answers[step.request].finish_reason:
                ended.add(step.request)
        answer = answers.pop(request.number)
        result = answer.statistics(len(request.tokens))
        if language and len(language.ending(answer.tokens)):
            result |= {"text": "", "finish_reason": "incomplete"}
        yield result


def fill_all(model: DiffusionModel, tokenizer: Tokenizer, requests: Sequence[Request], size: int) -> Iterator[Result]:
    """Fills the gaps of `requests`, `size` texts at a time, each as it is filled alone. Seconds are those of all that
    were filled together."""
    for first in range(0, len(requests), size):
        start = time.perf_counter()
        results = infill(model, tokenizer, [request.fill for request in requests[first : first + size]], size=size)
        seconds = time.perf_counter() - start
        for filled in results:
            counts = {"tokens": sum(filled.lengths), "steps": sum(filled.steps)}
            yield {"text": filled.text, **asdict(filled), **counts, "seconds": seconds}


def choose_all(
    model: DiffusionModel, tokenizer: Tokenizer, requests: Sequence[Request], texts: Sequence[str]
) -> Iterator[Result]:
    """Chooses the most probable of `texts` for each of `requests`, whose branches are denoised together."""
    for request in requests:
        start = time.perf_counter()
        choice = choices.choose(model, tokenizer, request.tokens, texts, request.ask)
        counts = {"tokens": len(tokenizer.encode(choice["text"])), "steps": choices.PASSES}
        yield {**choice, **counts, "seconds": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: batch(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
