"""`python -m mlx_dgemma.generate`: a prompt in, a denoised answer out."""

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..checkpoint.memory import gigabytes
from ..errors import Mistake
from ..forms import choices
from ..forms.language import begin_within
from ..seam.model import Text
from ..terminal.command import CUT, Parser, note, on_terminal, run, to_stderr, to_stdout, waiting
from ..terminal.form import INCOMPLETE, add_form, read_form
from ..terminal.options import (
    add_ask,
    add_max_tokens,
    add_model,
    add_shown,
    add_stop,
    check_ask,
    check_stop,
    encode_prompt,
    open_model,
    to_json,
)
from ..terminal.prompt import read_with_pipe
from ..terminal.tools import add_tools, read_tool_file, tell_unheard
from ..terminal.watch import Watch
from ..writing import batch
from ..writing.answer import Answer
from ..writing.diffuse import diffuse
from ..writing.writing import Step

NAME = "mlx_dgemma.generate"


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Write an answer by denoising a canvas of tokens.")
    add = parser.add_argument_group("what to write").add_argument
    add("text", nargs="?", metavar="PROMPT", help="what to answer; what is piped in is read behind it")
    add("-p", "--prompt", help="the same as a flag; - is standard input")
    add("--system", "--system-prompt", help="a system turn before it")
    add("--thinking", action="store_true", help="let the model think first; its thoughts go to stderr")
    add_tools(add)
    raw = "no chat template: the prompt as it is, its control tokens are tokens"
    add("--raw", "--ignore-chat-template", action="store_true", help=raw)
    add_max_tokens(add)
    add_stop(add)
    add_shown(parser, add, "show the canvas as it settles")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_form(parser)
    add_ask(parser)
    add_model(parser, listed=False)
    return parser


def check(options: argparse.Namespace) -> None:
    """Mistake where flags contradict each other."""
    if options.raw and (options.system is not None or options.thinking or options.tools):
        raise Mistake("--raw has no turns: leave out --system, --thinking and --tools, or --raw")
    if options.text is not None and options.prompt is not None:
        raise Mistake(f"there are two prompts, {options.text[:40]!r} and --prompt {options.prompt[:40]!r}: give one")
    check_stop(options)


def generate(options: argparse.Namespace) -> int:
    check_ask(options)
    check(options)
    form, tools = read_form(options, options.max_tokens), read_tool_file(options.tools)
    prompt = read_with_pipe(options.text if options.prompt is None else options.prompt, NAME, raw=options.raw)
    model, tokenizer, ask = open_model(NAME, options)
    tell_unheard(NAME, tokenizer, tools)
    tokens = encode_prompt(tokenizer, options, prompt, tools)
    if form and form.choices:
        report_choice(options, choices.choose(model, tokenizer, tokens, form.choices, ask))
        return 0
    language = form and form.language(model, tokenizer)
    answer, code = Answer(model.facts, tokenizer, ask.max_tokens, tokens, options.stop), 0
    watch = Watch(tokenizer, ask.sampling.max_denoising_steps, drawn=options.watch and on_terminal())
    try:
        if language:
            steps = batch.run(model, [begin_within(model, Text(tokens), ask, language)])
        else:
            steps = diffuse(model, tokens, ask)
        write(answer, steps, watch, f"reading {len(tokens)} tokens", printed=not (language or options.json))
    except KeyboardInterrupt:
        code = 130
        # What is finished is kept; of a form, with the shortest ending that makes it whole.
        answer.finish(language.ending(answer.tokens) if language and answer.tokens else [], "interrupted")
    if language and answer.tokens and len(language.ending(answer.tokens)):
        note(f"{NAME}: no text that fits {form.flag} was found: give more --max-tokens")
        return INCOMPLETE
    numbers = answer.statistics(len(tokens)) | {"peak_memory": model.peak_memory()}
    if options.json:
        to_stdout(to_json(options, numbers | (form.slots(answer.text) if form else {})) + "\n")
    else:
        print_rest(answer, answer.text if language else "")
    if not options.quiet:
        note(*answer.notes, summary(numbers))  # notes not where they come up: there they would stand amid the text
    return code


def report_choice(options: argparse.Namespace, choice: dict[str, Any]) -> None:
    if options.json:
        to_stdout(to_json(options, choice) + "\n")
        return
    to_stdout(choice["text"] + "\n")
    ranked = sorted(choice["probabilities"].items(), key=lambda item: -item[1])
    note(", ".join(f"{text} {value:.1%}" for text, value in ranked[:5]))


def write(answer: Answer, steps: Iterator[Step], watch: Watch, reading: str, printed: bool) -> None:
    """Adds all steps to the answer, and shows them; its text as blocks finish, if it is to be `printed`."""
    with watch:
        with waiting(reading):
            first = next(steps)
        for step in chain([first], steps):
            thinking, text = answer.add(step)
            if printed:
                watch.write(thinking, to_stderr)
                watch.write(text, to_stdout)
            watch.show(step)
            if answer.finish_reason:
                break


def print_rest(answer: Answer, text: str) -> None:
    """Prints what `write` left out: `text`, the end of the last line, and the tool calls."""
    to_stdout(text + "\n" * (answer.text[-1:] not in ("", "\n")))
    for call in answer.calls:
        to_stdout(f"tool call: {call}\n")


def summary(numbers: dict[str, Any]) -> str:
    if not numbers["blocks"]:
        return "interrupted before the first block was done"
    blocks = f"{numbers['blocks']} block" + "s" * (numbers["blocks"] != 1)
    both = {"prompt": numbers["prompt_tokens_per_second"], "answer": numbers["tokens_per_second"]}
    rates = "".join(f"{name} {rate:.1f} tokens a second, " for name, rate in both.items() if rate)
    return (
        f"{numbers['tokens']} tokens in {numbers['seconds']:.2f} s: {blocks}, "
        f"{numbers['steps'] / numbers['blocks']:.1f} steps a block, {numbers['tokens_per_forward']:.1f} tokens per "
        f"forward, first block after {numbers['seconds_to_first_block']:.2f} s, {rates}"
        f"peak memory {gigabytes(numbers['peak_memory'])}{CUT.get(numbers['finish_reason'], '')}"
    )


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: generate(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
