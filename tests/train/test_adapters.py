"""An adapter in mlx-lm's files: loaded by both backends, over plain and quantized weights, or refused in one line."""

from __future__ import annotations

import json
from functools import partial

import folders
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_dgemma.checkpoint import adapter, adapter_folder
from mlx_dgemma.checkpoint.adapter import ATTENTION_AND_MLP
from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import learner, load
from mlx_dgemma.seam.learning import Optimizer
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.train.loss import Example, Recipe, loss_of, noised

BACKENDS = ["mlx", "torch"]
KEYS = (*ATTENTION_AND_MLP, "experts.gate_up_proj", "experts.down_proj", "self_conditioning.up_proj")


def made(folder, path, keys=KEYS, scale=2.0, fine_tune_type="lora", seed=0):
    """An adapter's folder with random pairs, as a training run leaves it."""
    from mlx_dgemma.mlx_backend.lora import shapes

    model, _, _ = load(folder, "mlx")
    rng = np.random.default_rng(seed)
    pairs = adapter.begin(shapes(model.network), keys, 3, scale, 0).tensors
    tensors = {name: 0.1 * rng.standard_normal(array.shape).astype(np.float32) for name, array in pairs.items()}
    return write(path, tensors, scale, fine_tune_type)


def write(path, tensors, scale=2.0, fine_tune_type="lora"):
    from safetensors.numpy import save_file

    path.mkdir(exist_ok=True)
    save_file(tensors, path / adapter.FILE)
    about = {"fine_tune_type": fine_tune_type, "num_layers": -1, "lora_parameters": {"rank": 3, "scale": scale}}
    adapter_folder.write_config(path, about)
    return path


def logits(model) -> np.ndarray:
    rng = np.random.default_rng(0)
    canvas = rng.integers(2, 90, size=16).astype(np.int32)
    row = Row(canvas, model.new_cache(), 0.7, np.zeros(16, np.float32), pending=Text(rng.integers(2, 90, size=30)))
    row.hint = np.where(np.arange(16) < 4, canvas, -1).astype(np.int32)
    return model.logits(row)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return folders.quantized(tmp_path_factory.mktemp("packed"))[0]


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_both_backends_read_it_alike(request, tmp_path, kind):
    pytest.importorskip("torch")
    folder = request.getfixturevalue(kind)
    path = made(folder, tmp_path / "adapter")
    with_it = [logits(load(folder, backend, adapter_path=path)[0]) for backend in BACKENDS]
    without = logits(load(folder, "mlx")[0])
    assert np.abs(with_it[0] - with_it[1]).max() < 1e-4
    assert np.abs(with_it[0] - without).max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_weights(plain, tmp_path, backend):
    """fine_tune_type full: a table and a joined linear are replaced, and what was made of the table before, too."""
    pytest.importorskip(backend)
    name = "model.decoder.layers.1.self_attn.k_proj.weight"
    tensors = {name: -folders.tensors()[name], "model.decoder.embed_tokens.weight": None}
    tensors["model.decoder.embed_tokens.weight"] = folders.tensors()["model.decoder.embed_tokens.weight"][::-1].copy()
    path = write(tmp_path / "full", tensors, fine_tune_type="full")
    direct = folders.write(tmp_path / "model", {**folders.tensors(), **tensors})
    tuned, expected = load(plain, backend, adapter_path=path)[0], load(direct, backend)[0]
    assert np.abs(logits(tuned) - logits(expected)).max() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_of_another_adapter_is_refused(plain, tmp_path, backend):
    pytest.importorskip(backend)
    paths = [
        made(plain, tmp_path / name, seed=seed, scale=scale) for name, seed, scale in (("a", 0, 2.0), ("b", 0, 3.0))
    ]
    first, second = (load(plain, backend, adapter_path=path)[0] for path in paths)
    cache = first.new_cache()
    first.encode([Text(np.arange(2, 20))], [cache])
    cache.save(tmp_path / "cache")
    first.new_cache().load(tmp_path / "cache")
    for other in (second, load(plain, backend)[0]):
        with pytest.raises(ValueError, match="another model"):
            other.new_cache().load(tmp_path / "cache")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_over_quantized_weights(packed, tmp_path, backend):
    """They are those over the same weights dequantized."""
    pytest.importorskip(backend)
    _, dequantized, shape = folders.quantized(tmp_path / "packed")
    weights = folders.tensors(**shape) | {name: np.array(array) for name, array in dequantized.items()}
    plain = folders.write(tmp_path / "plain", weights, **shape)
    start, moved = partial(adapter.begin, keys=KEYS, rank=4, scale=2.0, seed=1), []
    for folder in (packed, plain):
        model, _, _ = load(folder, backend, "float32")
        one = learner(model, backend, start, Optimizer(), checkpoint=False)
        rng = np.random.default_rng(0)
        examples = [Example(*(rng.integers(2, 90, size=n).astype(np.int32) for n in (30, 20))) for _ in range(2)]
        losses = loss_of(noised(examples, model.facts, 1, Recipe(), rng), model.facts, Recipe())
        parts, norm = one.step([losses], 1e-2)
        one.save(tmp_path / "state", {})
        state = load_file(tmp_path / "state")
        # Adam's first moment after a step is the gradient, but for a factor.
        moved.append(
            {name: a for name, a in state.items() if name.endswith((".exp_avg", ".m"))} | {"parts": parts, "norm": norm}
        )
    assert len(moved[0]) > 20 and moved[0].keys() == moved[1].keys()
    for name, first in moved[0].items():
        size = np.abs(first).max()
        assert np.abs(np.array(first) - np.array(moved[1][name])).max() <= 1e-5 * size, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"model.decoder.layers.9.self_attn.q_proj.lora_a": np.zeros((32, 3), np.float32)}, "of no layer"),
        (lambda t: {n: a[:, :2] if n.endswith("mlp.up_proj.lora_a") else a for n, a in t.items()}, "has shape"),
        (lambda t: {n: a for n, a in t.items() if n.endswith("lora_a")}, "no lora_b"),
        (lambda t: {n: a * np.nan for n, a in t.items()}, "NaN"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_named(plain, tmp_path, backend, change, words):
    pytest.importorskip(backend)
    path = made(plain, tmp_path / "adapter", keys=("mlp.up_proj",))
    write(path, change(adapter_folder.read(path).tensors))
    with pytest.raises(Mistake, match=words) as caught:
        load(plain, backend, adapter_path=path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_adapter(tmp_path):
    for about, words in (
        ({"fine_tune_type": "dora"}, "dora"),
        ({"peft_type": "LORA"}, "lora_alpha"),
        ([], "a JSON object"),
    ):
        (tmp_path / adapter.CONFIG).write_text(json.dumps(about))
        with pytest.raises(Mistake, match=words):
            adapter_folder.read(tmp_path)
    with pytest.raises(Mistake, match="no such folder"):
        adapter_folder.read(tmp_path / "nowhere")
