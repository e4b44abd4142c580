"""What a chat shows: text on stdout as blocks finish; thoughts, notes and the canvas on stderr."""

from collections.abc import Iterator

from rich.console import Console

from ..terminal.command import to_stdout
from ..terminal.watch import Watch
from ..writing.answer import Piece


def note(text: str, style: str = "dim", end: str = "\n") -> None:
    """Prints on stderr, wrapped if it is a whole line on a terminal."""
    console = Console(stderr=True, highlight=False)
    whole = console.is_terminal and end == "\n"
    console.print(text, style=style, end=end, markup=False, emoji=False, soft_wrap=not whole)


def think(text: str) -> None:
    note(text, "dim italic", end="")


def show(pieces: Iterator[Piece], watch: Watch) -> None:
    """Prints text as blocks finish, and thoughts on stderr; in between, the canvas is drawn."""
    with watch:
        last, last_out = "\n", to_stdout
        for piece in pieces:
            for text, out in ((piece.thinking, think), (piece.text, to_stdout)):
                if not text:
                    continue
                if out != last_out:  # a block of thinking stands apart
                    watch.write("thinking:\n" if out == think else "\n" * (2 - last.endswith("\n")), think)
                watch.write(text, out)
                last, last_out = text, out
            watch.show(piece.step)
        watch.write("" if last.endswith("\n") else "\n", last_out)
