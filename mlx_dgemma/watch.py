"""The canvas as it settles, redrawn in a terminal: accepted positions bright, the others dim."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from .diffusion import Step
from .tokenizer import Tokenizer

ACCEPTED, UNSETTLED = "bold", "dim italic yellow"
EMPTY = "·"  # a special token, such as those that fill the canvas behind the answer


class Watch:
    """A context manager; draws on stderr and takes its drawing away again, so that stdout has the text alone."""

    def __init__(self, tokenizer: Tokenizer, max_denoising_steps: int, console: Console | None = None):
        self.tokenizer = tokenizer
        self.max_denoising_steps = max_denoising_steps
        # rich would catch what is printed meanwhile, and colour it.
        keep_out = {"redirect_stdout": False, "redirect_stderr": False}
        self.live = Live(console=console or Console(stderr=True), transient=True, auto_refresh=False, **keep_out)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_) -> None:
        self.clear()

    def show(self, step: Step) -> None:
        self.live.start()
        self.live.update(self.picture(step), refresh=True)

    def clear(self) -> None:
        """Take the drawing away: text that is printed next stands where it was."""
        self.live.stop()

    def picture(self, step: Step) -> Group:
        canvas = Text()
        tokens = zip(step.draft.tolist(), step.accepted.tolist(), strict=True)
        for accepted, run in groupby(tokens, key=lambda token: token[1]):
            canvas.append(self._text([token for token, _ in run]), ACCEPTED if accepted else UNSETTLED)
        settled = f"{int(step.accepted.sum())} of {len(step.accepted)} accepted"
        status = f"block {step.block + 1}  step {step.step + 1} of at most {self.max_denoising_steps}  {settled}"
        return Group(canvas, Text(f"{status}  entropy {step.entropy.mean():.3f}", style="cyan"))

    def _text(self, tokens: list[int]) -> str:
        """Neighbours are decoded together: a character may be spread over several tokens."""
        parts = []
        for special, run in groupby(tokens, key=lambda token: self.tokenizer.piece(token) is None):
            own = list(run)
            parts.append(EMPTY * len(own) if special else self.tokenizer.decode(own))
        return "".join(parts)
