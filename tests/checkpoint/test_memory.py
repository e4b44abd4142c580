"""What a pass takes above weights and K/V. The same at full size: README's log, and `measure/memory_rates.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # in short: test_memory_at_the_real_vocabulary, in mlx_backend/test_sweep.py
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a process's peak is Linux's to tell"),
]


def measured(*arguments: str) -> dict[str, int]:
    command = [sys.executable, str(Path(__file__).parents[1] / "measure" / "memory_rates.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def test_a_step_over_the_real_vocabulary():
    result = measured("step", "--hidden", "64")
    assert max(result["grown"], result["allocated"]) < 120e6  # the logits alone would be 268


def test_a_long_prompt_costs_its_kv_and_a_tile_of_scores():
    result = measured("long", "--tokens", "20000", "--head-dim", "16")
    assert result["grown"] < result["kv"] + 160e6
