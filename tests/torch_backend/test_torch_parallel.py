"""Two ranks on a CPU write what one rank writes, and hold little more than half of the weights each."""

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
from mlx_dgemma.torch_backend import formats, parallel
from mlx_dgemma.torch_backend.weights import declare

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]


def torchrun(*command: str, ranks: int = 2) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("prompt", ["Sort: Lima, Tokyo, Kyiv"])
def test_two_ranks_write_what_one_writes(prompt):
    arguments = ["mlx_dgemma.generate", "--backend", "torch", "--dtype", "float32", "--json", "--prompt", prompt]
    alone = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=True)
    together = torchrun("-m", *arguments)
    assert together.returncode == 0, together.stderr
    single, double = (json.loads(run.stdout) for run in (alone, together))  # rank 0's object and nothing else
    for name in ("text", "steps", "blocks", "tokens"):
        assert single[name] == double[name]


CHECK = """
import json, sys
import numpy as np
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.load import load_model
from mlx_dgemma.torch_backend import parallel
from pathlib import Path

folder, kind = Path(sys.argv[1]), sys.argv[2]
config = parse_config(json.loads((folder / "config.json").read_text()))
model = load_model(folder, config, "torch", kind)
cache = model.new_cache()
rng = np.random.default_rng(0)
row = Row(rng.integers(96, size=16), cache, 0.7, rng.random(16, dtype=np.float32), Text(rng.integers(96, size=40)))
row.self_conditioning = model.denoise([row])[0].self_conditioning
row.pending = Text()
np.save(sys.argv[3] + f".{parallel.rank()}", model.logits(row))
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


DECIDE = """
import json, random, sys, time
import numpy as np
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import parallel

model, _, _ = load(backend="torch", dtype="float32")
clock, rank = time.perf_counter, parallel.rank()
parallel.time.perf_counter = lambda: clock() + 1000 * rank
random.seed(rank)


def late(function):
    return lambda *arguments: (time.sleep(0.1 * random.random()), function(*arguments))[1]


now, denoise = late(model.now), late(model.denoise)
rng = np.random.default_rng(0)
row = Row(rng.integers(96, size=64), model.new_cache(), 0.7, np.zeros(64, np.float32), Text(np.arange(5, 45)))
seconds = [now()]
while seconds[-1] < seconds[0] + 1:
    row.canvas = denoise([row])[0].sample
    row.pending = Text()
    seconds.append(now())
cache = row.cache
cache.save(sys.argv[1] + ".cache")
model.new_cache().load(sys.argv[1] + ".cache")
json.dump([seconds, row.canvas.tolist()], open(f"{sys.argv[1]}.{rank}", "w"))
"""


def test_time_is_that_of_rank_0(tmp_path):
    """Ranks that are late at random, and whose clocks differ, stop at the same step; each saves and loads its share."""
    (tmp_path / "decide.py").write_text(DECIDE)
    run = torchrun(str(tmp_path / "decide.py"), str(tmp_path / "written"))
    assert run.returncode == 0, run.stderr
    zero, first = (json.loads((tmp_path / f"written.{rank}").read_text()) for rank in range(2))
    assert zero == first and len(zero[0]) > 3 and all(np.diff(zero[0]) > 0)


FAIL = """
import sys, time
from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import load
from mlx_dgemma.terminal.command import run
from mlx_dgemma.torch_backend import parallel


def command():
    model, _, _ = load(backend="torch", dtype="float32")
    print("loading took a while", file=sys.stderr, flush=True)
    for step in range(100):
        model.now()
        if step == 3 and parallel.rank() == int(sys.argv[1]):
            raise {"Mistake": Mistake, "KeyError": KeyError}[sys.argv[2]]("the file is\\n empty")
    print("an answer")


sys.exit(run("name", command))
"""


@pytest.mark.parametrize("kind", ["Mistake", "KeyError"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_says_so(tmp_path, rank, kind):
    """And the others end, with nothing printed."""
    (tmp_path / "fail.py").write_text(FAIL)
    run = torchrun(str(tmp_path / "fail.py"), str(rank), kind)
    assert run.returncode == 1 and run.stdout == ""
    lines = run.stderr.splitlines()
    assert lines.count("loading took a while") == 1
    number = f"rank {rank}: "
    if kind == "KeyError":
        assert f"{number}Traceback (most recent call last):" in lines and r"KeyError: 'the file is\n empty'" in lines
    else:
        assert f"{number if rank else ''}name: the file is empty" in lines
        assert run.stderr.count("Traceback") == 1  # torchrun's


@pytest.mark.parametrize("bits", [None, 4])
def test_each_rank_holds_at_most_six_tenths(monkeypatch, tmp_path, bits):
    """A model of the published shape, in bfloat16 and with experts at 4 bits and all else at 8."""
    config = parse_config(json.loads((published(tmp_path) / "config.json").read_text()))
    total = held = 0
    monkeypatch.setattr(parallel, "ranks", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    for path, array in declare(config, {}).named_buffers():
        each = 2.0 if bits is None or array.ndim == 1 else (4.5 if ".experts." in path else 8.5) / 8
        part = parallel.share(config, path, tuple(array.shape))
        total += each * array.numel()
        held += each * np.prod([len(range(size)[places]) for size, places in zip(array.shape, part, strict=True)])
    assert torch.tensor(total / 1e9).isclose(torch.tensor(50.5 if bits is None else 15.4), rtol=0.01)
    assert held <= 0.6 * total


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_share_of_packed_weights_is_that_of_the_weights(monkeypatch, name, rank):
    config = parse_config(checkpoints.config())
    monkeypatch.setattr(parallel, "ranks", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: rank)
    arrays, _ = pack(np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32))
    packed = [torch.from_numpy(array) for array in arrays]
    path, stored = f"model.decoder.layers.0.{name}", Quantization(bits=4, group_size=64)
    share = [
        array[parallel.share(config, f"{path}.{kind}", tuple(array.shape))]
        for kind, array in zip(("weight", "scales", "biases"), packed, strict=True)
    ]
    whole, part = (formats.dequantize(a.view(torch.int32), *rest, stored) for a, *rest in (packed, share))
    assert torch.equal(part, whole[parallel.share(config, f"{path}.weight", (64, 256))])
    assert part.numel() == whole.numel() / (1 if "mlp" in name else 2)
