"""Both backends learn the same, nothing leaks out of a canvas, and a run goes on where it was cut."""

from __future__ import annotations

from functools import partial

import checkpoints
import numpy as np
import pytest
from test_train_gradients import CONFIG, STORED, batch, examples

from mlx_dgemma.checkpoint import adapter
from mlx_dgemma.checkpoint.adapter import ATTENTION_AND_MLP
from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import learner, load_model
from mlx_dgemma.seam.learning import Canvases, Optimizer
from mlx_dgemma.train.loss import Recipe, loss_of, noised

BACKENDS = ["mlx", "torch"]
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("model"), STORED, checkpoints.weights(STORED, seed=5))


def start(keys=ATTENTION_AND_MLP):
    return keys and partial(adapter.begin, keys=keys, rank=4, scale=2.0, seed=1)


def started(folder, backend, *, keys=ATTENTION_AND_MLP, checkpoint=False, **optimizer):
    """A learner of an adapter, or with `keys` None of all weights."""
    model = load_model(Checkpoint(folder, CONFIG), backend, "float32")
    return learner(model, backend, start(keys), Optimizer(**optimizer), checkpoint=checkpoint)


def steps(learner, numbers, rate=3e-3) -> list[list[float]]:
    """Of three examples, one of which is longer than a window."""
    drawn = [noised(examples()[:3], CONFIG, 1, Recipe(), np.random.default_rng(number)) for number in numbers]
    return [learner.step([loss_of(one, CONFIG, Recipe())], rate)[0] for one in drawn]


def exported(learner, path) -> dict[str, np.ndarray]:
    learner.export(path)
    return adapter.read_floats(path)


@pytest.mark.parametrize("keys", [None, ATTENTION_AND_MLP, EXPERTS], ids=["full", "lora", "experts"])
@pytest.mark.slow
def test_mlx_and_torch_learn_the_same(folder, keys):
    pytest.importorskip("torch")
    mlx, torch = (np.array(steps(started(folder, backend, keys=keys), range(20))) for backend in BACKENDS)
    assert np.abs(mlx - torch).max() < 1e-3
    assert mlx[-5:, 0].mean() < mlx[:5, 0].mean() - 0.02


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keys", [None, ATTENTION_AND_MLP], ids=["full", "lora"])
@pytest.mark.sample(1)
def test_layers_made_again_give_the_same_bits(folder, tmp_path, backend, keys):
    made = []
    for checkpoint in (False, True):
        one = started(folder, backend, keys=keys, checkpoint=checkpoint)
        losses = steps(one, range(2))
        made.append((losses, exported(one, tmp_path / f"{checkpoint}.safetensors")))
    (losses, arrays), (again, others) = made
    assert losses == again and arrays.keys() == others.keys()
    assert all((array == others[name]).all() for name, array in arrays.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.sample(1)
def test_a_run_that_was_cut_goes_on_to_the_byte(folder, tmp_path, backend, name):
    whole = started(folder, backend, name=name)
    steps(whole, range(4))
    first = started(folder, backend, name=name)
    steps(first, range(2))
    first.save(tmp_path / "state.safetensors", {"step": "2"})
    second = started(folder, backend, name=name)
    second.resume(tmp_path / "state.safetensors")
    steps(second, range(2, 4))
    for one, path in ((whole, tmp_path / "whole"), (second, tmp_path / "cut")):
        one.export(path)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "cut").read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keys", [None, (*ATTENTION_AND_MLP, *EXPERTS)], ids=["full", "lora"])
@pytest.mark.slow
def test_bfloat16_learns_about_the_same(folder, backend, keys):
    pytest.importorskip(backend)
    models = [load_model(Checkpoint(folder, CONFIG), backend, dtype) for dtype in ("float32", "bfloat16")]
    learners = [learner(model, backend, start(keys), Optimizer(), checkpoint=True) for model in models]
    exact, rounded = (np.array(steps(one, range(3), 1e-3)) for one in learners)
    assert np.isfinite(rounded).all() and np.abs(exact - rounded).max() < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_leaks_from_the_canvas_on(tmp_path, backend):
    """Other tokens at and behind its start move nothing of a canvas; the token before it does."""
    pytest.importorskip(backend)
    # All experts are of all tokens: a row's last bits may depend on how many rows an expert has.
    stored = checkpoints.config(layer_types=["sliding_attention", "full_attention"], num_experts=2)
    folder = checkpoints.write(tmp_path, stored, checkpoints.weights(stored))
    model = load_model(Checkpoint(folder, parse_config(stored)), backend, "float32")
    one = learner(model, backend, start(), Optimizer(), checkpoint=False)
    drawn, _ = batch(0.5)

    def hidden(offset: int) -> np.ndarray:
        texts = [text.copy() for text in drawn.canvases.texts]
        for text, start in zip(texts, drawn.canvases.starts, strict=True):
            text[start + offset :] = 7 + (text[start + offset :] % 50)
        moved = Canvases(texts, drawn.canvases.starts, drawn.canvases.tokens)
        states = []

        def loss(passes):
            soft = passes.soft(moved.conditioning(drawn.conditioned))
            states.append(passes.hidden(moved, soft, drawn.conditioned)[1])
            return (states[0].sum(),) * 3

        one.losses(loss)
        return np.array(states[0].tolist())

    as_it_is = hidden(10_000)
    assert (hidden(0) == as_it_is).all()
    assert (hidden(-1) != as_it_is).any()
