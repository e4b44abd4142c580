"""What a command is given, in a folder with files of many kinds; and what must hold whatever that is."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_dgemma.load import load

COMMANDS = ("generate", "batch", "fill", "edit", "chat")
FILES = {  # name -> bytes
    "good.jsonl": b'{"prompt": "Sort: Lima, Kyiv"}\n',
    "fill.jsonl": b'{"fill": "a<fill>b", "gap": 2}\n',
    "schema.json": b'{"type": "boolean"}',
    "tools.json": b'[{"type": "function", "function": {"name": "f"}}]',
    "text": b"a = 1\nb = 2\n",
    "marked": b"\xef\xbb\xbfa\r\nb <fill>\r\n",
    "latin": b"caf\xe9",
    "zero": b"a\0b",
    "utf16": "a<fill>b".encode("utf-16"),
    "empty": b"",
    "blank": b" \n\n",
    "null": b"null",
    "number": b"5",
    "half": b'{"prompt": "x"',
    "infinite": b'{"enum": [1e400], "const": NaN}',
    "deep": b"[" * 100_000,
    "deep.jsonl": b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    "nested": b'{"anyOf":[' * 400 + b'{"type": "null"}' + b"]}" * 400,
    "surrogate": b'{"prompt": "\\ud800"}',
    "precious": b"precious",
}
QUICK = ["--max-tokens", "8", "--max-denoising-steps", "1"]
SECONDS = 10.0  # of computing: others may use the machine, too


def lay_out(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "gone link").symlink_to("nowhere")
    (folder / "protected").write_bytes(b"a\nb\n")
    (folder / "protected").chmod(0o444)


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("state/")}


@dataclass
class Outcome:
    code: int
    out: str
    err: list[str]  # lines, without the note about the embedded model


class Streams:
    """Text streams over bytes, as a process has them."""

    def __init__(self, typed: bytes):
        self.stdin = io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8")
        self.stdout, self.stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))

    def read(self, stream: io.TextIOWrapper) -> str:
        stream.flush()
        return stream.buffer.getvalue().decode("utf-8", "replace")


embedded = functools.cache(load)


def quick_model(*given, **more):
    """A folder may have changed since it was read."""
    named = [value for value in given if isinstance(value, str | Path)]
    return (load if named else embedded)(*given, **more)


def call(command: str, arguments: list[str], typed: bytes = b"") -> Outcome:
    """Calls a command in this process, with the embedded model made once."""
    main = importlib.import_module(f"mlx_dgemma.{command}.__main__").main
    streams, start = Streams(typed), time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_dgemma.terminal.options.load", quick_model)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for name in ("stdin", "stdout", "stderr"):
            patch.setattr(f"sys.{name}", getattr(streams, name))
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code or 0
    assert time.process_time() - start < SECONDS
    err = [line for line in streams.read(streams.stderr).splitlines() if "no --model given" not in line]
    return Outcome(code, streams.read(streams.stdout), err)


@contextlib.contextmanager
def inside(folder: Path):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
