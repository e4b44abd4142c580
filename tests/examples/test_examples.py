"""The examples run, are short, and print what they are about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {  # file -> what it prints
    "ar_or_diffusion.py": [
        "4 passes, 0 tokens left to right: {",
        "0 passes, 36 tokens left to right: Cara, Noor, Turin",
    ],
    "chat.py": [
        "Cara, Bob, Ann\n",
        "(85 of 124 tokens are new)",
        '{"name": "Bob", "age": 26, "job": "chef", "city": "Perth"}',
    ],
    "edit.py": ["-3142\n+3124\n"],
    "hello.py": ['{"name": "Tess", "age": 40, "job": "vet", "city": "Accra"}'],
    "infill.py": ['{"name": "Tess", "age": 40, "job": "vet", "city": "Accra"}\n'],
    "own_rule.py": [' 64 accepted: \'{"name":'],
    "watch.py": ["0.00 ", "·", "\nCara, Noor, Turin, Eve, Kofi, clerk\n"],
}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_says_what_it_is_about(name, tmp_path):
    path = EXAMPLES / name
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "MLX_ENABLE_TF32": "0"}
    found = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stderr
    for words in SAYS[name]:
        assert words in found.stdout, found.stdout
    assert not list(tmp_path.iterdir())  # nothing is left behind
