"""All commands: each has a short `--help`, in groups."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import mlx_dgemma

PACKAGE = Path(mlx_dgemma.__file__).parent
COMMANDS = sorted(path.parent.name for path in PACKAGE.glob("*/__main__.py"))
WRITE = {"how to write it:", "the model:"}
GROUPS = {
    "generate": {"what to write:", "the form that it must have:"} | WRITE,
    "batch": {"what to write:", "the form that it must have:"} | WRITE,
    "chat": {"the chat:"} | WRITE,
    "fill": {"what to fill:"} | WRITE,
    "edit": {"what to change:"} | WRITE,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_in_groups(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"mlx_dgemma.{name}.__main__").main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    flags = [line for line in lines if re.match(r"  (-\w, )?--?\w", line)]
    flags = [line for line in flags if "--help" not in line and "--version" not in line]
    assert len(flags) <= (20 if name == "generate" else 22), flags
    assert set(lines) >= GROUPS.get(name, set()) and max(map(len, lines)) <= 80
    assert not [line for line in lines if "(default: " in line and "=" in line.split("(default: ")[1]]


def test_the_names_of_the_package_are_no_command_s():
    assert not set(mlx_dgemma.__all__) & set(COMMANDS)
    assert all(getattr(mlx_dgemma, name).__name__ == name for name in mlx_dgemma.__all__)
