"""A command as its user meets it: called with arguments, its streams read, its mistakes a line each."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable

import checkpoints
import pytest

SUDOKU = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
SOLVED = "4213\n3124\n1342\n2431"
COMMAND = [sys.executable, "-m", "mlx_dgemma.generate"]


class Stdin(io.StringIO):
    def __init__(self, data: bytes):
        super().__init__()
        self.buffer = io.BytesIO(data)


def caller(main: Callable[[list[str]], int], capfd) -> Callable[..., tuple[int, str, str]]:
    """Arguments of a command -> exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run(capfd):
    """`generate`; other commands have a `run` of their own."""
    from mlx_dgemma.generate.__main__ import main  # here: tests of a backend need none of what a command imports

    return caller(main, capfd)


def mistake(result, *words: str) -> None:
    """Exit code 2, nothing on stdout, and one line, beside the one about the embedded model, that names these."""
    code, out, err = result
    lines = [line for line in err.splitlines() if "no --model given" not in line]
    assert (code, out) == (2, "") and len(lines) == 1, err
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def endless(tmp_path):
    """The embedded model with a stop token that it never writes."""
    folder = shutil.copytree(checkpoints.TINY, tmp_path / "endless")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [272]}))
    return folder
