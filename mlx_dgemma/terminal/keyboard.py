"""The keyboard: a line editor on a terminal, plain lines from a pipe; and Ctrl-C while the model works."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession, completion
from prompt_toolkit.completion import CompleteEvent, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from ..errors import Mistake

Commands = Mapping[str, Sequence[str] | type[Path]]  # name -> the words that may follow it, or Path for any path


class Completer(completion.Completer):
    """Completes commands, and words or paths behind them."""

    def __init__(self, commands: Commands):
        self.commands = commands

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        name, space, argument = document.text_before_cursor.partition(" ")
        following = self.commands.get(name, ()) if space else list(self.commands)
        path = following is Path
        completer = PathCompleter(expanduser=True) if path else WordCompleter(following, sentence=True)
        yield from completer.get_completions(Document(argument if space else name), event)


def line_editor(commands: Commands) -> Callable[[str], str]:
    """Returns a function: prompt -> what is typed. EOFError: Ctrl-D. KeyboardInterrupt: Ctrl-C, which throws that away.

    It has history, search (Ctrl-R), completion of commands (Tab) and an editor (Ctrl-X Ctrl-E). A paste is one text,
    whatever lines it has, and Alt-Enter begins a new line.
    """
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.newline(copy_margin=False))
    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=Completer(commands),
        complete_while_typing=False,
        enable_open_in_editor=True,
        enable_suspend=True,
        key_bindings=keys,
    )
    return lambda prompt: session.prompt(prompt, prompt_continuation=" " * len(prompt))


def state_folder() -> Path:
    """Returns the folder for what sessions leave to each other. OSError, RuntimeError (there is no home): there is
    none."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = home / "mlx_dgemma"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _history() -> History:
    """Returns the history of all sessions, where it can be kept from other users of the machine."""
    try:
        path = state_folder() / "chat_history"
        path.touch(mode=0o600)
        path.chmod(0o600)  # an older file may have other permissions
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return FileHistory(str(path))


def line_of_pipe(_: str) -> str:
    """Returns what comes next on standard input; a line that ends with a backslash goes on. EOFError: nothing."""
    if sys.stdin is None:
        raise EOFError
    lines = []
    while raw := sys.stdin.buffer.readline():
        try:
            line = raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise Mistake(f"standard input is not UTF-8: {raw[:40]!r}; convert it first") from None
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            break
    if not lines:
        raise EOFError
    return "\n".join(lines)


class Interrupt:
    """A context manager in which Ctrl-C sets `asked` and raises nothing: whoever looks at it between two passes breaks
    none of them off."""

    asked = False

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_) -> None:
        self.asked = True

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._before)
