"""`python -m mlx_dgemma.edit`: lines of a file and what to do to them in, a diff out."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..terminal.command import Parser, at_least, read_file, read_prompt, run
from ..terminal.filling import add_output, fill_gaps, print_exactly, print_summary
from ..terminal.options import add_ask, add_model, ask, check_ask, number, opened

if TYPE_CHECKING:
    from ..fill.edit import Lines

NAME = "mlx_dgemma.edit"
FILE_MARK = "<file>"


def share(text: str) -> float:
    """An argparse type."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"need a number from 0 to 1, got {text!r}")
    return value


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
    add("--prompt", required=True, help=f"what to do; {FILE_MARK} in it is the whole file; - reads standard input")
    add("--system", help="a system turn before it")
    add("--strength", type=share, default=0.75, metavar="F", help="share of the old lines that is noise at first")
    add("--gap", type=at_least(1), metavar="N", help="tokens that the lines become (default: searched)")
    add("--write", action="store_true", help="change the file, too")
    add_output(add)
    add_ask(parser, modes=False)
    add_model(parser)
    return parser


@dataclass(frozen=True)
class Source:
    """A file, read before anything is loaded."""

    path: str
    text: str
    lines: Lines
    prompt: str


def read(options: argparse.Namespace) -> Source:
    from ..fill.edit import cut

    check_ask(options)
    text = read_file(options.file)
    lines = cut(text, *options.lines, options.file)
    return Source(options.file, text, lines, read_prompt(options.prompt).replace(FILE_MARK, text))


def write_back(source: Source, text: str) -> None:
    """Writes the file. Mistake where it is no longer what was read."""
    from ..fill.edit import write

    if read_file(source.path) != source.text:
        raise Mistake(f"{source.path} was changed by another program meanwhile, and is left as it is: try again")
    write(Path(source.path), text)


def edit(options: argparse.Namespace) -> None:
    source = read(options)
    model, tokenizer, sampling = opened(NAME, options)
    from ..fill.edit import change, unified_diff
    from ..tokens.messages import prompt_tokens

    request = change(
        tokenizer,
        source.lines,
        prompt=prompt_tokens(tokenizer, source.prompt, system=options.system),
        ask=ask(options, sampling),
        length=options.gap,
        strength=options.strength,
    )
    filled, numbers = fill_gaps(model, tokenizer, request, options.watch)
    new = source.lines.with_new(filled.gaps[0])
    diff = unified_diff(source.text, new, source.path)
    written = bool(options.write and diff)
    if written:
        write_back(source, new)
    if options.json:
        numbers |= {"diff": diff, "text": new, "written": written}
        numbers |= {"seed": options.seed, "model": options.model or "tiny"}
        print(json.dumps(asdict(filled) | numbers, ensure_ascii=False))
        return
    print_exactly(diff)
    print_summary(filled, numbers["seconds"], "" if diff else "; nothing changed")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: edit(options))


if __name__ == "__main__":
    sys.exit(main())
