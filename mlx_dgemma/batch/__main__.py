"""`python -m mlx_dgemma.batch`: a file of requests in, one JSON object a line out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..terminal.command import Parser, at_least, progress, run
from ..terminal.form import INCOMPLETE, Form, add_form, read_form
from ..terminal.options import add_ask, add_max_tokens, add_model, ask, check_ask, opened

if TYPE_CHECKING:
    from ..seam.model import DiffusionModel
    from ..terminal.requests import Line, Request
    from ..tokens.tokenizer import Tokenizer

NAME = "mlx_dgemma.batch"


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Answer many requests at once, or fill many texts.")
    add = parser.add_argument_group("what to write").add_argument
    add(
        "file",
        metavar="FILE.jsonl",
        help='one request a line, {"prompt": …}, {"messages": […]} or {"fill": …}; - reads standard input',
    )
    add("--size", type=at_least(1), default=8, metavar="N", help="write N texts at once")
    add("--out", metavar="FILE", help="write there; requests whose answers it holds are not done again")
    add("--system", help="a system turn before each prompt")
    add("--thinking", action="store_true", help="let the model think first")
    add_max_tokens(add)
    add_form(parser)
    add_ask(parser)
    add_model(parser)
    return parser


@dataclass(frozen=True)
class Job:
    """The work that the command line and the files ask for, before anything is loaded."""

    lines: list[Line]
    form: Form | None
    out: Path | None
    done: int  # results that `out` holds already


def read(options: argparse.Namespace) -> Job:
    from ..terminal.requests import Line, read_lines

    check_ask(options)
    form = read_form(options)
    default = Line(system=options.system, thinking=options.thinking, max_tokens=options.max_tokens, seed=options.seed)
    lines = read_lines(options.file, default)
    if lines[0].texts and (form or options.mode != "diffusion"):
        flag = form.flag if form else f"--mode {options.mode}"
        raise Mistake(f"{flag} does not go with lines that are to be filled: leave it out")
    if form and (thinking := [line for line in lines if line.thinking]):
        raise Mistake(f"{thinking[0].where}: thinking does not go with {form.flag}: leave it out")
    out = Path(options.out) if options.out else None
    return Job(lines, form, out, count_results(out) if out else 0)


def count_results(path: Path) -> int:
    """Counts the results of an earlier run in `path`; a line that was cut short is taken away."""
    try:
        with path.open("a+b") as file:
            file.seek(0)
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
    except OSError as error:
        raise Mistake(f"--out {path} cannot be written: {error.strerror}") from None
    return text.count(b"\n")


def batch(options: argparse.Namespace) -> int:
    from ..terminal.requests import to_requests

    job = read(options)
    model, tokenizer, sampling = opened(NAME, options)
    requests = to_requests(job.lines, model, tokenizer, ask(options, sampling))
    if job.done:
        print(f"{NAME}: {job.out} holds {job.done} of {len(requests)} answers already", file=sys.stderr)
    results = write(model, tokenizer, requests, job, options.size)
    start, tokens, steps, incomplete = time.perf_counter(), 0, 0, 0
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(job.out.open("a", encoding="utf-8")) if job.out else sys.stdout
        bar = stack.enter_context(progress(len(requests), job.done, beside=sink))
        for result in results:
            print(json.dumps({**result, "model": options.model or "tiny"}, ensure_ascii=False), file=sink, flush=True)
            tokens, steps = tokens + result["tokens"], steps + result["steps"]
            incomplete += result.get("finish_reason") == "incomplete"
            bar()
    seconds, count = time.perf_counter() - start, len(requests) - job.done
    print(summary(count, tokens, steps, seconds, model.peak_memory()), file=sys.stderr)
    if incomplete:
        print(f"{NAME}: {incomplete} answers do not fit {job.form.flag}: give more --max-tokens", file=sys.stderr)
    return INCOMPLETE if incomplete else 0


def write(model: DiffusionModel, tokenizer: Tokenizer, requests: list[Request], job: Job, size: int) -> Iterator[dict]:
    """Chooses how the results of `requests` that are not done come about."""
    from . import results

    form, to_do = job.form, requests[job.done :]
    if job.lines[0].texts:
        return results.fillings(model, tokenizer, to_do, size)
    if form is None:
        return results.answers(model, tokenizer, to_do, size)
    if form.choices:
        return results.choices(model, tokenizer, to_do, form.choices)
    language = form.language(model, tokenizer)
    for line, request in zip(job.lines, requests, strict=True):
        try:
            language.check_fits(min(line.max_tokens, model.facts.max_position_embeddings - len(request.tokens)))
        except Mistake as mistake:
            raise Mistake(f"{line.where}: {mistake}") from None
    return results.answers(model, tokenizer, to_do, size, language)


def summary(count: int, tokens: int, steps: int, seconds: float, memory: int) -> str:
    from ..checkpoint.memory import gigabytes

    return (
        f"{count} answers, {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens a second, "
        f"{steps / max(count, 1):.1f} steps an answer, peak memory {gigabytes(memory)}"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: batch(options))


if __name__ == "__main__":
    sys.exit(main())
