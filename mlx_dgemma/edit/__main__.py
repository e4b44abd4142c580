"""`python -m mlx_dgemma.edit`: lines of a file and what to do to them in, a diff out."""

import argparse
import sys
from pathlib import Path

from ..errors import Mistake
from ..fill.edit import change, cut, unified_diff
from ..fill.line_ends import normalized
from ..terminal.command import Parser, at_least, read, run
from ..terminal.filling import add_flags, fill_gaps, report
from ..terminal.options import check_ask, encode_prompt, open_model
from ..terminal.prompt import read_prompt
from . import target

NAME = "mlx_dgemma.edit"
FILE_MARK = "<file>"


def share(text: str) -> float:
    """An argparse type."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"need a number from 0 to 1, got {text!r}")
    return float(text)


def line_range(text: str) -> tuple[int, int]:
    """An argparse type."""
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise argparse.ArgumentTypeError(f"need FIRST:LAST, such as 10:20, got {text!r}") from None


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Change lines of a file in place. Prints a diff.")
    add = parser.add_argument_group("what to change").add_argument
    add("file", metavar="FILE", help="a text in UTF-8")
    add("--lines", type=line_range, required=True, metavar="FIRST:LAST", help="lines that may change, counted from 1")
    prompt = f"what to do; {FILE_MARK} in it is the whole file; - reads standard input"
    add("-p", "--prompt", required=True, help=prompt)
    add("--system", "--system-prompt", help="a system turn before it")
    add("--strength", type=share, default=0.75, metavar="F", help="share of the old lines that is noise at first")
    add("--gap", type=at_least(1), metavar="N", help="tokens that the lines become (default: searched)")
    add("--write", action="store_true", help="change the file, too")
    add_flags(parser, add)
    return parser


def edit(options: argparse.Namespace) -> None:
    check_ask(options)
    path = options.file
    if path == "-":
        raise Mistake("FILE is -, and standard input cannot be changed: give a file")
    target.check(Path(path), to_write=options.write)
    text = read(path)
    lines = cut(text, *options.lines, path)
    prompt = read_prompt(options.prompt).replace(FILE_MARK, normalized(text))
    model, tokenizer, ask = open_model(NAME, options)
    tokens = encode_prompt(tokenizer, options, prompt)
    request = change(tokenizer, lines, prompt=tokens, ask=ask, length=options.gap, strength=options.strength)
    filled, numbers = fill_gaps(model, tokenizer, request, options.watch)
    new = lines.with_new(filled.gaps[0])
    diff = unified_diff(text, new, path)
    written = bool(options.write and diff) and filled.finish_reason != "deadline"
    if written and read(path) != text:
        raise Mistake(f"{path} was changed by another program meanwhile, and is left as it is: try again")
    if written:
        target.write(Path(path), text, new)
    numbers |= {"diff": diff, "text": new, "written": written}
    left = "" if written or not options.write else "; the deadline came first, so the file is left as it is"
    report(options, filled, numbers, diff, left if diff else "; nothing changed")


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: edit(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
