"""A model's passes with our kernels, through the shim, against the same passes without."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import paths
import pytest
import runs
import shim

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load, load_model
from mlx_dgemma.mlx_backend import kernels
from mlx_dgemma.seam.model import Row, Text

pytestmark = shim.needs_a_compiler
CONFIG = checkpoints.config(sliding_window=24, top_k_experts=3, vocab_size=320, moe_intermediate_size=32)


@pytest.fixture
def kernels_on(request, monkeypatch):
    paths.as_on_a_gpu(request)
    shim.install(monkeypatch)


def predicted(model, rng: np.random.Generator) -> list[np.ndarray]:
    """A text, a canvas behind more of it, two canvases together, one of them conditioned, and scores."""
    vocabulary, length = model.facts.vocab_size, model.facts.canvas_length
    caches = [model.new_cache() for _ in range(2)]
    texts = [Text(rng.integers(vocabulary, size=n)) for n in (40, 9)]
    scores = model.encode(texts, caches, score=True)
    rows = [
        Row(rng.integers(vocabulary, size=length).astype(np.int32), cache, 0.7, rng.random(length, dtype=np.float32))
        for cache in caches
    ]
    rows[0].pending = Text(rng.integers(vocabulary, size=7))
    rows[1].token_sets = [model.token_set(range(5, 60))]
    rows[1].allowed = rng.integers(-1, 1, size=length).astype(np.int32)
    found = [score.logprob[1:] for score in scores]
    for _ in range(2):
        predictions = model.denoise(rows)
        for row, prediction in zip(rows, predictions, strict=True):
            row.pending, row.self_conditioning = Text(), prediction.self_conditioning
            found += [prediction.entropy, prediction.top, prediction.argmax]
    return found


@pytest.mark.slow
def test_passes_are_the_same(tmp_path, request, monkeypatch):
    folder = checkpoints.write(tmp_path, CONFIG, checkpoints.weights(CONFIG, seed=3))
    model = load_model(Checkpoint(folder, parse_config(CONFIG, checkpoints.generation_config())), "mlx", "float32")
    plain = predicted(model, np.random.default_rng(0))
    paths.as_on_a_gpu(request)
    shim.install(monkeypatch)
    model = load_model(Checkpoint(folder, parse_config(CONFIG, checkpoints.generation_config())), "mlx", "float32")
    launched = set()
    monkeypatch.setattr(
        kernels, "launch", lambda kernel, *rest: launched.add(kernel.name) or shim.launch(kernel, *rest)
    )
    for right, mine in zip(plain, predicted(model, np.random.default_rng(0)), strict=True):
        assert np.abs(right - mine).max() < 1e-4
    assert launched == {"heads", "residual", "route", "tail", "experts", "vocabulary"}


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_on")
def test_the_embedded_model_answers_as_ever():
    goldens = json.loads((Path(__file__).parents[1] / "goldens.json").read_text())["tiny"]
    golden = min(goldens, key=lambda golden: sum(golden["steps"]))
    model, _, sampling = load()
    options = {"seed": golden["seed"], "max_tokens": golden["max_tokens"]}
    runs.same(runs.whole_run(model, golden["prompt"], sampling, **options), golden)
