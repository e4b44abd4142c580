"""A command on a terminal of its own, and the lines that a terminal shows."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
import time

import forked


class Pty:
    """Runs `python -m module`, 24 lines of 90 characters; Ctrl-C is typed as `b"\\x03"`."""

    def __init__(self, module: str, *arguments: str, **environment: str):
        self.ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.ours, (24, 90))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs)
        environment = {**os.environ, "TERM": "xterm", **environment}
        self.process = forked.start("-m", module, *arguments, env=environment, terminal=True, **streams)

    def __enter__(self) -> Pty:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours), os.close(self.theirs)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, words: bytes, seconds: float = 60) -> bytes:
        """What comes until `words` do."""
        seen, end = b"", time.monotonic() + seconds
        while words not in seen:
            ready, _, _ = select.select([self.ours], [], [], max(0, end - time.monotonic()))
            assert ready, seen
            seen += os.read(self.ours, 4096)
        return seen


def lines_shown(written: str) -> list[str]:
    """The lines that a terminal shows after these codes, of which rich writes four: erase a line, go a line up, colours
    and cursor."""
    lines, row, column = [""], 0, 0
    for code in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if code == "\n":
            row, column = row + 1, 0  # as a terminal's driver does, back to the first column
            lines += [""] * (row == len(lines))
        elif code == "\r":
            column = 0
        elif code == "\x1b[2K":
            lines[row] = ""
        elif code == "\x1b[1A":
            assert row, "above the first line"
            row -= 1
        elif not code.startswith("\x1b"):
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + code + line[column + len(code) :], column + len(code)
    return [line for line in lines if line]
