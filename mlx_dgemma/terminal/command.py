"""Commands share this: one line and exit code 2 for a mistake, 130 for Ctrl-C, silence when a pipe is closed."""

import argparse
import codecs
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.spinner import Spinner

from ..checkpoint.hub import is_hub_id
from ..errors import Mistake, NotFound, reason
from ..load import join_ranks, leave
from ..version import __version__
from .live import Bar, Live
from .process import is_terminal, mute, prepared

LONGEST = 1000  # characters of a mistake
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a disk, or a quota of it
MOST = 2**28  # bytes that are read of a file
# A finish reason -> what a line of numbers says of it.
CUT = {"length": " (cut at the length asked for)", "deadline": " (as it stood at the deadline)"}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        """Shows a default if it is a number or a word."""
        shown = isinstance(action.default, str | int | float) and not isinstance(action.default, bool)
        return super()._get_help_string(action) if shown else action.help


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no abbreviations: a flag added later must not change what an old line means."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_Formatter)
        self.add_argument("--version", action="version", version=f"mlx_dgemma {__version__}")

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """Parses, and writes `--revision R`, of commands that have it, behind the hub id."""
        for argument in sys.argv[1:] if args is None else args:
            if re.fullmatch(r"-\w--|--[\w-]+=--", argument):  # of which argparse makes an empty list
                self.error(f"{argument} has no value")
        options = super().parse_args(args, namespace)
        values = vars(options)
        if revision := values.get("revision"):
            name = "hf_path" if "hf_path" in values else "model"
            if not values[name] or "@" in values[name] or not is_hub_id(values[name]):
                self.error(f"--revision {revision} is of a hub id such as OWNER/NAME, got {values[name]}")
            values[name] += f"@{revision}"
        return options

    def error(self, message: str):
        if "expected one argument" in message:
            message += " (a value that begins with - is given as --flag=VALUE)"
        self.exit(2, f"{self.prog}: {in_a_line(message)}; see --help\n")


def at_least(smallest: int) -> Callable[[str], int]:
    """Makes an argparse type: whole numbers from `smallest` up."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"need a whole number >= {smallest}, got {text!r}")
        return int(text)

    return whole


def read(path: str) -> str:
    """Returns a file's text, or standard input for "-", to the byte: no newline is translated. Mistake where it cannot
    be read, is not UTF-8, or holds a zero byte."""
    name = "standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:
        raise Mistake("standard input is closed, so - cannot be read: give a file or a text")
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            data = file.read(MOST + 1)  # a device never ends
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise Mistake(f"{name} cannot be read: {reason(error)}") from None
    if len(data) > MOST:
        raise Mistake(f"{name} is larger than {MOST // 2**20} MB: give a smaller one")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Mistake(f"{name} is UTF-16, not UTF-8: convert it first, as by iconv -f UTF-16 -t UTF-8")
    if (zero := data.find(b"\0")) >= 0:
        raise Mistake(f"{name} is not text: byte 0x00 at offset {zero}; give a text in UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise Mistake(f"{name} is not UTF-8: byte 0x{wrong:02x} at offset {error.start}; convert it first") from None


def check_target(flag: str, path: Path) -> None:
    """Checks that a file can be written there, and leaves nothing behind. Mistake where it cannot."""
    new = not os.path.lexists(path)
    try:
        if not new and not path.is_file():
            raise Mistake(f"{flag} {path} is no regular file: give the name of one")
        path.open("ab").close()
        if new:
            path.unlink()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, Mistake):
            raise
        raise Mistake(f"{flag} {path} cannot be written: {reason(error)}") from None


def to_stdout(text: str) -> None:
    """Prints text. Mistake where it cannot be written. BrokenPipeError: whoever read it has seen enough."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        mute(sys.stdout.fileno())  # or Python would complain once more when it flushes at exit
        raise Mistake(f"standard output cannot be written: {error.strerror}") from None


def to_stderr(text: str) -> None:
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, or its disk is full: the text on stdout goes on
        mute(sys.stderr.fileno())


def note(*lines: str) -> None:
    for line in lines:
        to_stderr(f"{line}\n")


def on_terminal() -> bool:
    return is_terminal(sys.stdout, sys.stderr)


@contextmanager
def waiting(message: str) -> Iterator[Spinner]:
    """Shows `message` on stderr, if that is a terminal. Yields a spinner, whose `update(text=…)` changes it."""
    console = Console(stderr=True)
    spinner = Spinner("line" if console.options.ascii_only else "dots", message, style="status.spinner")
    with Live(spinner, console=console, refresh_per_second=12.5, transient=True):
        yield spinner


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Says on stderr what is being measured, and then how long it took."""
    to_stderr(f"{name} …")
    start = time.perf_counter()
    try:
        yield
    finally:
        to_stderr(f" {time.perf_counter() - start:.1f} s\n")


@contextmanager
def progress(total: int, done: int = 0, beside: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """Shows a bar on stderr, if that is a terminal and what is written `beside` it goes to none. Yields a function that
    moves it on by one."""
    hidden = not sys.stderr.isatty() or (beside is not None and beside.isatty())
    with Bar(BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), hidden=hidden, aside=False) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda: bar.advance(task)


def in_a_line(message: str) -> str:
    """Returns a message as one line of printable characters, cut in the middle if it is long."""
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(message.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 200]} … {line[-200:]}"


def run(name: str, command: Callable[[], int | None], *, divided: bool = True) -> int:
    """Calls `command` and returns the exit code of the process. Where a model is `divided` over several ranks, those
    that are not the first follow that, whatever the command."""
    try:
        with prepared():
            if divided:
                join_ranks()
            code = command() or 0
            to_stdout("")  # what is still in its buffer
            leave()  # here Ctrl-C is no traceback, as it would be in Python's own end
            return code
    except Mistake as mistake:
        note(f"{name}: {in_a_line(str(mistake))}")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        mute(sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in FULL:
            raise
        note(f"{name}: {error.filename or 'what was to be written'} cannot be written: {error.strerror}")
        with suppress(OSError):
            mute(sys.stdout.fileno())  # or Python would complain once more when it flushes at exit
        return 2
