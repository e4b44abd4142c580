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

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import Quantization, parse_config
from mlx_dgemma.checkpoint.shares import WHOLE, Share
from mlx_dgemma.load import load_model
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import formats
from mlx_dgemma.torch_backend.weights import declare

pytestmark = pytest.mark.slow

CASES = [("float32", 1), ("float32", 2), ("fp8", 2)]  # precision, key-value heads of full layers


def logits(folder: Path, kind: str, share: Share = WHOLE) -> np.ndarray:
    """Of a pass that is not the first."""
    config = parse_config(json.loads((folder / "config.json").read_text()))
    model = load_model(Checkpoint(folder, config), "torch", kind, share=share)
    rng = np.random.default_rng(0)
    canvas, pending = rng.integers(96, size=16), Text(rng.integers(96, size=40))
    row = Row(canvas, model.new_cache(), 0.7, rng.random(16, dtype=np.float32), pending)
    row.self_conditioning = model.denoise([row])[0].self_conditioning
    row.pending = Text()
    return model.logits(row)


def model_of(case: tuple[str, int], folder: Path) -> Path:
    return folder / f"heads{case[1]}"


def compute_a_rank(folder: Path) -> None:
    """What torchrun starts: it leaves the logits of every case."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for i, case in enumerate(CASES):
        np.save(folder / f"{i}.{rank}.npy", logits(model_of(case, folder), case[0], Share(rank, ranks)))


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> Path:
    """A folder of models, and of the logits that two ranks leave."""
    folder = tmp_path_factory.mktemp("ranks")
    for kv_heads in (1, 2):
        config = checkpoints.config(full={"num_key_value_heads": kv_heads})
        checkpoints.write(model_of(("", kv_heads), folder), config, checkpoints.weights(config, seed=2))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launch, __file__, str(folder)], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{kind}-{heads}" for kind, heads in CASES])
def test_logits_of_two_ranks(computed, number):
    """Full layers of one key-value head cannot be divided: every rank has all of them."""
    alone = logits(model_of(CASES[number], computed), CASES[number][0])
    ranks = [np.load(computed / f"{number}.{rank}.npy") for rank in range(2)]
    assert np.abs(ranks[0] - ranks[1]).max() < 1e-5
    # In E4M3 an activation is rounded by the largest of its row, and o_proj's rows are divided.
    assert np.abs(ranks[0] - alone).max() < {"float32": 1e-4, "fp8": 2.0}[CASES[number][0]]


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


if __name__ == "__main__":
    compute_a_rank(Path(sys.argv[1]))
