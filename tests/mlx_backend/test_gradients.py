"""Gradients of a loss through both passes agree with finite differences, for every parameter of a tiny model."""

from __future__ import annotations

import checkpoints
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.mlx_backend.cache import MLXCache
from mlx_dgemma.mlx_backend.network import Network, Segment
from mlx_dgemma.mlx_backend.vocabulary import head

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "num_experts": 4, "sliding_window": 12}
SHAPE |= {"canvas_length": 8, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
STORED = checkpoints.config(full={"head_dim": 16}, **SHAPE)
CONFIG = parse_config(STORED, checkpoints.generation_config())
# The experts of the text are sorted, those of the canvas are few and are not.
TEXT, CANVAS, TARGET = (np.random.default_rng(seed).integers(32, size=n) for seed, n in ((0, 40), (1, 7), (2, 7)))
PATHS = [path for path, _ in tree_flatten(Network(CONFIG).parameters())]
STEPS = (1e-2, 3e-3, 1e-3, 2e-4)  # a large one may cross a point where a router changes its choice


def loss(network: Network) -> mx.array:
    """Cross entropy of the next tokens of a text, and of the second pass over a canvas behind it."""
    decoder, cap = network.model.decoder, CONFIG.final_logit_softcapping
    table, cache = decoder.embed_tokens, MLXCache(CONFIG, str)
    hidden = network(table(mx.array(TEXT)), [Segment(0, len(TEXT), cache, 0, causal=True)])
    causal = nn.losses.cross_entropy(head(table, hidden[:-1], cap), mx.array(TEXT[1:]), reduction="mean")
    segments, soft = [Segment(0, len(CANVAS), cache, len(TEXT), causal=False)], None
    for _ in range(2):
        logits = head(table, network(decoder.self_conditioning(table(mx.array(CANVAS)), soft), segments), cap)
        soft = mx.softmax(logits / 0.7, axis=-1) @ table.weight * table.width**0.5
    return causal + nn.losses.cross_entropy(logits, mx.array(TARGET), reduction="mean")


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    folder = checkpoints.write(tmp_path_factory.mktemp("model"), STORED, checkpoints.weights(STORED))
    return load_model(Checkpoint(folder, CONFIG), "mlx", "float32").network


@pytest.fixture(scope="module")
def gradients(network) -> dict[str, np.ndarray]:
    _, gradients = nn.value_and_grad(network, loss)(network)
    return {path: np.array(array, np.float64) for path, array in tree_flatten(gradients)}


def slope(network: Network, path: str, direction: np.ndarray, step: float) -> float:
    weight = dict(tree_flatten(network.parameters()))[path]
    losses = []
    for sign in (1, -1):
        moved = weight + mx.array((sign * step * direction).astype(np.float32))
        network.load_weights([(path, moved)], strict=False)
        losses.append(loss(network).item())
    network.load_weights([(path, weight)], strict=False)
    return (losses[0] - losses[1]) / (2 * step)


# The first layer is a sliding one, the second differs in its attention, the third is as the second.
QUICK = [path for path in PATHS if "layers.2." not in path and ("layers.1." not in path or ".self_attn." in path)]
QUICK += [path for path in PATHS if "layers.2.layer_scalar" in path]


@pytest.mark.parametrize("path", [pytest.param(p, marks=[pytest.mark.slow] * (p not in QUICK)) for p in PATHS])
@pytest.mark.sample(10)
def test_a_gradient_is_the_slope(network, gradients, path):
    gradient = gradients[path]
    size = np.linalg.norm(gradient)
    if "layers.2.layer_scalar" in path:  # the last norm takes it out again
        assert size < 1e-5 and abs(slope(network, path, np.ones(1), STEPS[0])) < 1e-3
        return
    assert size > 1e-3
    noise = np.random.default_rng(0).standard_normal(gradient.shape)
    everywhere = gradient / size + 0.9 * noise / np.linalg.norm(noise)
    largest = np.zeros_like(gradient)
    largest.flat[np.abs(gradient).argmax()] = 1
    for direction in (everywhere / np.linalg.norm(everywhere), largest):
        expected = (gradient * direction).sum()
        bound = 5e-3 * size + 5e-4
        assert any(abs(slope(network, path, direction, step) - expected) < bound for step in STEPS)
