"""DiffusionGemma's network: a Gemma 4 stack whose text pass is causal and whose canvas pass looks both ways.

Parameters carry the checkpoint's names. The encoder and the decoder share every weight but one scalar a layer, so there
is one stack here, and a `Segment` says which pass its tokens are in. transformers' `modeling_diffusion_gemma.py` is the
reference. Activations are [T, D]: the tokens of all segments of a pass, one after another; only attention looks at
where one ends. Everything is lazy, and can be differentiated by `mx.value_and_grad` with new caches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.config import LayerConfig, ModelConfig
from . import family, parallel
from .attention import attend
from .cache import MLXCache
from .layers import Embedding, ExpertLinear, Linear, compiled, tanh, tiles_of


@dataclass
class Segment:
    """Tokens [start, stop) of a pass: text to be encoded into `cache`, or a canvas that stands behind it."""

    start: int
    stop: int
    cache: MLXCache
    offset: int  # position of the first token
    causal: bool


@compiled
def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, by the tanh formula of Hendrycks & Gimpel (arXiv 1606.08415)."""
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)  # sqrt(2 / pi)
    return 0.5 * gate * (1 + tanh(inner)) * up


@compiled
def scaled(x: mx.array, factor: float) -> mx.array:
    return x.astype(mx.float32) * factor


@compiled
def product(x: mx.array, y: mx.array) -> mx.array:
    return x * y.astype(mx.float32)


@compiled
def added(x: mx.array, y: mx.array, scalar: mx.array) -> mx.array:
    return (x + y) * scalar


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(config.intermediate_size, config.hidden_size)
        self.up_proj = Linear(config.intermediate_size, config.hidden_size)
        self.down_proj = Linear(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(geglu(self.gate_proj(x), self.up_proj(x)))


class Attention(nn.Module):
    """Attention with scale 1: q_norm and k_norm have it. Values are normed without a weight; in full layers, which have
    no v_proj, they are the keys before k_norm and RoPE."""

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        hidden, heads, dim = config.hidden_size, layer.num_key_value_heads, layer.head_dim
        self.dim, self.divided = dim, parallel.mine.divides(layer)
        self.window = config.sliding_window if layer.sliding else None
        self.q_proj = Linear(config.num_attention_heads * dim, hidden)
        self.k_proj = Linear(heads * dim, hidden)
        if layer.sliding:
            self.v_proj = Linear(heads * dim, hidden)
        self.o_proj = Linear(hidden, config.num_attention_heads * dim)
        self.q_norm = nn.RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(dim, config.rms_norm_eps)
        self.eps = config.rms_norm_eps
        # Proportional RoPE: wavelengths as of the whole head, and pairs after the first `rotated` stand still.
        turning = layer.rope_theta ** (mx.arange(layer.rotated) * (2 / dim))
        self._wavelengths = mx.concatenate([turning, mx.full((dim // 2 - layer.rotated,), mx.inf)])

    def __call__(self, x: mx.array, segments: list[Segment], index: int) -> mx.array:
        # Normed while their rows lie together: behind the transpose the norm would copy them first.
        raw = self._heads(self.k_proj(x))
        values = mx.fast.rms_norm(self._heads(self.v_proj(x)) if "v_proj" in self else raw, None, self.eps)
        heads = self.q_norm(self._heads(self.q_proj(x))), self.k_norm(raw), values
        queries, keys, values = (a.transpose(0, 2, 1, 3) for a in heads)  # [1, H, T, D]
        turned = self._rotated(queries, keys, segments)
        parts = list(zip(*turned, (values[:, :, s.start : s.stop] for s in segments), strict=True))
        return self.attended(parts, segments, index)

    def attended(self, parts: list[tuple[mx.array, ...]], segments: list[Segment], index: int) -> mx.array:
        """Queries, keys and values [1, H, n, D] of each segment, normed and turned -> [T, hidden]."""
        outputs: list[mx.array | None] = [None] * len(segments)
        texts = []
        for i, ((q, k, v), segment) in enumerate(zip(parts, segments, strict=True)):
            cache = segment.cache.layers[index]
            span = cache.write(k, v, text=segment.causal)
            if segment.causal:
                texts.append((i, q, cache, span))
            else:
                outputs[i] = attend(q, *cache.view(span), causal=False, window=self.window)
        # Texts look last: a view that is held while a canvas is written behind them would make the write a copy.
        for i, q, cache, span in texts:
            outputs[i] = attend(q, *cache.view(span), causal=True, window=self.window)
        merged = mx.concatenate(outputs, axis=2)  # [1, H, T, D]
        output = self.o_proj(merged.transpose(0, 2, 1, 3).reshape(merged.shape[2], -1))
        return parallel.sum_up(output) if self.divided else output

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(1, x.shape[0], -1, self.dim)  # [1, T, H, D]

    def _rotated(self, queries: mx.array, keys: mx.array, segments: list[Segment]) -> list[list[mx.array]]:
        """RoPE (arXiv 2104.09864), both [1, H, T, D] -> [1, H, n, D] of each segment: pair (i, i + D / 2) of a head
        turns by position / wavelengths[i]."""
        parts = [slice(s.start, s.stop) for s in segments]
        if family.current().gpu:
            rope = partial(
                mx.fast.rope, dims=self.dim, traditional=False, base=None, scale=1.0, freqs=self._wavelengths
            )
            spans = list(zip(parts, segments, strict=True))
            return [[rope(x[:, :, part], offset=s.offset) for part, s in spans] for x in (queries, keys)]
        # On the CPU device that is two dozen operations: they are done once for all segments, and the angles for both.
        positions = np.concatenate([np.arange(s.stop - s.start) + s.offset for s in segments]).astype(np.float32)
        angles = mx.array(positions)[:, None] * (1 / self._wavelengths)
        cos, sin = mx.cos(angles).astype(queries.dtype), mx.sin(angles).astype(queries.dtype)
        turned = []
        for x in (queries, keys):
            first, second = mx.split(x, 2, axis=-1)
            whole = mx.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
            turned.append([whole[:, :, part] for part in parts])
        return turned


class Router(nn.Module):
    """Chooses the experts of each token, from the residual as it stands: it has its own norm, not the layer's."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k_experts
        self.scale = mx.ones((config.hidden_size,))
        self.proj = Linear(config.num_experts, config.hidden_size)
        self.per_expert_scale = mx.ones((config.num_experts,))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """[T, D], normed with `scale` -> experts [T, K] and their weights [T, K], float32."""
        scores = self.proj(x)  # to be multiplied by 1 / sqrt(D)
        # Which experts are chosen has no gradient.
        experts = mx.argpartition(mx.stop_gradient(scores), -self.top_k, axis=-1)[:, -self.top_k :]
        # The softmax over the chosen is the reference's softmax over all, divided by the sum of the chosen.
        chosen = scaled(mx.take_along_axis(scores, experts, axis=-1), x.shape[-1] ** -0.5)
        return experts, product(mx.softmax(chosen, axis=-1), self.per_expert_scale[experts])


class Experts(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(config.num_experts, 2 * inner, hidden)  # gate's rows first
        self.down_proj = ExpertLinear(config.num_experts, hidden, inner)

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """[T, D], [T, K], [T, K] -> [T, D]. Pairs of token and expert are sorted, so that an expert is read once."""
        if parallel.mine.ranks > 1:  # pairs with experts of another rank go to the last one here, and weigh nothing
            count = self.down_proj.count
            experts = experts.astype(mx.int32) - parallel.mine.rank * count
            here = (experts >= 0) & (experts < count)
            experts, weights = mx.where(here, experts, count - 1).astype(mx.uint32), mx.where(here, weights, 0)
        y = self.of_pairs(x, experts)
        if family.current().gpu:  # one kernel, and no float32 array of all pairs
            return (weights[:, None].astype(x.dtype) @ y).squeeze(1)
        return (y * weights[..., None]).sum(axis=1).astype(x.dtype)

    def of_pairs(self, x: mx.array, experts: mx.array, order: mx.array | None = None) -> mx.array:
        """[T, D], [T, K] -> [T, K, D]; `order` sorts the pairs by expert."""
        if experts.size < family.current().sorted_from:
            return self._mlp(x[:, None], experts, ascending=False)
        order = mx.argsort(experts.flatten()) if order is None else order
        back, tokens, experts_in_order = mx.argsort(order), order // experts.shape[1], experts.flatten()[order]
        if family.current().gpu:
            y = self._mlp(x[tokens], experts_in_order, ascending=True)
        else:
            owners, index, places = tiles_of(experts_in_order, self.down_proj.count)
            y, back = self._mlp(x[tokens[index]], owners, ascending=False).flatten(0, 1), places[back]
        return y[back].reshape(*experts.shape, -1)

    def _mlp(self, x: mx.array, experts: mx.array, ascending: bool) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x, experts, ascending=ascending), 2, axis=-1)
        return self.down_proj(geglu(gate, up), experts, ascending=ascending)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.router = Router(config)
        self.experts = Experts(config)
        self.layer_scalar = mx.ones((1,))  # of a canvas; `model.encoder` has those of text
        norms = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
        norms += " post_feedforward_layernorm_1 post_feedforward_layernorm_2 pre_feedforward_layernorm_2"
        for name in norms.split():
            self[name] = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array, segments: list[Segment], index: int, scalar: mx.array) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), segments, index))
        to_mlp, to_experts, to_router = self._normed(x)
        dense = self.post_feedforward_layernorm_1(self.mlp(to_mlp))
        sparse = parallel.sum_up(self.experts(to_experts, *self.router(to_router)))
        sparse = self.post_feedforward_layernorm_2(sparse)
        return added(x, self.post_feedforward_layernorm(dense + sparse), scalar)

    def _normed(self, x: mx.array) -> list[mx.array]:
        """[T, D] for the MLP, the experts and the router. A norm is one kernel on a GPU, and nine operations on the CPU
        device, of which the last is the product with its weight."""
        weights = self.pre_feedforward_layernorm.weight, self.pre_feedforward_layernorm_2.weight, self.router.scale
        eps = self.self_attn.eps
        if family.current().gpu:
            return [mx.fast.rms_norm(x, weight, eps) for weight in weights]
        normed = mx.fast.rms_norm(x, None, eps)
        return [normed * weight for weight in weights]


class SelfConditioning(MLP):
    """Adds what the last pass predicted to the canvas's embeddings. The norm behind it works on the first pass too."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.pre_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, embeddings: mx.array, soft: mx.array | None) -> mx.array:
        """[L, D] each; `soft` None stands for zeros, which the MLP maps to zeros."""
        x = embeddings if soft is None else embeddings + super().__call__(self.pre_norm(soft))
        return mx.fast.rms_norm(x, None, self.pre_norm.eps)


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, layer) for layer in config.layers]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config)


def _module(**children: mx.array | nn.Module | list[nn.Module]) -> nn.Module:
    """Make a module that only holds its children, for the sake of their names."""
    module = nn.Module()
    for name, child in children.items():
        module[name] = child
    return module


class Network(nn.Module):
    """Embeddings in, last hidden states out; `vocabulary.py` has what comes before and after."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        scalars = [_module(layer_scalar=mx.ones((1,))) for _ in config.layers]
        encoder = _module(language_model=_module(layers=scalars))
        self.model = _module(decoder=Decoder(config), encoder=encoder)

    def __call__(self, x: mx.array, segments: list[Segment], ahead: int = 0) -> mx.array:
        """x [T, D] -> [T, D], normed for the head. Causal segments append to their caches, whose `length` the caller
        moves on; a canvas may stand behind text that is encoded in the same pass. `ahead`: as in `Family`."""
        decoder = self.model.decoder
        for index, (layer, scalar) in enumerate(zip(decoder.layers, self.scalars(segments), strict=True)):
            x = self.run(layer, x, segments, index, scalar)
            if ahead and (index + 1) % ahead == 0:
                mx.async_eval(x)
        return decoder.norm(x)

    def scalars(self, segments: list[Segment]) -> Iterator[mx.array]:
        """Each layer's scalar: text's [1], a canvas's [1], or both [T, 1]."""
        causal = [s.causal for s in segments]
        mixed = mx.concatenate([mx.full((s.stop - s.start, 1), s.causal) for s in segments])
        for layer, text in zip(self.model.decoder.layers, self.model.encoder.language_model.layers, strict=True):
            if any(causal) and not all(causal):
                yield mx.where(mixed, text.layer_scalar, layer.layer_scalar)
            else:
                yield text.layer_scalar if all(causal) else layer.layer_scalar

    @staticmethod
    def run(layer: Layer, x: mx.array, segments: list[Segment], index: int, scalar: mx.array) -> mx.array:
        """Run one layer. Replaced where a model learns and keeps no activations of it."""
        return layer(x, segments, index, scalar)
