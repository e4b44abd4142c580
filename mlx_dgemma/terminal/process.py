"""The process of a command: streams that are closed or lack a character, signals, a terminal left in order."""

import codecs
import io
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TextIO

from ..errors import Mistake
from ..ranks import ending

TIDY = "\x1b[?25h\x1b[?2004l"  # shows the cursor, ends bracketed paste


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Writes what an encoding lacks as JSON does, so a document stays one: é as \u00e9. A byte of a file's name that
    was no UTF-8 is that byte again."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.start + 1


codecs.register_error("mlx_dgemma.escape", _escape)


@contextmanager
def prepared() -> Iterator[None]:
    """Prepares streams and signals for a command, and leaves the terminal as it was. SystemExit: SIGTERM, SIGHUP.
    Mistake: standard output is closed."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mlx_dgemma.escape")
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:  # nohup's are ignored, and stay so
            signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what `mlx_dgemma.early` set
    modes = _terminal_modes()
    ending.before.append(partial(_tidy, modes))  # where another rank is gone, this one does not come to the end
    try:
        yield
    finally:
        ending.before.pop()()
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_closed() -> None:
    """Opens /dev/null where a standard stream is closed: a file of ours must not take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise Mistake("standard output is closed: leave it open, or redirect it to a file")


def _end(number: int, _) -> None:
    """Ends the process as an exception does, so that what is open is closed. Signals that follow change nothing."""
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGHUP:  # the terminal is gone
        for stream in (1, 2):
            if os.isatty(stream):
                mute(stream)
    raise SystemExit(128 + number)


def mute(stream: int) -> None:
    """Lets what is written to file number `stream` go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream)
    os.close(null)


def are_one(left: TextIO, right: TextIO) -> bool:
    """True if both go to the same file, pipe or terminal."""
    with suppress(OSError, ValueError):  # they may be no files at all
        return os.path.samestat(os.fstat(left.fileno()), os.fstat(right.fileno()))
    return False


def is_terminal(*streams: io.TextIOBase | None) -> bool:
    return all(stream is not None and stream.isatty() for stream in streams)


def _terminal_modes() -> list | None:
    with suppress(termios.error):
        return termios.tcgetattr(0)
    return None


def _tidy(modes: list | None) -> None:
    with suppress(OSError, ValueError, termios.error):
        if is_terminal(sys.stderr):
            print(TIDY, end="", file=sys.stderr, flush=True)
        if modes and modes != _terminal_modes() and os.tcgetpgrp(0) == os.getpgrp():  # else it would be stopped
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
