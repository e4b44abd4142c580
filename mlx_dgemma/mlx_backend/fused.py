"""`Network`'s pass with our kernels in the place of what stands between the products: 20 kernels a layer, not 50.

Inference alone: it has no gradients. The order of operations is that of `network.py`, where it is to be read.
"""

import mlx.core as mx
import numpy as np

from . import family, kernels, parallel
from .network import Experts, Layer, Network, Segment


def fits(network: Network, dtype: mx.Dtype) -> bool:
    """Return whether the kernels are right and faster here, and take as many experts a token. One of them adds up the
    experts' results and norms the sum, which several ranks make together."""
    shaped = network.model.decoder.layers[0].router.top_k <= 32
    return shaped and parallel.mine.ranks == 1 and all(kernels.used(name, dtype) for name in kernels.GLUE)


def forward(network: Network, x: mx.array, segments: list[Segment], ahead: int = 0) -> mx.array:
    """Compute what `Network.__call__` does."""
    decoder = network.model.decoder
    positions = mx.array(np.concatenate([np.arange(s.stop - s.start) + s.offset for s in segments]).astype(np.int32))
    normed = decoder.layers[0].input_layernorm(x)
    following = [*(layer.input_layernorm.weight for layer in decoder.layers[1:]), decoder.norm.weight]
    for index, (layer, scalar, weight) in enumerate(
        zip(decoder.layers, network.scalars(segments), following, strict=True)
    ):
        attended = _attention(layer, normed, segments, index, positions)
        x, normed = _feed_forward(layer, x, attended, scalar, weight)
        if ahead and (index + 1) % ahead == 0:
            mx.async_eval(x, normed)
    return normed


def _attention(layer: Layer, x: mx.array, segments: list[Segment], index: int, positions: mx.array) -> mx.array:
    module = layer.self_attn
    keys = module.k_proj(x)
    projected = module.q_proj(x), keys, module.v_proj(x) if "v_proj" in module else keys
    norms = module.q_norm.weight, module.k_norm.weight
    q, k, v = kernels.heads(projected, norms, positions, module._wavelengths, module.eps)
    parts = [tuple(a[:, :, s.start : s.stop] for a in (q, k, v)) for s in segments]
    return module.attended(parts, segments, index)


def _feed_forward(
    layer: Layer, x: mx.array, attended: mx.array, scalar: mx.array, following: mx.array
) -> list[mx.array]:
    router, eps = layer.router, layer.self_attn.eps
    norms = layer.post_attention_layernorm.weight, layer.pre_feedforward_layernorm.weight
    norms += layer.pre_feedforward_layernorm_2.weight, router.scale
    x, dense, sparse, routed = kernels.residual(x, attended, norms, eps)
    routing = kernels.route(router.proj(routed), router.per_expert_scale, router.top_k, x.shape[-1] ** -0.5)
    pairs = _experts(layer.experts, sparse, routing)
    norms = layer.post_feedforward_layernorm_1.weight, layer.post_feedforward_layernorm_2.weight
    norms += layer.post_feedforward_layernorm.weight, following
    return kernels.tail(x, layer.mlp(dense), pairs, routing.weights, norms, scalar, eps)


def _experts(module: Experts, x: mx.array, routing: kernels.Routing) -> mx.array:
    """[N, D] -> [N * K, D] of each pair, not weighted."""
    many = routing.order.size >= family.current().sorted_from  # for a few pairs, MLX has other kernels
    if many and all(kernels.multiplies(layer, x.dtype) for layer in (module.gate_up_proj, module.down_proj)):
        hidden = kernels.multiply(module.gate_up_proj, x, routing, gated=True)
        return kernels.multiply(module.down_proj, hidden, routing, gated=False)
    return module.of_pairs(x, routing.experts.reshape(routing.weights.shape), routing.order).reshape(-1, x.shape[1])
