"""DiffusionGemma's network: a Gemma 4 stack whose text pass is causal and whose canvas pass looks both ways.

Parameters carry the checkpoint's names. The encoder and the decoder share every weight but one scalar a layer, so there
is one stack here, and a `Segment` says which pass its tokens are in. transformers' `modeling_diffusion_gemma.py` is the
reference. Activations are [T, D]: the tokens of all segments of a pass, one after another; only attention looks at
where one ends. They are arrays of `arithmetic.namespace()`: MLX's, but on the CPU device NumPy's, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.config import LayerConfig, ModelConfig
from . import arithmetic
from .arithmetic import bring, rope, single, softmax, to_mlx
from .attention import attend
from .cache import LayerCache, MLXCache
from .layers import Embedding, ExpertLinear, Linear, Norm


@dataclass
class Segment:
    """Tokens [start, stop) of a pass: text to be encoded into `cache`, or a canvas that stands behind it."""

    start: int
    stop: int
    cache: MLXCache
    offset: int  # position of the first token
    causal: bool


def _geglu(gate: Any, up: Any) -> Any:
    """gelu(gate) * up, by the tanh formula of Hendrycks & Gimpel (arXiv 1606.08415)."""
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)  # sqrt(2 / pi)
    return 0.5 * gate * (1 + arithmetic.namespace().tanh(inner)) * up


_fused = mx.compile(_geglu, shapeless=True)


def geglu(gate: Any, up: Any) -> Any:
    return (_fused if arithmetic.compiled() else _geglu)(gate, up)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(config.intermediate_size, config.hidden_size)
        self.up_proj = Linear(config.intermediate_size, config.hidden_size)
        self.down_proj = Linear(config.hidden_size, config.intermediate_size)

    def __call__(self, x: Any) -> Any:
        return self.down_proj(geglu(self.gate_proj(x), self.up_proj(x)))


class Attention(nn.Module):
    """Scale 1: q_norm and k_norm have it. Full layers have no v_proj; values are their keys before k_norm and RoPE."""

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        hidden, heads, dim = config.hidden_size, layer.num_key_value_heads, layer.head_dim
        self.dim = dim
        self.window = config.sliding_window if layer.sliding else None
        self.q_proj = Linear(config.num_attention_heads * dim, hidden)
        self.k_proj = Linear(heads * dim, hidden)
        if layer.sliding:
            self.v_proj = Linear(heads * dim, hidden)
        self.o_proj = Linear(hidden, config.num_attention_heads * dim)
        self.q_norm = Norm(dim, config.rms_norm_eps)
        self.k_norm = Norm(dim, config.rms_norm_eps)
        self.v_norm = Norm(dim, config.rms_norm_eps, scaled=False)
        # Proportional RoPE: wavelengths as of the whole head, and pairs after the first `rotated` stand still.
        turning = layer.rope_theta ** (mx.arange(layer.rotated) * (2 / dim))
        self._wavelengths = mx.concatenate([turning, mx.full((dim // 2 - layer.rotated,), mx.inf)])

    def __call__(self, x: Any, segments: list[Segment], index: int) -> Any:
        queries = self.q_norm(self._heads(self.q_proj(x)))
        raw = self._heads(self.k_proj(x))
        keys = self.k_norm(raw)
        values = self.v_norm(self._heads(self.v_proj(x)) if "v_proj" in self else raw)
        outputs = [
            self._attend(
                *(a[:, :, segment.start : segment.stop] for a in (queries, keys, values)),
                segment,
                segment.cache.layers[index],
            )
            for segment in segments
        ]
        merged = arithmetic.namespace().concatenate(outputs, axis=2)  # [1, H, T, D]
        return self.o_proj(merged.transpose(0, 2, 1, 3).reshape(x.shape[0], -1))

    def _heads(self, x: Any) -> Any:
        return x.reshape(1, x.shape[0], -1, self.dim).transpose(0, 2, 1, 3)  # [1, H, T, D]

    def _attend(self, queries: Any, keys: Any, values: Any, segment: Segment, cache: LayerCache) -> Any:
        queries, keys = (rope(a, segment.offset, self._wavelengths) for a in (queries, keys))
        all_keys, all_values = cache.visible(*(to_mlx(a, self.k_norm.weight.dtype) for a in (keys, values)))
        if segment.causal:
            cache.append(keys.shape[2])
        return attend(queries, all_keys, all_values, causal=segment.causal, window=self.window)


class Router(nn.Module):
    """Which experts a token goes to, from the residual as it stands: its own norm, not the layer's."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k_experts
        self.norm = Norm(config.hidden_size, config.rms_norm_eps, scaled=False)
        self.scale = mx.ones((config.hidden_size,))
        self.proj = Linear(config.num_experts, config.hidden_size)
        self.per_expert_scale = mx.ones((config.num_experts,))

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """[T, D] -> experts [T, K] and their weights [T, K], float32."""
        xp = arithmetic.namespace()
        scores = self.proj(self.norm(x) * bring(self.scale) * x.shape[-1] ** -0.5)
        experts = xp.argpartition(-scores, self.top_k - 1, axis=-1)[:, : self.top_k]
        # The softmax over the chosen is the reference's softmax over all, divided by the sum of the chosen.
        chosen = single(xp.take_along_axis(scores, experts, axis=-1))
        return experts, softmax(chosen) * bring(self.per_expert_scale)[experts]


class Experts(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(config.num_experts, 2 * inner, hidden)  # gate's rows first
        self.down_proj = ExpertLinear(config.num_experts, hidden, inner)

    def __call__(self, x: Any, experts: Any, weights: Any) -> Any:
        """[T, D], [T, K], [T, K] -> [T, D]. Pairs of token and expert are sorted, so that an expert is read once."""
        xp, (tokens, top_k) = arithmetic.namespace(), experts.shape
        if arithmetic.is_few():
            gate, up = mx.split(self.gate_up_proj.unsorted(x[:, None], experts), 2, axis=-1)
            y = self.down_proj.unsorted(geglu(gate, up), experts)
            return (y * weights[..., None]).sum(axis=1).astype(x.dtype)
        order = xp.argsort(experts.flatten())
        sorted_experts = experts.flatten()[order]
        gate, up = xp.split(self.gate_up_proj(x[order // top_k], sorted_experts), 2, axis=-1)
        y = self.down_proj(geglu(gate, up), sorted_experts)
        y = y[xp.argsort(order)].reshape(tokens, top_k, -1)
        return (y * weights[..., None]).sum(axis=1).astype(x.dtype)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.router = Router(config)
        self.experts = Experts(config)
        self.layer_scalar = mx.ones((1,))  # of the decoder; the encoder's are `EncoderScalar`
        norms = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
        norms += " post_feedforward_layernorm_1 post_feedforward_layernorm_2 pre_feedforward_layernorm_2"
        for name in norms.split():
            self[name] = Norm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: Any, segments: list[Segment], index: int, scalar: Any) -> Any:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), segments, index))
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        sparse = self.experts(self.pre_feedforward_layernorm_2(x), *self.router(x))
        sparse = self.post_feedforward_layernorm_2(sparse)
        return (x + self.post_feedforward_layernorm(dense + sparse)) * scalar


class SelfConditioning(MLP):
    """What the last pass believed, added to the canvas's embeddings; the norm behind it works on the first pass too."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.pre_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_norm = Norm(config.hidden_size, config.rms_norm_eps, scaled=False)

    def __call__(self, embeddings: Any, soft: Any) -> Any:
        """[L, D] each; `soft` None stands for zeros, of which the reference makes zeros."""
        return self.post_norm(embeddings if soft is None else embeddings + super().__call__(self.pre_norm(soft)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config, layer) for layer in config.layers]
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config)


class EncoderScalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_scalar = mx.ones((1,))


class EncoderText(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.layers = [EncoderScalar() for _ in config.layers]


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.language_model = EncoderText(config)


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.decoder = Decoder(config)
        self.encoder = Encoder(config)


class Network(nn.Module):
    """Embeddings in, last hidden states out; `vocabulary.py` has what comes before and after."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.model = Backbone(config)

    def __call__(self, x: Any, segments: list[Segment]) -> mx.array:
        """x [T, D] -> [T, D], normed for the head and MLX's again. Causal segments append to their caches, whose
        `length` the caller moves on; a canvas may stand behind text that is encoded in the same pass."""
        decoder, scalars = self.model.decoder, self.model.encoder.language_model.layers
        causal = [s.causal for s in segments]
        mixed = mx.concatenate([mx.full((s.stop - s.start, 1), s.causal) for s in segments])
        for index, layer in enumerate(decoder.layers):
            encoder_scalar, scalar = scalars[index].layer_scalar, layer.layer_scalar
            if any(causal):
                scalar = encoder_scalar if all(causal) else mx.where(mixed, encoder_scalar, scalar)
            x = layer(x, segments, index, bring(scalar))
        return to_mlx(decoder.norm(x), decoder.embed_tokens.dtype)
