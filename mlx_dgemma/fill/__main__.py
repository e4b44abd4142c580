"""`python -m mlx_dgemma.fill`: a text with gaps in, the same text with the gaps filled out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..terminal.command import Parser, at_least, read_file, read_prompt, read_stdin, run
from ..terminal.filling import add_output, fill_gaps, print_exactly, print_summary
from ..terminal.options import add_ask, add_model, ask, check_ask, opened, raw_tokens

if TYPE_CHECKING:
    from ..tokens.tokenizer import Tokenizer

NAME = "mlx_dgemma.fill"


def gap_lengths_argument(text: str) -> list[int]:
    """An argparse type."""
    return [at_least(1)(part) for part in text.split(",")]


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Fill gaps in a text. What is around them stays.")
    about = "FILE|TEXT is a file of that name, or else the text itself; - reads standard input."
    add = parser.add_argument_group("what to fill", about).add_argument
    add("text", nargs="?", metavar="FILE|TEXT", help="a text with one or more <fill> marks")
    add("--prefix", metavar="FILE|TEXT", help="instead of it: the text before a gap")
    add("--suffix", metavar="FILE|TEXT", help="the text behind that gap; without one, the text ends with the gap")
    add("--prompt", help="what to write there (default: fill in what is missing); - reads standard input")
    add("--system", help="a system turn before it")
    add("--raw", action="store_true", help="take the prompt as it is, without the chat template")
    add("--gap", type=gap_lengths_argument, metavar="N[,N…]", help="tokens of each gap (default: searched)")
    add("--heal", action="store_true", help="a token next to a gap may become a longer one that holds its text")
    add("--gap-only", action="store_true", help="print the gaps, not the whole text")
    add_output(add)
    add_ask(parser, modes=False)
    add_model(parser)
    return parser


@dataclass(frozen=True)
class Given:
    """What the flags name, read before anything is loaded."""

    texts: list[str]  # around the gaps
    lengths: list[int] | None  # of the gaps; None: searched
    prompt: str
    files: dict[str, str]  # argument -> the file that it was taken for


def read(options: argparse.Namespace) -> Given:
    from .infill import MARK, around, fill_prompt, gap_lengths

    check_ask(options)
    given = {"TEXT": options.text, "--prefix": options.prefix, "--suffix": options.suffix}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        raise Mistake("there is nothing to fill: give a text with <fill> marks, or --prefix and --suffix")
    if options.text is not None and len(names) > 1:
        raise Mistake(f"TEXT and {names[1]} are two ways to say what is there: give one")
    if options.raw and (options.prompt is None or options.system is not None):
        raise Mistake("--raw needs --prompt, which comes before the text, and has no turns: leave out --system")
    if options.text not in (None, "-") and MARK not in options.text and not os.path.isfile(options.text):
        text = f"{options.text[:60]!r} is no file, and no text with a {MARK} mark"
        raise Mistake(f"{text}: put one where something is missing")
    if [options.prompt, *given.values()].count("-") > 1:
        raise Mistake("standard input can be read once: give - in one place")
    files = {name: given[name] for name in names if os.path.isfile(given[name])}
    texts = around(*(_text(value) for value in given.values()))
    prompt = fill_prompt(texts) if options.prompt is None else read_prompt(options.prompt, raw=options.raw)
    return Given(texts, gap_lengths(options.gap, len(texts) - 1), prompt, files)


def _text(value: str | None) -> str | None:
    if value == "-":
        return read_stdin()
    return read_file(value) if value is not None and os.path.isfile(value) else value


def encode_prompt(options: argparse.Namespace, prompt: str, tokenizer: Tokenizer) -> list[int]:
    from ..tokens.messages import prompt_tokens

    return raw_tokens(tokenizer, prompt) if options.raw else prompt_tokens(tokenizer, prompt, system=options.system)


def fill(options: argparse.Namespace) -> None:
    given = read(options)
    model, tokenizer, sampling = opened(NAME, options)
    from .infill import Infill

    prompt, how = encode_prompt(options, given.prompt, tokenizer), ask(options, sampling)
    request = Infill(prompt=prompt, texts=given.texts, lengths=given.lengths, heal=options.heal, ask=how)
    filled, numbers = fill_gaps(model, tokenizer, request, options.watch)
    if options.json:
        numbers |= {"text": filled.text, "seed": options.seed, "model": options.model or "tiny"}
        print(json.dumps(asdict(filled) | numbers, ensure_ascii=False))
        return
    print_exactly("\n".join(filled.gaps) if options.gap_only else filled.text)
    files = "".join(f"; {name} is the file {file}" for name, file in given.files.items())
    print_summary(filled, numbers["seconds"], files)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: fill(options))


if __name__ == "__main__":
    sys.exit(main())
