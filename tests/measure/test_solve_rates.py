"""The embedded model solves its tasks as often as transformers lets it; `solve_rates.py --prompts 200` is all of it."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import pytest
import solve_rates

from mlx_dgemma.convert.__main__ import main as convert

EXPECTED = json.loads((Path(__file__).parents[1] / "goldens.json").read_text())["rates"]
pytestmark = pytest.mark.slow
QUICK = ("sudoku 4x4", "json", "code", "reverse")


def test_in_float32_as_often_and_in_as_many_passes():
    found = solve_rates.rates(solve_rates.ours(None), EXPECTED["prompts"])
    assert found == EXPECTED["tasks"]


def test_with_experts_in_four_bits(tmp_path):
    assert convert(["--hf-path", str(checkpoints.TINY), "--mlx-path", str(tmp_path / "tiny"), "-q"]) == 0
    found = solve_rates.rates(solve_rates.ours(str(tmp_path / "tiny")), EXPECTED["prompts"], QUICK)
    solved, expected = ([rates[name]["solved"] for name in QUICK] for rates in (found, EXPECTED["tasks"]))
    assert abs(sum(solved) - sum(expected)) / len(QUICK) <= 0.05
