"""Imports go down, frameworks stay in their rooms, nothing runs in a circle, and files and functions stay small.

A room is a folder of the package, or a module beside the folders; `fill/__main__.py` is a command in the room that it
serves. Imports inside functions and those for type checkers count, too.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from mlx_dgemma.__main__ import COMMANDS as listed

PACKAGE = Path(__file__).parent.parent / "mlx_dgemma"
COMMANDS = ("generate", "chat", "batch", "fill", "edit", "server", "convert", "selfcheck", "benchmark", "train", "fuse")
FLOORS = (  # a room imports those on floors below its own
    ("errors", "version", "early", "tiny"),
    ("seam",),
    ("checkpoint",),
    ("tokens",),
    ("writing",),
    ("fill", "forms"),
    ("ranks",),
    ("load",),
    ("__init__",),
    ("terminal",),
    (
        "generate",
        "chat",
        "batch",
        "fill.__main__",
        "edit",
        "server",
        "train",
        "fuse",
        "benchmark",
        "selfcheck",
        "convert",
    ),
    ("__main__",),  # lists them
)
BACKENDS = {"mlx_backend": {"seam", "checkpoint", "errors"}, "torch_backend": {"seam", "checkpoint", "errors"}}
ALLOWED = {room: {below for floor in FLOORS[:i] for below in floor} for i, rooms in enumerate(FLOORS) for room in rooms}
ALLOWED |= BACKENDS
ALLOWED["load"] |= set(BACKENDS)
ALLOWED["selfcheck"] |= {"mlx_backend"}  # compares MLX's devices with each other
ALLOWED["convert"] |= {"mlx_backend"}  # the network knows the shapes of its parameters
ALLOWED["benchmark"] |= {"convert"}  # recipes
ALLOWED["load"] -= {"fill", "forms"}
ALLOWED["ranks"] = {"errors", "version", "seam"}
FRAMEWORKS = {
    "mlx": {"mlx_backend", "convert", "selfcheck", "fuse"},
    "mlx_lm": {"mlx_backend"},
    "torch": {"torch_backend"},
    "triton": {"torch_backend"},
    "transformers": {"torch_backend"},
}
FILES = sorted(file for folder in (PACKAGE, *PACKAGE.iterdir()) if folder.is_dir() for file in folder.glob("*.py"))
HEAVY = {"mlx", "torch", "transformers", "huggingface_hub", "starlette", "uvicorn", "pydantic"}
# `python -m` of a command, as one line of Python.
HELP = "import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('mlx_dgemma.{}', run_name='__main__')"


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room(file: Path) -> str:
    if file.parent == PACKAGE:
        return file.stem
    return "fill.__main__" if name_of(file) == "fill/__main__.py" else file.parent.name


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> tuple[frozenset[str], frozenset[Path]]:
    """-> top-level packages of others, and our own files."""
    others, ours = set(), set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                candidates = (base / f"{alias.name}.py", base / alias.name / "__init__.py")
                candidates += (base.with_suffix(".py"), base / "__init__.py")
                target = next((path for path in candidates if path.is_file()), None)
                assert target, f"{name_of(file)} imports {alias.name} from {base}, which is not there"
                ours.add(target)
    return frozenset(others), frozenset(ours)


def test_imports_go_down():
    wrong = []
    for file in FILES:
        here, (others, ours) = room(file), imports(file)
        rooms = {room(other) for other in ours} - {here}
        wrong += [f"{name_of(file)} must not import {other}" for other in sorted(rooms - ALLOWED[here])]
        frameworks = [framework for framework in others & set(FRAMEWORKS) if here not in FRAMEWORKS[framework]]
        wrong += [f"{name_of(file)} must not import {framework}" for framework in frameworks]
        wrong += [f"{name_of(file)}: imports of our own are relative"] * ("mlx_dgemma" in others)
    assert not wrong


@pytest.mark.parametrize("name", [name_of, room], ids=["files", "rooms"])
def test_no_circle(name):
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(name(file), set()).update(name(other) for other in imports(file)[1])
    try:
        graphlib.TopologicalSorter({node: others - {node} for node, others in graph.items()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])), pytrace=False)


def test_no_two_test_files_have_a_name():
    """pytest imports them by it."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_every_command_is_listed():
    assert {file.parent.name for file in FILES if file.name == "__main__.py"} == {"mlx_dgemma", *COMMANDS}
    assert set(listed) == set(COMMANDS)
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    scripts = {f"mlx_dgemma.{name}": f"mlx_dgemma.{name}.__main__:main" for name in COMMANDS}
    scripts["mlx_dgemma"] = "mlx_dgemma.__main__:main"
    assert project["project"]["scripts"] == scripts
    packages = {f"mlx_dgemma.{file.parent.name}" for file in FILES if file.parent != PACKAGE}
    assert set(project["tool"]["setuptools"]["packages"]) == {"mlx_dgemma", *packages}


LIGHT = {"import": "import mlx_dgemma", **{command: HELP.format(command) for command in COMMANDS}}
LIGHT["predict"] = "from mlx_dgemma.benchmark.__main__ import main; main(['predict', '--device', 'h200', '--json'])"


def test_nothing_heavy_for_help_or_import():
    """One after the other in a process: whoever imports what is heavy is named."""
    check = "import sys\n"
    for name in LIGHT:
        check += f"try:\n    exec({LIGHT[name]!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        check += f"heavy = {HEAVY} & set(sys.modules)\nassert not heavy, ({name!r}, heavy)\n"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


def test_files_and_functions_stay_small():
    long = {}
    for file in FILES:
        text = file.read_text()
        if len(text.splitlines()) >= 400:
            long[name_of(file)] = len(text.splitlines())
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 50:
                long[f"{name_of(file)}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert not long
