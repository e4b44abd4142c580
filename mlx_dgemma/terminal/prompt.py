"""The prompt of a command: as it is typed, from standard input, or what is piped in behind it."""

import os
import select
import stat
import sys

from ..errors import Mistake
from ..fill.line_ends import BOM, normalized
from .command import note, read
from .process import is_terminal

PATIENCE = 3.0  # seconds for a pipe beside a prompt to send anything: whoever starts us may hold one open for nothing


def read_prompt(prompt: str, *, raw: bool = False) -> str:
    """Returns the prompt, or standard input for "-". Mistake where it is empty; if it is `raw`, blanks are a prompt."""
    if prompt == "-" and is_terminal(sys.stdin):
        note("type the prompt, then Ctrl-D on a line of its own")
    text = _standard_input(raw) if prompt == "-" else prompt if raw else normalized(prompt)
    if not (text if raw else text.strip()):
        raise Mistake("the prompt is empty: say what you want")
    return text


def _standard_input(raw: bool) -> str:
    """Returns what comes there; but if it is `raw`, without the line end behind it, which `echo` and editors add."""
    text = read("-").removeprefix(BOM)
    return text if raw else normalized(text).removesuffix("\n")


def read_with_pipe(prompt: str | None, name: str, *, raw: bool = False) -> str:
    """Returns the prompt with what is piped in behind it, or what is piped in where there is none. `name`: the
    command's, for a line about it. A `raw` prompt stays as it is."""
    if prompt == "-" or (raw and prompt is not None):
        return read_prompt(prompt, raw=raw)
    piped = _standard_input(raw) if _is_piped(prompt is not None) else ""
    if prompt is None:
        if not piped.strip():
            raise Mistake('there is no prompt: give it as an argument, by --prompt "…", or through a pipe')
        return piped
    asked = read_prompt(prompt)
    if not piped.strip():
        return asked
    note(f"{name}: {len(piped)} characters of standard input are read behind the prompt")
    return f"{asked}\n\n{piped}"


def _is_piped(beside: bool) -> bool:
    """Returns whether standard input is a file or a pipe that sends something. A pipe `beside` a prompt is waited for a
    while, and left alone if it does not."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or none that is a file
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return stat.S_ISREG(mode)
    if not beside or select.select([descriptor], [], [], PATIENCE)[0]:
        return True
    note(f"standard input sent nothing for {PATIENCE:.0f} s and is left alone; --prompt - waits for it")
    return False
