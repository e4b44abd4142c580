"""Two ranks on a CPU compute what one computes, and hold little more than half of the weights each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch
from checkpoints import published
from packed import pack

from mlx_dgemma.checkpoint.config import Quantization, parse_config
from mlx_dgemma.checkpoint.shares import Share
from mlx_dgemma.torch_backend import formats
from mlx_dgemma.torch_backend.weights import declare

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]


def torchrun(*command: str, ranks: int = 2) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)


CHECK = """
import json, os, sys
import numpy as np
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.shares import Share
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.load import load_model
from pathlib import Path

folder, kind = Path(sys.argv[1]), sys.argv[2]
config = parse_config(json.loads((folder / "config.json").read_text()))
rank = int(os.environ["RANK"])
model = load_model(Checkpoint(folder, config), "torch", kind, share=Share(rank, int(os.environ["WORLD_SIZE"])))
cache = model.new_cache()
rng = np.random.default_rng(0)
row = Row(rng.integers(96, size=16), cache, 0.7, rng.random(16, dtype=np.float32), Text(rng.integers(96, size=40)))
row.self_conditioning = model.denoise([row])[0].self_conditioning
row.pending = Text()
np.save(sys.argv[3] + f".{rank}", model.logits(row))
"""


@pytest.mark.parametrize(("kind", "kv_heads"), [("float32", 1), ("float32", 2), ("fp8", 2)])
def test_logits_of_two_ranks(tmp_path, kv_heads, kind):
    """Full layers of one key-value head cannot be divided: every rank has all of them."""
    config = checkpoints.config(full={"num_key_value_heads": kv_heads})
    folder = checkpoints.write(tmp_path / "model", config, checkpoints.weights(config, seed=2))
    (tmp_path / "check.py").write_text(CHECK)
    for ranks in (1, 2):
        run = torchrun(str(tmp_path / "check.py"), str(folder), kind, str(tmp_path / f"of{ranks}"), ranks=ranks)
        assert run.returncode == 0, run.stderr
    alone = np.load(tmp_path / "of1.0.npy")
    ranks = [np.load(tmp_path / f"of2.{rank}.npy") for rank in range(2)]
    assert np.abs(ranks[0] - ranks[1]).max() < 1e-5
    # In E4M3 an activation is rounded by the largest of its row, and o_proj's rows are divided.
    assert np.abs(ranks[0] - alone).max() < {"float32": 1e-4, "fp8": 2.0}[kind]


@pytest.mark.parametrize("bits", [None, 4])
def test_each_rank_holds_at_most_six_tenths(tmp_path, bits):
    """A model of the published shape, in bfloat16 and with experts at 4 bits and all else at 8."""
    config = parse_config(json.loads((published(tmp_path) / "config.json").read_text()))
    total = held = 0
    for path, array in declare(config, {}).named_buffers():
        each = 2.0 if bits is None or array.ndim == 1 else (4.5 if ".experts." in path else 8.5) / 8
        part = Share(1, 2).of(config, path, tuple(array.shape))
        total += each * array.numel()
        held += each * np.prod([len(range(size)[places]) for size, places in zip(array.shape, part, strict=True)])
    assert torch.tensor(total / 1e9).isclose(torch.tensor(50.5 if bits is None else 15.4), rtol=0.01)
    assert held <= 0.6 * total


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_share_of_packed_weights_is_that_of_the_weights(name, rank):
    config = parse_config(checkpoints.config())
    arrays, _ = pack(np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32))
    packed = [torch.from_numpy(array) for array in arrays]
    path, stored = f"model.decoder.layers.0.{name}", Quantization(bits=4, group_size=64)
    share = [
        array[Share(rank, 2).of(config, f"{path}.{kind}", tuple(array.shape))]
        for kind, array in zip(("weight", "scales", "biases"), packed, strict=True)
    ]
    whole, part = (formats.dequantize(a.view(torch.int32), *rest, stored) for a, *rest in (packed, share))
    assert torch.equal(part, whole[Share(rank, 2).of(config, f"{path}.weight", (64, 256))])
    assert part.numel() == whole.numel() / (1 if "mlp" in name else 2)
