"""The canvas as it settles, redrawn in a terminal: accepted positions bright, the others dim."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import groupby

from rich.console import Console, Group
from rich.text import Text

from ..tokens.tokenizer import Tokenizer
from ..writing.writing import Step
from .live import Live

ACCEPTED, UNSETTLED = "bold", "dim italic yellow"
EMPTY = "·"  # a special token, such as those that fill the canvas behind the answer
CONTROL = dict.fromkeys([*range(9), *range(11, 32), 127], EMPTY)  # noise must not steer the terminal
Print = Callable[[str], None]


class Watch(AbstractContextManager):
    """A context manager that draws on stderr, and takes its drawing away again: stdout has the text alone.

    A drawing needs lines to itself. So the last line of a text that goes on is held, and shown before the canvas.
    Where nothing is to be `drawn`, text is printed as it comes.
    """

    def __init__(self, tokenizer: Tokenizer, max_steps: int, console: Console | None = None, *, drawn: bool = True):
        self.tokenizer, self.max_steps, self.drawn = tokenizer, max_steps, drawn
        self.console = console or Console(stderr=True)
        self.live: Live | None = None
        self.line, self.print = "", print

    def __exit__(self, *_) -> None:
        self._release()

    def show(self, step: Step, *, finished_too: bool = False) -> None:
        """Draws the canvas of a block in progress. When it is done its text is printed, so only a held line stays;
        unless a finished canvas is to be drawn, too."""
        if not self.drawn:
            return
        if self.live is None:  # a new one: started again, rich's would take away as many lines as it once had
            # rich would catch what is printed meanwhile, and colour it.
            keep_out = {"redirect_stdout": False, "redirect_stderr": False}
            self.live = Live(console=self.console, transient=True, auto_refresh=False, **keep_out)
            self.live.start()
        self.live.update(self.picture(step) if finished_too or not step.final else self._held(), refresh=True)

    def write(self, text: str, out: Print) -> None:
        """Prints text by `out`, which adds no newline, where the drawing was."""
        if not self.drawn:
            out(text)
            return
        if text and out != self.print:
            self._release()
            self.print = out
        lines, end, self.line = (self.line + text).rpartition("\n")
        if end:
            self._clear()
            out(lines + end)

    def _clear(self) -> None:
        """Takes the drawing away: text that is printed next stands where it was."""
        if self.live:
            self.live.stop()
        self.live = None

    def _release(self) -> None:
        """Takes the drawing away, and prints the line that was held."""
        self._clear()
        if self.line:
            self.print(self.line)
        self.line = ""

    def _held(self) -> Text:
        return Text(self.line[-3 * self.console.width :])

    def picture(self, step: Step) -> Group:
        canvas = self._held()
        tokens = zip(step.draft.tolist(), step.accepted.tolist(), strict=True)
        for accepted, run in groupby(tokens, key=lambda token: token[1]):
            canvas.append(self._text([token for token, _ in run]), ACCEPTED if accepted else UNSETTLED)
        settled = f"{int(step.accepted.sum())} of {len(step.accepted)} accepted"
        status = f"block {step.block + 1}  step {step.step + 1} of at most {self.max_steps}  {settled}"
        return Group(canvas, Text(f"{status}  entropy {step.entropy.mean():.3f}", style="cyan"))

    def _text(self, tokens: list[int]) -> str:
        """Neighbours are decoded together: a character may be spread over several tokens."""
        parts = []
        for special, group in groupby(tokens, key=lambda token: self.tokenizer.piece(token) is None):
            ids = list(group)
            parts.append(EMPTY * len(ids) if special else self.tokenizer.decode(ids).translate(CONTROL))
        return "".join(parts)
