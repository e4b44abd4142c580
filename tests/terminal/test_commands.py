"""All commands: each is a folder, a script and a short `--help` in groups."""

from __future__ import annotations

import importlib
import re
import tomllib
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
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_in_groups(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"mlx_dgemma.{name}.__main__").main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    flags = [line for line in lines if re.match(r"  (-\w, )?--?\w", line) and "--help" not in line]
    assert len(flags) <= 20, flags
    assert set(lines) >= GROUPS.get(name, set()) and max(map(len, lines)) <= 80
    assert not [line for line in lines if "(default: " in line and "=" in line.split("(default: ")[1]]


def test_each_command_is_a_script():
    assert PROJECT["project"]["scripts"] == {
        f"mlx_dgemma.{name}": f"mlx_dgemma.{name}.__main__:main" for name in COMMANDS
    }


def test_each_room_is_in_the_wheel():
    rooms = {f"mlx_dgemma.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {"mlx_dgemma", *rooms}


def test_the_names_of_the_package_are_no_command_s():
    assert not set(mlx_dgemma.__all__) & set(COMMANDS)
    assert all(getattr(mlx_dgemma, name).__name__ == name for name in mlx_dgemma.__all__)
