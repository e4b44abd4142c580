"""What `fill` and `edit` do alike: run a request, with its canvas on a terminal; print its text; tell its numbers."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from .command import CUT, waiting

if TYPE_CHECKING:
    from ..fill.infill import Filled, Infill
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer
    from ..writing.writing import Step
    from .watch import Watch


def add_output(add) -> None:
    add("--watch", action="store_true", help="show the canvas while lengths are searched and the gap settles")
    add("--json", action="store_true", help="print one JSON object instead of text")


def fill_gaps(
    model: DiffusionModel, tokenizer: Tokenizer, request: Infill, watched: bool
) -> tuple[Filled, dict[str, Any]]:
    """Fills the gaps of `request`. Returns the result, and the numbers of the run. On a terminal the canvas is drawn
    if it is to be `watched`: of the lengths that are searched side by side, the likeliest."""
    from ..fill.infill import infill

    canvas: Watch | None = None

    def show(step: Step) -> None:
        if canvas and step.request == 0:
            canvas.show_all(step)

    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if watched and sys.stderr.isatty():
            from .watch import Watch

            canvas = stack.enter_context(Watch(tokenizer, request.schedule().max_denoising_steps))
        else:
            stack.enter_context(waiting("filling"))
        [filled] = infill(model, tokenizer, [request], show=show)
    return filled, {"seconds": time.perf_counter() - start, "peak_memory": model.peak_memory()}


def print_exactly(text: str) -> None:
    """Prints to the byte, but for a terminal, whose next line should not begin behind it."""
    print(text, end="\n" if sys.stdout.isatty() and text and not text.endswith("\n") else "", flush=True)


def print_summary(filled: Filled, seconds: float, more: str) -> None:
    for note in filled.notes:
        print(note, file=sys.stderr)
    lengths = ", ".join(map(str, filled.lengths))
    tried = f" (of {sum(map(len, filled.tried))} lengths tried)" if filled.tried else ""
    steps = ", ".join(map(str, filled.steps))
    print(
        f"{lengths} tokens{tried} in {steps} steps, {filled.passes} canvases looked at in {seconds:.2f} s, "
        f"entropy left {filled.entropy:.3f}{CUT.get(filled.finish_reason, '')}{more}",
        file=sys.stderr,
    )
