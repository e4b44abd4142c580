"""Whole runs, token for token as transformers made them (make_goldens.py), without torch."""

from __future__ import annotations

import json
from pathlib import Path

import paths
import pytest
import runs

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.load import load, load_model
from mlx_dgemma.mlx_backend import family
from mlx_dgemma.writing.sampling import parse_sampling

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens.json").read_text())


PATHS = {"as on a CPU": family.CPU, "as on a GPU": family.GPU, "as on a GPU with matrix units": family.MATRIX_GPU}
# Every run on a CPU's path, and on one of a GPU's two.
RANDOM = [
    pytest.param(path, golden, id=f"{path}-seed {golden['seed']}, {len(golden['steps'])} blocks")
    for golden in GOLDENS["random"]
    for path in ("as on a CPU", list(PATHS)[1 + golden["seed"] % 2])
]


@pytest.fixture
def path(request):
    if request.param != "as on a CPU":
        paths.as_on_a_gpu(request, PATHS[request.param])


@pytest.mark.slow
@pytest.mark.parametrize(("path", "golden"), RANDOM, indirect=["path"])
@pytest.mark.usefixtures("path")
def test_random_weights(golden, tmp_path):
    folder = runs.random_case(tmp_path, golden, golden["eos"])
    config, generation = read_configs(folder)
    model = load_model(Checkpoint(folder, parse_config(config, generation)), "mlx", "float32")
    options = {"seed": golden["seed"], "max_tokens": golden["max_tokens"]}
    runs.same(runs.whole_run(model, golden["prompt"], parse_sampling(generation), **options), golden)


def test_the_goldens_are_worth_it():
    """Three blocks or more, a stop token inside a later one, blocks that settle and blocks that hit the cap; of the
    embedded model, an answer that settles at once and one that takes long."""
    steps = [golden["steps"] for golden in GOLDENS["random"]]
    assert all(len(per_block) >= 3 for per_block in steps)
    assert any(golden["eos"][0] in golden["tokens"][32:-1] for golden in GOLDENS["random"])
    assert any(48 in per_block for per_block in steps) and any(min(per_block) < 48 for per_block in steps)
    passes = [sum(golden["steps"]) for golden in GOLDENS["tiny"]]
    assert min(passes) < 5 and max(passes) > 20


@pytest.mark.parametrize(
    "golden", [pytest.param(g, id=g["text"], marks=[pytest.mark.slow] * (g["steps"] > [9])) for g in GOLDENS["tiny"]]
)
@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.usefixtures("path")
@pytest.mark.sample(4)
def test_the_embedded_model(golden):
    model, tokenizer, sampling = load()
    tokens = tokenizer.chat([{"role": "user", "content": golden["text"]}])
    assert tokens == golden["prompt"]
    options = {"seed": golden["seed"], "max_tokens": golden["max_tokens"]}
    runs.same(runs.whole_run(model, tokens, sampling, **options), golden)
