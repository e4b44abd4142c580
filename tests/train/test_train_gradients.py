"""The whole gradient of one batch is that of transformers under torch's autograd, with the same noise."""

from __future__ import annotations

from functools import cache
from unittest import mock

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference runs on torch: pip install torch==2.13.0")
pytest.importorskip("transformers")
import reference
import torch

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.train.loss import Example, Recipe, loss_of, noised

STORED = checkpoints.config(layer_types=["sliding_attention", "sliding_attention", "full_attention"])
CONFIG = parse_config(STORED, checkpoints.generation_config())
WINDOW, LENGTH, FILL = CONFIG.sliding_window, CONFIG.canvas_length, 1
# (prompt, answer): within the window, more than a window, a canvas that begins inside the answer or ends behind it.
SIZES = [(5, 9), (3, 40), (WINDOW + 7, 20), (2 * WINDOW, 3), (2, 3 * WINDOW)]


def examples(seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [Example(*(rng.integers(2, 96, size=n).astype(np.int32) for n in sizes)) for sizes in SIZES]


def batch(conditioned: float, seed: int = 8):
    recipe = Recipe(self_conditioned=conditioned, t_one=0.3, mask_prompt=False)
    drawn = noised(examples(), CONFIG, FILL, recipe, np.random.default_rng(seed))
    return drawn, loss_of(drawn, CONFIG, recipe)


def expected(folder, drawn) -> tuple[float, dict[str, np.ndarray]]:
    """transformers: each example alone, its text encoded as far as the canvas, and once more as a whole."""
    theirs = reference.load(folder)
    for embedding in (theirs.model.decoder.embed_tokens, theirs.model.encoder.language_model.embed_tokens):
        embedding.padding_idx = None  # torch gives that row no gradient
    scalars = {name: buffer for name, buffer in theirs.named_buffers() if name.endswith("layer_scalar")}
    for buffer in scalars.values():
        buffer.requires_grad_()
    encode, canvases, followed = theirs.model.encoder, drawn.canvases, []
    decoder = 0.0
    for i, (text, start) in enumerate(zip(canvases.texts, canvases.starts, strict=True)):
        clean = torch.tensor(drawn.clean[i * LENGTH : (i + 1) * LENGTH]).long()
        given = torch.tensor(text[:start].astype(np.int64))[None]
        cache = encode(input_ids=given, position_ids=torch.arange(start)[None]).past_key_values
        inputs = {
            "decoder_input_ids": torch.tensor(canvases.tokens[i].astype(np.int64))[None],
            "past_key_values": cache,
        }
        inputs["decoder_position_ids"] = torch.arange(start, start + LENGTH)[None]
        logits = None
        if drawn.conditioned[i]:
            with torch.no_grad():
                logits = theirs(**inputs).logits
        logits = theirs(**inputs, self_conditioning_logits=logits).logits[0]
        decoder += torch.nn.functional.cross_entropy(logits, clean) / len(canvases.texts)
        whole = torch.tensor(text.astype(np.int64))[None]
        hidden = encode(input_ids=whole, position_ids=torch.arange(len(text))[None]).last_hidden_state[0]
        followed.append((torch.tanh(theirs.lm_head(hidden[:-1]) / 30) * 30, whole[0, 1:]))
    logits, ids = map(torch.cat, zip(*followed, strict=True))
    total = decoder + torch.nn.functional.cross_entropy(logits, ids)
    total.backward()
    gradients: dict[str, np.ndarray] = {}
    for name, tensor in (dict(theirs.named_parameters()) | scalars).items():
        if tensor.grad is not None:
            # The two halves hold one weight twice; only their scalars are two.
            tied = name if name in scalars else name.replace("encoder.language_model", "decoder")
            gradients[tied] = gradients.get(tied, 0) + tensor.grad.numpy().astype(np.float64)
    return total.item(), gradients


def torch_gradients(folder, loss) -> tuple[float, dict[str, np.ndarray]]:
    from mlx_dgemma.torch_backend.learn import TorchPasses
    from mlx_dgemma.torch_backend.lora import weights

    model = load_model(Checkpoint(folder, CONFIG), "torch", "float32")
    named = weights(model.network)
    for tensor, _ in named.values():
        tensor.requires_grad_()
    total, _, _ = loss(TorchPasses(model))
    total.backward()
    return total.item(), {name: tensor.grad[rows].numpy() for name, (tensor, rows) in named.items()}


def mlx_gradients(folder, loss) -> tuple[float, dict[str, np.ndarray]]:
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    from mlx_dgemma.mlx_backend.learn import MLXPasses

    model = load_model(Checkpoint(folder, CONFIG), "mlx", "float32")
    total, gradients = nn.value_and_grad(model.network, lambda: loss(MLXPasses(model))[0])()
    return total.item(), {name: np.array(array) for name, array in tree_flatten(gradients)}


def gpu_gradients(folder, loss) -> tuple[float, dict[str, np.ndarray]]:
    """MLX as on a GPU: its path through the network."""
    from mlx_dgemma.mlx_backend import family

    with mock.patch.object(family, "current", lambda: family.GPU):
        return mlx_gradients(folder, loss)


BACKENDS = {"torch": torch_gradients, "mlx": mlx_gradients, "gpu": gpu_gradients}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("model"), STORED, checkpoints.weights(STORED, seed=5))


@pytest.fixture(scope="module")
def theirs(folder):
    """conditioned -> what transformers says of its batch."""
    return cache(lambda conditioned: expected(folder, batch(conditioned)[0]))


@pytest.mark.parametrize("conditioned", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.sample(4)
def test_the_gradient_is_the_reference_s(folder, theirs, backend, conditioned):
    drawn, loss = batch(conditioned)
    starts = drawn.canvases.starts
    assert (starts > WINDOW).any() and any(s > p for s, (p, _) in zip(starts, SIZES, strict=True))
    total, gradients = theirs(conditioned)
    ours, mine = BACKENDS[backend](folder, loss)
    assert abs(ours - total) < 1e-5
    mine = {name.removesuffix(".weight") if ".experts." in name else name: array for name, array in mine.items()}
    assert set(gradients) == set(mine)
    # The last norm takes the last layer's scalar out again.
    seen = {name: array for name, array in gradients.items() if name not in LAST}
    none = {name for name, array in seen.items() if not array.any()}  # self-conditioning's, where there is none
    assert bool(none) == (conditioned == 0) and not any(mine[name].any() for name in none)
    seen = {name: array for name, array in seen.items() if name not in none}
    wrong = {name: np.abs(mine[name] - array).max() / np.abs(array).max() for name, array in seen.items()}
    difference = np.sqrt(sum(((mine[n] - g) ** 2).sum() for n, g in gradients.items()))
    size = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    print(f"whole {difference / size:.1e}, worst tensor {max(wrong.values()):.1e} {max(wrong, key=wrong.get)}")
    assert difference / size < 1e-5
    assert max(wrong.values()) < 3e-4


LAST = {f"model.{part}.layers.2.layer_scalar" for part in ("decoder", "encoder.language_model")}
