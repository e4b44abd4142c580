"""The file that `batch --out` writes: new, or one whose every line answers a request of this run, which then goes on.

Each line says by `run` what it was made of: fingerprints of its request, of the model, of the options.
"""

import argparse
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ..errors import Mistake, reason
from ..terminal.command import read
from ..terminal.requests import Request

# What does not change an answer, or is a part of its request.
ELSEWHERE = ("file", "out", "size", "watch", "quiet", "model", "seed", "system", "thinking", "max_tokens")
SAMPLE = 2**20  # bytes of each end of a model's file that are looked at


def fingerprints(requests: Sequence[Request], options: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Returns what the line of each request begins with."""
    given = {name: value for name, value in vars(options).items() if name not in ELSEWHERE}
    if options.json_schema is not None:
        given["json_schema"] = read(options.json_schema)
    weights, flags = _of_folder(model), _digest(repr(sorted(given.items())).encode())
    lines = []
    for request in requests:
        asked = (request.messages, request.thinking, request.tools, request.texts, request.lengths, request.heal)
        about = _digest(repr((asked, request.ask.max_tokens)).encode("utf-8", "surrogatepass"))
        lines.append({"request": request.number, "seed": request.ask.seed, "run": f"{about}-{weights}-{flags}"})
    return lines


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _of_folder(folder: Path) -> str:
    """Returns a fingerprint of a model's files: names, sizes, and both ends of each."""
    parts = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors") and not path.name.startswith(".") and path.is_file():
            with path.open("rb") as file:
                start, size = file.read(SAMPLE), path.stat().st_size
                file.seek(max(0, size - SAMPLE))
                parts.append(repr((path.name, size, _digest(start), _digest(file.read()))))
    return _digest("".join(parts).encode())


class AnswerFile(AbstractContextManager):
    """Open for this process alone. If it was made here and nothing is written, it is taken away again."""

    def __init__(self, path: Path):
        """Mistake where `path` is no regular file, holds anything but answers, cannot be written, or is in use."""
        self.path, self._new = path, not os.path.lexists(path)
        try:
            if not self._new and path.exists() and not stat.S_ISREG(path.stat().st_mode):
                raise Mistake(f"--out {path} is no regular file: leave it out and redirect standard output")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except (OSError, ValueError) as error:
            if isinstance(error, Mistake):
                raise
            raise self._unwritable(error) from None
        try:
            self._lock()
            self.lines = self._read()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_) -> None:
        with suppress(OSError):
            if self._new and not os.fstat(self._file).st_size:
                self.path.unlink()
        os.close(self._file)

    def _unwritable(self, error: OSError | ValueError) -> Mistake:
        return Mistake(f"--out {self.path} cannot be written: {reason(error)}")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"--out {self.path} is being written by another process: wait, or give a new file") from None
        except OSError:  # a file system that knows no locks
            return

    def _read(self) -> list[dict[str, Any]]:
        """Returns the answers that are there; the last line may be cut short, and is kept in `_rest`."""
        with open(self._file, "rb", closefd=False) as file:
            *whole, self._rest = file.read().split(b"\n")
        lines = []
        for number, line in enumerate(whole, start=1):
            with suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
            if len(lines) < number or not _is_answer(lines[-1]):
                raise Mistake(f"--out {self.path} holds other things than answers (line {number}): give a new file")
        return lines

    def go_on(self, runs: Sequence[dict[str, Any]], model: str) -> int:
        """Returns how many answers are there, and cuts off one that was left unfinished. Mistake where there is one
        that this run, by the name of its model, would not write."""
        for i, (line, run) in enumerate(zip(self.lines, runs, strict=False)):
            if any(line[key] != value for key, value in run.items()):
                why = f"{_difference(line, run, model)} (line {i + 1})"
                raise Mistake(f"--out {self.path} belongs to another run: {why}; give a new file")
        if (done := len(self.lines)) > len(runs):
            counts = f"{done} answers, and there are {len(runs)} requests"
            raise Mistake(f"--out {self.path} holds {counts}: give a new file")
        head = json.dumps(runs[done])[:-1].encode() if done < len(runs) else b""
        rest = self._rest
        if rest and not (head and rest.startswith(head[: len(rest) if done else None])):
            raise Mistake(f"--out {self.path} holds other things than answers behind line {done}: give a new file")
        if rest:
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(rest))
        return done

    def write(self, line: str) -> None:
        """Writes a whole line or nothing. Mistake where the disk takes no more."""
        data, size = line.encode() + b"\n", os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            what = f"{self._unwritable(error)}; what it holds is whole, and the same command goes on behind it"
            raise Mistake(what) from None


def _is_answer(line: Any) -> bool:
    known = isinstance(line, dict) and {"request", "seed", "run", "model"} <= line.keys()
    return known and type(line["run"]) is str and line["run"].count("-") == 2


def _difference(line: dict[str, Any], run: dict[str, Any], model: str) -> str:
    _, weights, flags = (old != new for old, new in zip(line["run"].split("-"), run["run"].split("-"), strict=True))
    if weights:
        return f"its model was {line['model']}, now it is {model}" + " with other weights" * (line["model"] == model)
    if flags:
        return "its options were others"
    if line["seed"] != run["seed"]:
        return f"its seed was {line['seed']}, now it is {run['seed']}"
    return f"it answers request {line['request']} ({line['run']}), now that is request {run['request']} ({run['run']})"
