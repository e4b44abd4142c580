"""The examples run, are short, and print what they are about."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {  # file -> what it prints
    "ar_or_diffusion.py": [
        " passes, 0 tokens left to right: {",
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
    "schema.py": ["{'name': 'Tess', 'age': 40, 'job': 'vet', 'city': 'Accra'}\n"],
    "watch.py": ["0.00 ", "·", '\n{"pet": "snail", "name": "Xena", "job": "judge"}\n'],
}


@pytest.mark.parametrize("name", PRINTS)
@pytest.mark.slow
def test_an_example_prints_what_it_is_about(name, tmp_path, monkeypatch):
    path = EXAMPLES / name
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    done = forked.run(str(path))
    assert done.returncode == 0, done.stderr
    for words in PRINTS[name]:
        assert words in done.stdout, done.stdout
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_the_readme_has_a_line_for_each():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in PRINTS if f"| [{name}]({name}) |" not in text] == []
