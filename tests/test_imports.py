"""Imports go one way: commands -> load, abilities -> diffusion -> sampling, interface; frameworks stay put."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlx_dgemma"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted(PACKAGE.parent.glob("convert/*.py"))
CORE = {  # module -> what of ours it may import
    "mistake": set(),
    "interface": {"config", "sampling"},
    "sampling": {"mistake"},
    "config": {"mistake", "sampling"},
    "checkpoint": {"mistake"},
    "tokenizer": {"checkpoint", "mistake"},
    "layout": {"config", "mistake"},
    "clock": set(),
    "diffusion": {"clock", "interface", "layout", "mistake", "sampling"},
}
FRAMEWORKS = {"mlx": {"mlx_backend", "convert"}, "torch": {"torch_backend"}, "transformers": {"torch_backend"}}
FRAMEWORKS["mlx_lm"] = {"mlx_backend"}


def imports(path: Path) -> set[str]:
    """Dotted names, those of our own package with a leading dot."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_frameworks_stay_in_their_place(path):
    for name in imports(path):
        root = name.split(".")[0]
        if root in FRAMEWORKS and "selfcheck" not in path.name:  # it compares MLX's devices with each other
            assert path.parent.name in FRAMEWORKS[root], f"{path.name} imports {name}"


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_downwards(module):
    ours = {name[1:].split(".")[0] for name in imports(PACKAGE / f"{module}.py") if name.startswith(".")}
    assert ours <= CORE[module]


@pytest.mark.parametrize(
    "code",
    [
        "import mlx_dgemma",
        "import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('mlx_dgemma.generate', run_name='__main__')",
        "import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('mlx_dgemma.chat', run_name='__main__')",
        "import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('mlx_dgemma.convert', run_name='__main__')",
        "import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('mlx_dgemma.selfcheck', run_name='__main__')",
        "import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('mlx_dgemma.benchmark', run_name='__main__')",
        "from mlx_dgemma.benchmark.__main__ import main; main(['predict', '--device', 'h200', '--json'])",
    ],
)
def test_nothing_heavy_for_help_or_import(code):
    check = f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit as end:\n    assert not end.code\n"
    check += "heavy = {'mlx', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


def test_files_and_functions_stay_small():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) < 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"
