"""Fewer steps a block solve less and are faster."""

from __future__ import annotations

import pytest
import step_curve


@pytest.mark.slow
def test_fewer_steps_solve_less(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    found = step_curve.curve(2, (1, 12))
    few, many = found["points"]
    assert few["steps_per_block"]["mean"] == 1 and few["steps_per_block"]["at_cap"] == 1
    assert few["solved"] < many["solved"] and few["tokens_per_second"] > many["tokens_per_second"]
    step_curve.plot(found, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 10_000
