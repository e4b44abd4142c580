"""A model of any shape with random weights, made on the device: to be measured, not to be read.

Nothing is loaded, and no array is larger than one layer's experts in 16 bits.
"""

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.config import ModelConfig, Quantization, Recipe
from . import guard
from .layers import Linear
from .model import MLXModel
from .network import Network


def _quantized(module: Linear, stored: Quantization, key: mx.array) -> dict[str, mx.array]:
    """Random codes, whose scale makes weights of variance 1 / in."""
    rows, scales = module.weight.shape, module.scales.shape
    # In halves: randint goes through float32, which has no more than 24 bits.
    halves = mx.random.randint(0, 2**16, (*rows[:-1], 2 * rows[-1]), dtype=mx.uint16, key=key)
    scale = (12 / module.width) ** 0.5 / 2**stored.bits  # codes are uniform, of variance 4^bits / 12
    made = {"scales": mx.full(scales, scale), "biases": mx.full(scales, -scale * (2**stored.bits - 1) / 2)}
    return {"weight": halves.view(mx.uint32), **{name: array.astype(mx.bfloat16) for name, array in made.items()}}


def dummy_mlx(config: ModelConfig, dtype: str, recipe: Recipe, seed: int = 0, peaked: float = 1.0) -> MLXModel:
    """Make a model of the shape of `config`. Activations, and weights that are not quantized, are of `dtype`.

    `recipe` maps a layer's path to how it is stored, in affine mode, or to None. `peaked` is a factor on the logits:
    with 1 every prediction is about uniform, which no trained model's is."""
    kind = getattr(mx, dtype)
    network, keys = Network(config), iter(mx.random.split(mx.random.key(seed), 64 * len(config.layers) + 64))
    for path, module in network.named_modules():
        if not isinstance(module, Linear):
            continue
        if stored := recipe(path):
            module.quantize(stored)
            made = _quantized(module, stored, next(keys))
        else:
            scale, key = module.width**-0.5, next(keys)
            made = {"weight": mx.random.normal(module.weight.shape, kind, scale=scale, key=key)}
        module.update(made)
        mx.eval(module.parameters())  # one at a time: what each needs on the way is given back
    small = {path: array.astype(kind) for path, array in tree_flatten(network.parameters()) if array.ndim == 1}
    for path in small:
        if path.endswith(("q_norm.weight", "k_norm.weight")):
            small[path] *= small[path].size ** -0.25  # scores of the size that a scale of 1 / sqrt(dim) would give
    network.load_weights(list(small.items()), strict=False)
    network.model.decoder.norm.weight = network.model.decoder.norm.weight * peaked
    network.model.decoder.embed_tokens.dtype = kind
    mx.eval(network.parameters())
    guard.choose()
    return MLXModel(network, config, kind)
