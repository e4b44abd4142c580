"""Processes without the second that a start takes: each is forked from one that has imported what it runs.

It runs as `python -m module …` or `python file.py …` do, to Python's own end. Only its start is another, so what is
held of a start needs a true one. Without Linux each start is true: a Mac's frameworks outlive no fork.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
MLX = ("mlx_dgemma.mlx_backend.load", "mlx_dgemma.tokens.sandbox", "jsonschema", "psutil")
TORCH = ("mlx_dgemma.torch_backend.load", *MLX[1:])


def start(*arguments: str, imports: Sequence[str] = MLX, **streams) -> Started:
    """Start `python` with these arguments. `imports`: modules that it needs beside what it runs. `streams`: stdin,
    stdout, stderr and env, as subprocess.Popen has them, but that there is no stdin unless one is given; `terminal`: it
    takes that which stdin is."""
    if sys.platform == "linux":
        return Forked(arguments, imports, **streams)
    terminal = streams.pop("terminal", False)
    streams = {"stdin": DEVNULL, "text": True, "start_new_session": terminal} | streams
    return subprocess.Popen([sys.executable, *arguments], preexec_fn=take_terminal if terminal else None, **streams)


def run(*arguments: str, typed: bytes | None = None, **more) -> subprocess.CompletedProcess:
    """Start it with a pipe on stdin that brings `typed`, and wait for its end."""
    if typed is not None:
        more["stdin"], writing = os.pipe()
        os.write(writing, typed)
        os.close(writing)
    process = start(*arguments, **{"stdout": PIPE, "stderr": PIPE} | more)
    if typed is not None:
        os.close(more["stdin"])
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def take_terminal() -> None:
    """Make it the one that Ctrl-C is typed on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@functools.cache
def parent() -> socket.socket:
    """Start the process that others are forked from. -> where it is asked for them; it ends when this is closed."""
    ours, theirs = socket.socketpair()
    given, environment = [__file__, str(theirs.fileno())], os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    fork = {"pass_fds": [theirs.fileno()], "start_new_session": True, "env": environment}
    started = subprocess.Popen([sys.executable, *given], **fork)
    theirs.close()
    atexit.register(lambda: (ours.close(), started.wait()))
    return ours


class Forked:
    """What subprocess.Popen is. What goes to a PIPE is read by `communicate`."""

    def __init__(
        self, arguments: Sequence[str], imports: Sequence[str], *, stdin: int | IO = DEVNULL,
        stdout: int | IO | None = None, stderr: int | IO | None = None, env: Mapping[str, str] | None = None,
        terminal: bool = False,
    ):  # fmt: skip
        self.args, self.returncode = arguments, None
        self.outputs = [tempfile.TemporaryFile() if to == PIPE else None for to in (stdout, stderr)]  # noqa: SIM115
        about = {"arguments": arguments, "imports": imports, "terminal": terminal, "cwd": os.getcwd()}
        data = json.dumps(about | {"env": dict(env or os.environ)}).encode()
        self.connection, theirs = socket.socketpair()
        with open(os.devnull, "r+b") as null:
            streams = [stdin, self.outputs[0] or stdout, self.outputs[1] or stderr]
            streams = [number if to is None else null if to == DEVNULL else to for number, to in enumerate(streams)]
            numbers = [to if isinstance(to, int) else to.fileno() for to in (*streams, theirs)]
            socket.send_fds(parent(), [len(data).to_bytes(8)], numbers)
        parent().sendall(data)
        theirs.close()
        self.pid = self._number()

    def _number(self) -> int:
        data = self.connection.recv(8)
        assert data, "it could not be forked"
        return int.from_bytes(data)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(self._number())
            self.connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)

    def communicate(self, timeout: float | None = None) -> list[str | None]:
        self.wait(timeout)
        return [file and (file.seek(0), file.read().decode())[1] for file in self.outputs]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Started = Forked | subprocess.Popen


def asked(asking: socket.socket) -> dict | None:
    """Fork a process each time one is asked for. -> what is to be run, in that process; None here, in the end."""
    while True:
        head, numbers, _, _ = socket.recv_fds(asking, 8, 4)
        if not head:
            return None
        *streams, answering = numbers
        connection = socket.socket(fileno=answering)
        about = json.loads(asking.recv(int.from_bytes(head), socket.MSG_WAITALL))
        for module in about["imports"]:
            importlib.import_module(module)
        if about["arguments"][0] == "-m":
            importlib.import_module(f"{about['arguments'][1]}.__main__")
        assert len(os.listdir("/proc/self/task")) == 1, "a fork would be without the other threads"
        if not os.fork():
            asking.close()
            if tell_of_fork(connection, streams):
                take(streams, about)
                return about
        connection.close()
        for stream in streams:
            os.close(stream)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def tell_of_fork(connection: socket.socket, streams: Sequence[int]) -> bool:
    """Fork, and tell who asked of the start and the end. -> True in the process that was forked."""
    if not (pid := os.fork()):
        connection.close()
        return True
    for stream in streams:
        os.close(stream)
    with suppress(BrokenPipeError):  # who asked may be gone
        connection.sendall(pid.to_bytes(8))
        connection.sendall(os.waitpid(pid, 0)[1].to_bytes(8))
    os._exit(0)


def take(streams: Sequence[int], about: dict) -> None:
    """Make streams, environment and folder those of this process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if about["terminal"]:
        os.setsid()
        take_terminal()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        was = getattr(sys, name)
        stream = open(number, mode, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)
    os.chdir(about["cwd"])
    os.environ.clear()
    os.environ.update(about["env"])


def main(asking: str) -> None:
    if not (about := asked(socket.socket(fileno=int(asking)))):
        return
    first, *rest = about["arguments"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, ""
        sys.modules.pop(f"{rest[0]}.__main__")  # it was imported, and is now run
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], os.path.dirname(first)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
