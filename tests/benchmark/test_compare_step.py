"""The measuring script runs; what it says is for README."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mlx_dgemma.benchmark.count import BITS, Count
from mlx_dgemma.checkpoint.config import parse_config

SCRIPT = Path(__file__).parents[2] / "examples" / "compare_step.py"
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}
SMALL |= {
    "num_attention_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_experts": 4,
    "top_k_experts": 2,
    "num_hidden_layers": 2,
}


@pytest.fixture
def compare_step(monkeypatch):
    spec = importlib.util.spec_from_file_location("compare_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.SHAPES, "small", {**module.SHAPES["small"], **SMALL})
    monkeypatch.setattr(module.measure, "COPIED", 1 << 20)  # the ceilings of something small
    monkeypatch.setattr(module.measure, "LONG_ENOUGH", 1e-4)
    monkeypatch.setitem(sys.modules, "mlx_vlm", None)  # as where it is not installed
    return module


@pytest.mark.parametrize("precision", ["float32", "4bit"])
@pytest.mark.slow
def test_it_measures(compare_step, monkeypatch, capsys, precision):
    arguments = ["--precision", precision, "--repeat", "2", "--rows", "2", "--context", "40", "--parts"]
    monkeypatch.setattr(sys, "argv", ["compare_step.py", *arguments])
    compare_step.main()
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert set(seconds) == {"ours", "ours, 2 rows"}
    assert found["times_the_tokens"] == pytest.approx(2 * seconds["ours"] / seconds["ours, 2 rows"])
    config = parse_config(compare_step.config_of("small", precision))
    assert found["weights_bytes"] == pytest.approx(Count(config, BITS[precision]).resident, rel=0.05)
    parts = {"linears", "experts", "attention", "head and draw", "self-conditioning", "rest"}
    assert set(found["parts"]) == parts
