"""A model of any shape with random weights, made on the device: to be measured, not to be read.

Nothing is loaded, and no array is larger than one layer's experts in 16 bits.
"""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.config import ModelConfig, Quantization
from ..convert.recipes import mlx_community, plain, quantization
from ..errors import Mistake
from .layers import Linear
from .model import MLXModel
from .network import Network
from .weights import set_dtype

PRECISIONS = {"float32": (mx.float32, plain), "bf16": (mx.bfloat16, plain)}
PRECISIONS["4bit"] = (mx.bfloat16, mlx_community(quantization(bits=4)))  # as `convert -q` stores it


def _quantized(module: Linear, stored: Quantization, key: mx.array) -> dict[str, mx.array]:
    """Random codes, whose scale makes weights of variance 1 / in."""
    rows, scales = module.weight.shape, module.scales.shape
    # In halves: randint goes through float32, which has no more than 24 bits.
    halves = mx.random.randint(0, 2**16, (*rows[:-1], 2 * rows[-1]), dtype=mx.uint16, key=key)
    width = scales[-1] * stored.group_size
    scale = (12 / width) ** 0.5 / 2**stored.bits  # codes are uniform, of variance 4^bits / 12
    made = {"scales": mx.full(scales, scale), "biases": mx.full(scales, -scale * (2**stored.bits - 1) / 2)}
    return {"weight": halves.view(mx.uint32), **{name: array.astype(mx.bfloat16) for name, array in made.items()}}


def dummy_mlx(config: ModelConfig, precision: str, seed: int = 0, peaked: float = 1.0) -> MLXModel:
    """`precision` is one of PRECISIONS; "4bit" keeps 8 bits where `convert` does. `peaked` is a factor on the logits:
    with 1, every prediction is about uniform, which no trained model's is.

    Raises:
        Mistake: `precision` is not one we make.
    """
    if precision not in PRECISIONS:
        raise Mistake(f"precision {precision!r} is not one that MLX makes: need one of {', '.join(PRECISIONS)}")
    dtype, recipe = PRECISIONS[precision]
    network, keys = Network(config), iter(mx.random.split(mx.random.key(seed), 64 * len(config.layers) + 64))
    for path, module in network.named_modules():
        if not isinstance(module, Linear):
            continue
        if stored := recipe(path):
            module.quantize(stored)
            made = _quantized(module, stored, next(keys))
        else:
            shape = module.weight.shape
            made = {"weight": mx.random.normal(shape, dtype, scale=shape[-1] ** -0.5, key=next(keys))}
        module.update(made)
        mx.eval(module.parameters())  # one at a time: what each needs on the way is given back
    small = {path: array.astype(dtype) for path, array in tree_flatten(network.parameters()) if array.ndim == 1}
    for path in small:
        if path.endswith(("q_norm.weight", "k_norm.weight")):
            small[path] *= small[path].size ** -0.25  # scores of the size that a scale of 1 / sqrt(dim) would give
    network.load_weights(list(small.items()), strict=False)
    network.model.decoder.norm.weight = network.model.decoder.norm.weight * peaked
    set_dtype(network, dtype)
    mx.eval(network.parameters())
    return MLXModel(network, config, dtype)
