"""`python -m mlx_dgemma.generate`: a prompt in, a denoised answer out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.memory import gigabytes
from ..errors import Mistake
from ..fill import inplace
from ..forms import structured
from ..terminal import sampling_options
from ..terminal.command import Parser, at_least, progress, run, to_stderr, to_stdout, waiting
from ..terminal.options import add_shared, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..batch.requests import Request
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer
    from ..writing.answer import Answer
    from ..writing.sampling import Sampling

NAME = "mlx_dgemma.generate"
NO_MODE = "what is given or has a form is denoised, and not checked: leave out --mode and --verify"
CUT = {"length": " (cut at the length asked for)", "deadline": " (as it stood at the deadline)"}


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Write an answer by denoising a canvas of tokens.")
    add = parser.add_argument
    add("--prompt", help="what to answer; - reads it from standard input")
    add(
        "--prompts",
        metavar="FILE.jsonl",
        help='many: one {"prompt": …} or {"fill": …} a line; prints one JSON object a line',
    )
    add(
        "--batch",
        type=at_least(1),
        metavar="N",
        help="of --prompts, how many are written at once (default: 8)",
    )
    add("--out", metavar="FILE", help="of --prompts, write there; what it holds already is not done again")
    add("--raw", action="store_true", help="take the prompt as it is, without the chat template")
    add("--watch", action="store_true", help="show the canvas as it settles")
    add("--json", action="store_true", help="print one JSON object instead of text")
    structured.add_options(parser)
    inplace.add_options(parser)
    add_shared(parser)
    sampling_options.add_to(parser)
    return parser


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for "-"."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise Mistake(
            f"standard input is not UTF-8: byte 0x{wrong:02x} at offset {error.start}; convert it first"
        ) from None


def tokens_of(options: argparse.Namespace, tokenizer: Tokenizer) -> list[int]:
    from ..writing.answer import prompt_tokens

    prompt = read_prompt(options.prompt)
    if not options.raw:
        return prompt_tokens(tokenizer, prompt, system=options.system, thinking=options.thinking)
    if options.system is not None or options.thinking:
        raise Mistake("--raw has no turns: leave out --system and --thinking, or --raw")
    if not prompt:
        raise Mistake("the prompt is empty: say what you want")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer.encode(prompt)


def summary(stats: dict) -> str:
    if not stats["blocks"]:
        return "interrupted before the first block was done"
    blocks = f"{stats['blocks']} block" + "s" * (stats["blocks"] != 1)
    return (
        f"{stats['tokens']} tokens in {stats['seconds']:.2f} s: {blocks}, "
        f"{stats['steps'] / stats['blocks']:.1f} steps a block, {stats['tokens_per_forward']:.1f} tokens per forward, "
        f"first block after {stats['seconds_to_first_block']:.2f} s, peak memory {gigabytes(stats['peak_memory'])}"
        + CUT.get(stats["finish_reason"], "")
    )


def write(
    answer: Answer, model: DiffusionModel, tokens: list[int], sampling: Sampling, options: argparse.Namespace
) -> None:
    """Denoise; show text as blocks finish, unless --json."""
    from ..writing import route as router

    with contextlib.ExitStack() as stack:
        watch, say = None, lambda text, out: out(text)
        if options.watch and sys.stdout.isatty() and sys.stderr.isatty():
            from ..terminal.watch import Watch

            watch = stack.enter_context(Watch(answer.tokenizer, sampling.max_denoising_steps))
            say = watch.write
        begin = structured.begin(options, model, answer.tokenizer)
        how = {"mode": options.mode, "verify": options.verify, "begin": begin, "seed": options.seed}
        passes = router.write(model, tokens, max_tokens=answer.max_tokens, sampling=sampling, **how)
        with waiting(f"reading {len(tokens)} tokens"):
            first = next(passes)
        for step in chain([first], passes):
            thinking, text = answer.add(step)
            if not options.json:
                say(thinking, to_stderr)
                say(text, to_stdout)
            if watch:
                watch.show(step)


def check_options(options: argparse.Namespace) -> None:
    """Which of them go together. Before anything is loaded."""
    structured.check(options)
    sampling_options.check(options)
    if (options.mode != "diffusion" or options.verify) and (structured.asked(options) or inplace.asked(options)):
        raise Mistake(NO_MODE)
    if inplace.asked(options):
        return inplace.check(options)
    if (options.prompt is None) == (options.prompts is None):
        raise Mistake("need --prompt TEXT, or --prompts FILE.jsonl")
    if options.prompt is not None and (options.batch or options.out):
        raise Mistake("--batch and --out are for many prompts: give --prompts FILE.jsonl")
    if options.prompts is not None and (options.raw or options.watch):
        raise Mistake("--raw and --watch are for one prompt: leave them out, or give --prompt")


def generate(options: argparse.Namespace) -> int:
    check_options(options)
    model, tokenizer, sampling = opened(NAME, options)
    sampling = sampling_options.apply(options, sampling)
    if inplace.asked(options):
        return inplace.run(options, tokens_of(options, tokenizer), model, tokenizer, sampling)
    return (one if options.prompts is None else many)(options, model, tokenizer, sampling)


def one(options: argparse.Namespace, model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling) -> int:
    from ..writing.answer import Answer

    tokens = tokens_of(options, tokenizer)
    if options.choices:
        return structured.choose(options, model, tokenizer, sampling, tokens)
    answer = Answer(model.config, tokenizer, options.max_tokens)
    code = 0
    try:
        write(answer, model, tokens, sampling, options)
    except KeyboardInterrupt:
        answer.finish_reason, code = "interrupted", 130
    stats = answer.statistics(len(tokens))
    stats |= {"peak_memory": model.peak_memory(), "seed": options.seed, "model": options.model or "tiny"}
    stats |= structured.found(options, answer.text)
    if options.json:
        print(json.dumps(stats, ensure_ascii=False))
    elif answer.text and not answer.text.endswith("\n"):
        print(flush=True)
    if not options.json:
        for call in answer.calls:
            print(f"tool call: {call}", flush=True)
    for note in answer.notes:  # not where they come up: there they would stand amid the text
        print(note, file=sys.stderr)
    print(summary(stats), file=sys.stderr)
    return code


def many(options: argparse.Namespace, model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling) -> int:
    """One JSON object a line, in the order of the prompts, as soon as all before it are there."""
    from ..batch import requests as lines

    defaults = {"max_tokens": options.max_tokens, "seed": options.seed}
    defaults |= {"system": options.system, "thinking": options.thinking}
    requests = lines.read_requests(Path(options.prompts), model, tokenizer, defaults)
    out = Path(options.out) if options.out else None
    done = lines.answered(out) if out else 0
    if done:
        print(f"{NAME}: {out} holds {done} of {len(requests)} answers already", file=sys.stderr)
    found = results(options, model, tokenizer, sampling, requests[done:])
    start, tokens, steps = time.perf_counter(), 0, 0
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(out.open("a", encoding="utf-8")) if out else sys.stdout
        bar = stack.enter_context(progress(len(requests), done))
        for result in found:
            print(json.dumps({**result, "model": options.model or "tiny"}, ensure_ascii=False), file=sink, flush=True)
            tokens, steps = tokens + result["tokens"], steps + result["steps"]
            bar()
    seconds = time.perf_counter() - start
    count = len(requests) - done
    print(
        f"{count} answers, {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens a second, "
        f"{steps / max(count, 1):.1f} steps an answer, peak memory {gigabytes(model.peak_memory())}",
        file=sys.stderr,
    )
    return 0


def results(
    options: argparse.Namespace,
    model: DiffusionModel,
    tokenizer: Tokenizer,
    sampling: Sampling,
    requests: Sequence[Request],
) -> Iterator[dict]:
    """What comes of each of many prompts."""
    from ..batch import requests as lines
    from ..writing import route as router

    size = options.batch or 8
    if any(request.fill for request in requests):
        if options.mode != "diffusion" or options.verify:
            raise Mistake(NO_MODE)
        if wrong := structured.asked(options):
            raise Mistake(f"{wrong[0]} does not go with lines that are to be filled: leave it out")
        return lines.fillings(model, tokenizer, sampling, requests, size)
    if options.choices:
        return lines.choices_of(model, tokenizer, sampling, requests, options.choices)
    way = router.way(options.mode, options.verify, structured.begin(options, model, tokenizer))
    return lines.answers(model, tokenizer, sampling, requests, size, *way)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: generate(options))


if __name__ == "__main__":
    sys.exit(main())
