"""What `generate` does where a text is already there: fill its gaps, or change lines of a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..terminal.command import at_least, waiting

if TYPE_CHECKING:
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer
    from ..writing.sampling import Sampling
    from .infill import Filled, Infill

FILL = ("prefix", "suffix", "fill")
OF_FILL, OF_EDIT, OF_BOTH = ("gap_only", "heal"), ("lines", "strength", "write"), ("gap",)
NOT_BOTH = ("prompts", "batch", "out", "watch", "thinking", "json_schema", "template", "choices")
FILE_MARK = "<file>"


def _lengths(text: str) -> list[int]:
    return [at_least(1)(part) for part in text.split(",")]


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"need a number from 0 to 1, got {text!r}")
    return share


def _lines(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise argparse.ArgumentTypeError(f"need FIRST:LAST, such as 10:20, got {text!r}") from None


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "to fill gaps (FILE|TEXT: a file of that name, or else the text itself)"
    ).add_argument
    add("--prefix", metavar="FILE|TEXT", help="what is before the gap")
    add("--suffix", metavar="FILE|TEXT", help="what is behind it; without one, the text ends with the gap")
    add("--fill", metavar="FILE|TEXT", help="a text with one or more <fill> marks, instead of these two")
    add("--gap", type=_lengths, metavar="N[,N...]", help="tokens of each gap (default: searched)")
    add("--gap-only", action="store_true", help="print what the gaps say, not the whole text")
    add("--heal", action="store_true", help="a token next to a gap may become a longer one that holds its text")
    add = parser.add_argument_group("to change lines of a file; prints a diff").add_argument
    add("--edit", metavar="FILE", help="the file; --prompt says what to do, and shows all of it where it says <file>")
    add("--lines", type=_lines, metavar="FIRST:LAST", help="which lines may change, counted from 1")
    add("--strength", type=_share, metavar="F", help="share of the old lines that is noise at first (default: 0.75)")
    add("--write", action="store_true", help="change the file, too")


def asked(options: argparse.Namespace) -> bool:
    names = (*FILL, *OF_FILL, *OF_EDIT, *OF_BOTH, "edit")
    return any(getattr(options, name) not in (None, False) for name in names)


def check(options: argparse.Namespace) -> None:
    """Which options go together, and what they name. Before anything is loaded: what was read is kept in `options`."""

    def given(*names: str) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]

    fill = given(*FILL)
    if not fill and options.edit is None:
        raise Mistake(
            f"{given(*OF_FILL, *OF_EDIT, *OF_BOTH)[0]} needs a text: give --prefix and --suffix, --fill or --edit"
        )
    if (fill and options.edit is not None) or (options.fill is not None and len(fill) > 1):
        raise Mistake(f"{fill[0]} and {(given('edit') or fill[1:])[-1]} are two ways to say what is there: give one")
    apart = (*NOT_BOTH, *(OF_EDIT if fill else OF_FILL))
    if wrong := given(*apart):
        raise Mistake(f"{wrong[0]} does not go with {fill[0] if fill else '--edit'}: leave one of them out")
    if options.edit is not None and (options.lines is None or options.prompt is None):
        raise Mistake("--edit needs --lines FIRST:LAST and --prompt TEXT: which lines to change, and what to do")
    if options.raw and options.prompt is None:
        raise Mistake("--raw needs --prompt: what comes before the text")
    if [options.prompt, *(getattr(options, name) for name in FILL)].count("-") > 1:
        raise Mistake("standard input can be read once: give - in one place")
    (_read_fill if options.edit is None else _read_edit)(options)


def _read_fill(options: argparse.Namespace) -> None:
    from .infill import around, fill_prompt, gap_lengths

    given = {name: getattr(options, name) for name in FILL}
    options.texts = around(**{name: value if value is None else _text(value) for name, value in given.items()})
    options.gap = gap_lengths(options.gap, len(options.texts) - 1)
    if options.prompt is None:
        options.prompt = fill_prompt(options.texts)


def _read_edit(options: argparse.Namespace) -> None:
    from .edit import cut, read_text

    options.text = read_text(options.edit)
    options.cut = cut(options.text, *options.lines, options.edit)
    options.prompt = (_stdin() if options.prompt == "-" else options.prompt).replace(FILE_MARK, options.text)


def _stdin() -> str:
    from .edit import as_text

    return as_text(sys.stdin.buffer.read(), "standard input")


def _text(value: str) -> str:
    """A file's, standard input's for "-", or the value itself."""
    from .edit import read_text

    if value == "-":
        return _stdin()
    return read_text(value) if _is_file(value) else value


def _is_file(value: str | None) -> bool:
    return value not in (None, "-") and os.path.isfile(value)


def run(
    options: argparse.Namespace, prompt: list[int], model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling
) -> int:
    """What `check` let pass; `prompt` is that of `options`, in tokens."""
    from .infill import infill

    request = (_infill if options.edit is None else _edit)(options, prompt, tokenizer)
    start = time.perf_counter()
    with waiting("filling" if options.edit is None else "editing"):
        [filled] = infill(model, tokenizer, [request], sampling=sampling)
    seconds = time.perf_counter() - start
    own, text, said = (_filled if options.edit is None else _edited)(options, filled)
    if options.json:
        numbers = {"seconds": seconds, "peak_memory": model.peak_memory(), "seed": options.seed}
        print(json.dumps({**asdict(filled), **own, **numbers, "model": options.model or "tiny"}, ensure_ascii=False))
    else:
        _print(text)
        print(summary(filled, seconds) + said, file=sys.stderr)
    return 0


def _infill(options: argparse.Namespace, prompt: list[int], tokenizer: Tokenizer) -> Infill:
    from .infill import Infill

    return Infill(prompt=prompt, texts=options.texts, lengths=options.gap, heal=options.heal, seed=options.seed)


def _filled(options: argparse.Namespace, filled: Filled) -> tuple[dict, str, str]:
    """For --json; the text to print; what else there is to say."""
    files = [f"; --{name} is the file {getattr(options, name)}" for name in FILL if _is_file(getattr(options, name))]
    return {"text": filled.text}, "\n".join(filled.gaps) if options.gap_only else filled.text, "".join(files)


def _edit(options: argparse.Namespace, prompt: list[int], tokenizer: Tokenizer) -> Infill:
    from .edit import change

    given = {} if options.strength is None else {"strength": options.strength}
    length = options.gap and options.gap[0]
    return change(tokenizer, options.cut, prompt=prompt, length=length, seed=options.seed, **given)


def _edited(options: argparse.Namespace, filled: Filled) -> tuple[dict, str, str]:
    from .edit import read_text, unified_diff, write

    new = options.cut.with_new(filled.gaps[0])
    diff = unified_diff(options.text, new, options.edit)
    written = bool(options.write and diff)
    if written:
        if read_text(options.edit) != options.text:
            raise Mistake(f"{options.edit} was changed by another program meanwhile, and is left as it is: try again")
        write(Path(options.edit), new)
    return {"diff": diff, "text": new, "written": written}, diff, "" if diff else "; nothing changed"


def _print(text: str) -> None:
    """To the byte, but for a terminal, whose next line should not begin behind it."""
    print(text, end="\n" if sys.stdout.isatty() and text and not text.endswith("\n") else "", flush=True)


def summary(filled: Filled, seconds: float) -> str:
    lengths = ", ".join(map(str, filled.lengths))
    tried = f" (of {sum(map(len, filled.tried))} lengths tried)" if filled.tried else ""
    steps = ", ".join(map(str, filled.steps))
    return (
        f"{lengths} tokens{tried} in {steps} steps, {filled.passes} canvases looked at in {seconds:.2f} s, "
        f"entropy left {filled.entropy:.3f}"
    )
