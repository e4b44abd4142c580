"""The commands `fill` and `edit` share this: flags, the run with its canvas on a terminal, and the report."""

import argparse
import sys
import time
from dataclasses import asdict
from typing import Any

from ..fill.infill import Filled, Infill, infill
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.writing import Step
from .command import CUT, note, to_stdout, waiting
from .options import add_ask, add_model, add_shown, to_json
from .process import are_one, is_terminal
from .watch import Watch


def add_flags(parser: argparse.ArgumentParser, add) -> None:
    add_shown(parser, add, "show the canvas while lengths are searched and the gap settles")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_ask(parser, modes=False)
    add_model(parser)
    parser.set_defaults(raw=False, thinking=False)


def fill_gaps(
    model: DiffusionModel, tokenizer: Tokenizer, request: Infill, watched: bool
) -> tuple[Filled, dict[str, Any]]:
    """Fills the gaps of `request`. Returns the result, and the numbers of the run. On a terminal the canvas is drawn
    if it is to be `watched`: of the lengths that are searched side by side, the likeliest."""
    drawn, start = watched and is_terminal(sys.stderr), time.perf_counter()
    watch = Watch(tokenizer, request.schedule().max_denoising_steps, drawn=drawn)

    def show(step: Step) -> None:
        if step.request == 0:
            watch.show(step, finished_too=True)

    with watch if drawn else waiting("filling"):
        [filled] = infill(model, tokenizer, [request], show=show)
    return filled, {"seconds": time.perf_counter() - start, "peak_memory": model.peak_memory()}


def report(options: argparse.Namespace, filled: Filled, numbers: dict[str, Any], text: str, more: str) -> None:
    """Prints `text`, and `more` behind the line of numbers; or with --json `numbers` alone."""
    if options.json:
        to_stdout(to_json(options, asdict(filled) | numbers) + "\n")
        return
    # To the byte, but where another line comes behind it: on a terminal, or of numbers in the same file.
    followed = is_terminal(sys.stdout) or (not options.quiet and are_one(sys.stdout, sys.stderr))
    to_stdout(text + "\n" * (followed and text[-1:] not in ("", "\n")))
    if options.quiet:
        return
    tried = f" (of {sum(map(len, filled.tried))} lengths tried)" if filled.tried else ""
    lengths, steps = (", ".join(map(str, counts)) for counts in (filled.lengths, filled.steps))
    note(
        *filled.notes,
        f"{lengths} tokens{tried} in {steps} steps, {filled.passes} canvases looked at in {numbers['seconds']:.2f} s, "
        f"entropy left {filled.entropy:.3f}{CUT.get(filled.finish_reason, '')}{more}",
    )
