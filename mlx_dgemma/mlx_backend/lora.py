"""Adapters on the network's linears (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.adapter import Adapter, Shape
from .layers import ExpertLinear, Linear, expert_product
from .network import Network
from .weights import linears


class LoRALinear(nn.Module):
    """linear(x) + scale * (x @ a) @ b, with a [in, r] and b [r, out]. The names are mlx-lm's."""

    def __init__(self, linear: Linear, a: mx.array, b: mx.array, scale: float):
        super().__init__()
        self.linear, self.lora_a, self.lora_b = linear, a, b
        self.scale = mx.array(scale)  # an array, so that the model's fingerprint counts it

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        return y + (self.scale * ((x @ self.lora_a) @ self.lora_b)).astype(y.dtype)


class LoRAExperts(LoRALinear):
    """The same with a pair for each expert: a [E, r, in], b [E, out, r]."""

    @property
    def count(self) -> int:
        return self.linear.count

    def __call__(self, x: mx.array, experts: mx.array, *, ascending: bool = False) -> mx.array:
        y = self.linear(x, experts, ascending=ascending)
        inner = expert_product(x.astype(mx.float32), self.lora_a.swapaxes(-1, -2), experts, ascending)
        added = expert_product(inner, self.lora_b.swapaxes(-1, -2), experts, ascending)
        return y + (self.scale * added).astype(y.dtype)


def shapes(network: Network) -> dict[str, Shape]:
    """Path of each linear -> [..., out, in], unpacked."""
    return {path: (*linear.weight.shape[:-1], linear.width) for path, linear in linears(network).items()}


def attach(network: Network, adapter: Adapter) -> None:
    """Add the adapter to the network. Mistake where it is another model's."""
    if not adapter.low_rank:
        stored = dict(tree_flatten(network.parameters()))
        adapter.check({path: array.shape for path, array in stored.items()})
        arrays = adapter.tensors.items()
        network.load_weights(
            [(path, mx.array(array).astype(stored[path].dtype)) for path, array in arrays], strict=False
        )
        return
    layers, modules = linears(network), dict(network.named_modules())
    for path, (a, b) in adapter.pairs(shapes(network)).items():
        parent, _, name = path.rpartition(".")
        kind = LoRAExperts if isinstance(layers[path], ExpertLinear) else LoRALinear
        modules[parent][name] = kind(layers[path], mx.array(a), mx.array(b), adapter.scale)
