"""Edits of real files that are installed here: `patch` and `git apply` make them, and take them back, to the byte."""

from __future__ import annotations

import random
import shutil
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mlx_dgemma.fill.edit import cut, split_lines, unified_diff
from mlx_dgemma.fill.line_ends import BOM, line_end

EDITS = 12  # of each of the 8 cases
NAMES = [
    "plain.py",
    "two words",
    'quo"te.c',
    "ünï 天空",
    "tab\there",
    "back\\slash",
    "line\nend",
    "-dash",
    "a/b c/d",
    "e ",
]
NEW = [
    "",
    "x = 1",
    "one\ntwo\n\nthree",
    "é 天空 🧑‍🚀\n\tz ",
    "\n",
    "--- a\n+++ b\n@@ -1 +1 @@",
    "\\ No newline",
    "-",
    "+",
]
TOOLS = [["patch", "--binary", "-s", "-p1"], ["git", "apply", "--whitespace=nowarn"]]


@cache
def real_files() -> list[Path]:
    kinds = {".py", ".md", ".h", ".txt", ".pyi"}
    found = (path for path in sorted(Path(np.__file__).parent.rglob("*.*")) if path.suffix in kinds)
    return [path for path in found if 0 < path.stat().st_size < 100_000]


def changed_at_random(text: str, draw: random.Random) -> str:
    """With other line ends, without the last of them, with a mark."""
    mixed = "".join(draw.choice([line, line.replace("\n", "\r\n")]) for line in text.splitlines(keepends=True))
    odd = text.replace("\n", " \f\x1c\u2028 \n", 3)
    return draw.choice([text, text.replace("\n", "\r\n"), text.rstrip("\r\n") or "x", BOM + text, mixed, odd])


def edits(draw: random.Random):
    """(name, text, edited text), again and again."""
    while True:
        try:
            text = draw.choice(real_files()).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        text = changed_at_random(text, draw)
        first = draw.randint(1, count := len(split_lines(text.removeprefix(BOM), line_end(text))))
        edited = cut(text, first, min(count, first + draw.choice([0, 1, 20, 500]))).with_new(draw.choice(NEW))
        if edited != text:
            yield draw.choice(NAMES), text, edited


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.sample(1)
def test_they_apply_and_come_off(tmp_path, seed):
    made = edits(random.Random(seed))
    for number in range(EDITS):
        name, text, edited = next(made)
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(text.encode())
        diff = unified_diff(text, edited, name).encode()
        for tool, (way, after) in product(TOOLS, [([], edited), (["-R"], text)]):
            if shutil.which(tool[0]):
                subprocess.run([*tool, *way], input=diff, cwd=tmp_path / str(number), check=True, capture_output=True)
                assert (path.read_bytes() if path.exists() else b"") == after.encode(), (tool, name, diff)
