"""Folders of mlx-vlm's load here, ours load there, and both give the same logits.

    MLX_VLM_PYTHON=/path/to/python python -m pytest tests/convert/test_convert_mlx_vlm.py

where that python has mlx-vlm (0.7.10 was the one at hand), in an environment of its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from conversions import converted, loaded, logits, modelopt

PYTHON = os.environ.get("MLX_VLM_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MLX_VLM_PYTHON does not name a python that has mlx-vlm")
BOUND = 1e-3  # of logits, in float32


def mlx_vlm(*argv) -> None:
    script = Path(__file__).parents[1] / "measure" / "mlx_vlm_side.py"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "LD_PRELOAD"))}
    done = subprocess.run([PYTHON, str(script), *map(str, argv)], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr


def their_logits(folder, tmp_path):
    mlx_vlm("logits", folder, tmp_path / "logits.npy")
    return np.load(tmp_path / "logits.npy")


@pytest.mark.parametrize(
    "flags",
    [
        [], ["-q"], ["-q", "--q-bits", "3", "--q-group-size", "32"], ["-q", "--q-mode", "mxfp4"],
        ["-q", "--q-mode", "nvfp4"], ["-q", "--q-mode", "mxfp8"], ["-q", "--quant-predicate", "uniform"],
        ["-q", "--quant-predicate", "precise"], ["-q", "--text-only"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_ours_there(tmp_path, capsys, flags):
    converted(capsys, checkpoints.TINY, tmp_path / "made", *flags)
    result = their_logits(tmp_path / "made", tmp_path)
    assert np.abs(result - logits(loaded(tmp_path / "made"))).max() < BOUND


def test_ours_of_modelopt_there(tmp_path, capsys):
    modelopt(tmp_path / "nvidia")
    converted(capsys, tmp_path / "nvidia", tmp_path / "made", "--text-only")
    result = their_logits(tmp_path / "made", tmp_path)
    assert np.abs(result - logits(loaded(tmp_path / "made"))).max() < BOUND


@pytest.mark.parametrize(("mode", "bits"), [("affine", 4), ("affine", 8), ("mxfp4", 4), ("nvfp4", 4), ("mxfp8", 8)])
def test_theirs_here(tmp_path, capsys, mode, bits):
    """Theirs do not read the layout of transformers 5.23: ours turns the embedded model's into the hub's first."""
    converted(capsys, checkpoints.TINY, tmp_path / "plain")
    mlx_vlm("convert", tmp_path / "plain", tmp_path / "made", mode, bits)
    result = their_logits(tmp_path / "made", tmp_path)
    assert np.abs(result - logits(loaded(tmp_path / "made"))).max() < BOUND
    flags = ["-q", "--q-mode", mode, "--q-bits", bits]
    converted(capsys, checkpoints.TINY, tmp_path / "ours", *flags)
    assert np.abs(result - logits(loaded(tmp_path / "ours"))).max() < BOUND
    converted(capsys, tmp_path / "made", tmp_path / "back", "-d")
    loaded(tmp_path / "back")
