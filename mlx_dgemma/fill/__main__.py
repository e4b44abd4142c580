"""`python -m mlx_dgemma.fill`: a text with gaps in, the same text with the gaps filled out."""

import argparse
import sys

from ..errors import Mistake
from ..terminal.command import Parser, at_least, run
from ..terminal.file_or_text import is_file, read_file_or_text
from ..terminal.filling import add_flags, fill_gaps, report
from ..terminal.options import check_ask, encode_prompt, open_model
from ..terminal.prompt import read_prompt
from .gap_length import LENGTHS
from .infill import MARK, Infill, fill_prompt, gap_lengths, texts_around

NAME = "mlx_dgemma.fill"


def numbers_of_tokens(text: str) -> list[int]:
    """An argparse type."""
    return [at_least(1)(part) for part in text.split(",")]


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Fill gaps in a text. What is around them stays.")
    about = "FILE|TEXT is a file of that name, or else the text itself; - reads standard input."
    add = parser.add_argument_group("what to fill", about).add_argument
    add("text", nargs="?", metavar="FILE|TEXT", help="a text with one or more <fill> marks")
    add("--prefix", metavar="FILE|TEXT", help="instead of it: the text before a gap")
    add("--suffix", metavar="FILE|TEXT", help="the text behind that gap; without one, the text ends with the gap")
    add("-p", "--prompt", help="what to write there (default: fill in what is missing); - reads standard input")
    add("--system", "--system-prompt", help="a system turn before it")
    add(
        "--raw",
        "--ignore-chat-template",
        action="store_true",
        help="take the prompt as it is, without the chat template",
    )
    add("--gap", type=numbers_of_tokens, metavar="N[,N…]", help="tokens of each gap (default: searched)")
    add("--tries", type=at_least(1), default=LENGTHS, metavar="N", help="lengths that a search tries at most")
    add("--heal", action="store_true", help="a token next to a gap may become a longer one that holds its text")
    add("--gap-only", action="store_true", help="print the gaps, not the whole text")
    add_flags(parser, add)
    return parser


def check(options: argparse.Namespace, given: dict[str, str]) -> None:
    """Mistake where flags contradict each other. `given`: argument -> its value."""
    check_ask(options)
    if not given:
        raise Mistake("there is nothing to fill: give a text with <fill> marks, or --prefix and --suffix")
    if options.text is not None and len(given) > 1:
        raise Mistake(f"TEXT and {list(given)[1]} are two ways to say what is there: give one")
    if options.raw and (options.prompt is None or options.system is not None):
        raise Mistake("--raw needs --prompt, which comes before the text, and has no turns: leave out --system")
    if options.text not in (None, "-") and MARK not in options.text and not is_file(options.text):
        text = f"{options.text[:60]!r} is no file, and no text with a {MARK} mark"
        raise Mistake(f"{text}: put one where something is missing")
    if [options.prompt, *given.values()].count("-") > 1:
        raise Mistake("standard input can be read once: give - in one place")


def fill(options: argparse.Namespace) -> None:
    arguments = {"TEXT": options.text, "--prefix": options.prefix, "--suffix": options.suffix}
    given = {name: value for name, value in arguments.items() if value is not None}
    check(options, given)
    files = {name: value for name, value in given.items() if is_file(value)}
    contents = {name: read_file_or_text(name, value) for name, value in given.items()}
    texts = texts_around(*(contents.get(name) for name in arguments))
    prompt = fill_prompt(texts) if options.prompt is None else read_prompt(options.prompt, raw=options.raw)
    lengths = gap_lengths(options.gap, len(texts) - 1)
    model, tokenizer, ask = open_model(NAME, options)
    tokens = encode_prompt(tokenizer, options, prompt)
    request = Infill(prompt=tokens, texts=texts, lengths=lengths, heal=options.heal, ask=ask, tries=options.tries)
    filled, numbers = fill_gaps(model, tokenizer, request, options.watch)
    text = "\n".join(filled.gaps) if options.gap_only else filled.text
    named = "".join(f"; {name} is the file {file}" for name, file in files.items())
    report(options, filled, numbers | {"text": filled.text}, text, named)


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: fill(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
