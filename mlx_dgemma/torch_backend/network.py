"""DiffusionGemma's network: a Gemma 4 stack whose text pass is causal and whose canvas pass looks both ways.

Parameters carry the checkpoint's names. The encoder and the decoder share every weight but one scalar a layer, so there
is one stack here. transformers' `modeling_diffusion_gemma.py` is the reference.

A pass encodes A texts of P tokens and denoises B canvases of L tokens that stand behind texts. Only shapes are known on
the host; how many of the tokens are real, where they stand and whose cache they belong to are tensors on the device. So
one pass is one CUDA graph, and serves all calls of its shapes.
"""

import torch
from torch import Tensor, nn

from ..checkpoint.config import LayerConfig, ModelConfig
from . import parallel
from .attention import Attend, heads
from .fused import Activation, after_attention, after_experts, gated, gather
from .layers import Embedding, ExpertLinear, Linear, Norm, SideBySide
from .routing import Routes, route
from .tokens import Tokens


class SharedInputs:
    """Rotations, visible keys and places in the cache, which all layers of one kind share in a pass."""

    def __init__(self, layer: LayerConfig, config: ModelConfig, blocks: list[Tokens], room: int):
        window = config.sliding_window if layer.sliding else None
        self.keys = [block.keys(window) for block in blocks]
        self.places = [block.places(room) if block.causal else None for block in blocks]
        self.shapes = [block.ids.shape for block in blocks]
        positions = torch.cat([block.positions.flatten() for block in blocks]).float()
        # Proportional RoPE: wavelengths as of the whole head, and pairs after the first `rotated` stand still.
        pairs = torch.arange(layer.head_dim // 2, device=positions.device)
        rates = torch.where(pairs < layer.rotated, 1 / layer.rope_theta ** (2 * pairs / layer.head_dim), 0.0)
        angles = positions[:, None] * rates
        self.rotation = torch.stack((angles.cos(), angles.sin()))  # [2, T, head_dim / 2]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = Linear(inner, hidden), Linear(inner, hidden)
        self.down_proj = Linear(hidden, inner)

    def join(self) -> None:
        """Lay the loaded linears of one input side by side."""
        self.gate_up = SideBySide(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj

    def forward(self, x: Activation) -> Tensor:
        return self.down_proj(gated(self.gate_up(x), self.down_proj.is_fp8))


class Attention(nn.Module):
    """Attention of scale 1, which q_norm and k_norm contain. Full layers have no v_proj; their values are their keys
    before k_norm and RoPE."""

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        hidden, heads, dim = config.hidden_size, layer.num_key_value_heads, layer.head_dim
        self.divided = parallel.mine.divides(layer)
        self.q_proj = Linear(config.num_attention_heads * dim, hidden)
        self.k_proj = Linear(heads * dim, hidden)
        self.v_proj = Linear(heads * dim, hidden) if layer.sliding else None
        self.o_proj = Linear(hidden, config.num_attention_heads * dim)
        self.q_norm, self.k_norm = Norm(dim, config.rms_norm_eps), Norm(dim, config.rms_norm_eps)
        self.attend = Attend()

    def join(self) -> None:
        """Lay the loaded linears of one input side by side."""
        self.qkv = SideBySide(*filter(None, (self.q_proj, self.k_proj, self.v_proj)))
        del self.q_proj, self.k_proj, self.v_proj

    def forward(self, x: Activation, shared: SharedInputs, cache: tuple[Tensor, Tensor]) -> Tensor:
        norms = self.q_norm.weight, self.k_norm.weight, shared.rotation, self.q_norm.eps
        queries, keys, values = heads(self.qkv(x), tuple(self.qkv.sizes), *norms)
        outputs, first = [], 0
        for shape, visible, places in zip(shared.shapes, shared.keys, shared.places, strict=True):
            q, k, v = (a[first : first + shape.numel()].unflatten(0, shape) for a in (queries, keys, values))
            if places is not None:  # a text, which comes first: a canvas of the same pass attends to it
                cache[0][places], cache[1][places] = k, v
            outputs.append(self.attend(q, cache, (k, v), visible).flatten(0, 1).flatten(1))
            first += shape.numel()
        output = self.o_proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
        return parallel.sum_up(output) if self.divided else output


class Router(nn.Module):
    """Chooses the experts of each token, from the residual under a norm that is not the layer's."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k_experts
        self.register_buffer("scale", torch.ones(config.hidden_size))
        self.register_buffer("per_expert_scale", torch.ones(config.num_experts))
        self.proj = Linear(config.num_experts, config.hidden_size)

    def forward(self, x: Tensor, here: int) -> Routes:
        """[T, D], normed and scaled -> its routes to the `here` experts of this rank."""
        return route(self.proj(x), self.per_expert_scale, self.top_k, parallel.mine.rank * here, here)


class Experts(nn.Module):
    """This rank's share of the `num_experts` experts."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(config.num_experts, 2 * inner, hidden)  # gate's rows first
        self.down_proj = ExpertLinear(config.num_experts, hidden, inner)

    def forward(self, x: Activation, routes: Routes) -> Tensor:
        """[T, D] -> [T, D]."""
        y = self.gate_up_proj(x, routes.ends, routes.tokens, gate=True)
        return gather(self.down_proj(y, routes.ends), routes.places, routes.weights)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        self.kind, self.eps = layer, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.router = Router(config)
        self.experts = Experts(config)
        self.register_buffer("layer_scalar", torch.ones(1))  # of the decoder; the encoder's are `EncoderScalar`
        norms = "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm"
        norms += " post_feedforward_layernorm_1 post_feedforward_layernorm_2 pre_feedforward_layernorm_2"
        for name in norms.split():
            setattr(self, name, Norm(config.hidden_size, config.rms_norm_eps))

    def forward(self, x: Tensor, shared: SharedInputs, cache: tuple[Tensor, Tensor], scalar: Tensor) -> Tensor:
        attention, fp8 = self.self_attn, self.experts.gate_up_proj.is_fp8
        attended = attention(self.input_layernorm(x, fp8=attention.qkv.is_fp8), shared, cache)
        norms = self.post_attention_layernorm, self.pre_feedforward_layernorm, self.pre_feedforward_layernorm_2
        weights = tuple(norm.weight for norm in norms)
        x, dense, sparse, routed = after_attention(x, attended, weights, self.router.scale, self.eps, fp8)
        sparse = parallel.sum_up(self.experts(sparse, self.router(routed, len(self.experts.down_proj.weight))))
        norms = self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2, self.post_feedforward_layernorm
        weights = tuple(norm.weight for norm in norms)
        return after_experts(x, self.mlp(dense), sparse, weights, scalar, self.eps)


class SelfConditioning(MLP):
    """Adds the last pass's mean embeddings, through an MLP, to the canvas's embeddings, and norms the sum."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.pre_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_norm = Norm(config.hidden_size, config.rms_norm_eps, scaled=False)

    def forward(self, embeddings: Tensor, soft: Tensor) -> Tensor:
        """[T, D] each. `soft` is zero where unknown; the MLP maps zero to zero."""
        return self.post_norm(embeddings + super().forward(self.pre_norm(soft, fp8=self.gate_up.is_fp8)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.layers)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config)


class EncoderScalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("layer_scalar", torch.ones(1))


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.decoder = Decoder(config)
        self.encoder, self.encoder.language_model = nn.Module(), nn.Module()
        self.encoder.language_model.layers = nn.ModuleList(EncoderScalar() for _ in config.layers)


class Network(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.dtype = config, torch.float32
        self.kinds = [parallel.mine.heads(layer) for layer in config.layers]  # of the caches
        self.model = Backbone(config)

    @staticmethod
    def run(layer: Layer, *arguments) -> Tensor:
        """Run one layer. Replaced where a model learns and keeps no activations of it."""
        return layer(*arguments)

    def join(self) -> None:
        """Lay loaded linears of one input side by side, in all layers."""
        for module in [module for module in self.modules() if isinstance(module, Attention | MLP)]:  # no linear is kept
            module.join()

    @property
    def table(self) -> Embedding:
        return self.model.decoder.embed_tokens

    def forward(
        self, blocks: list[Tokens], conditioning: tuple[Tensor, Tensor] | None, caches: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return the last hidden states [T, D], normed for the head, of all tokens one after another, texts first.

        Args:
            conditioning: self-conditioning of all tokens of the canvases: mean embeddings [n, D], and token ids [n]
                that replace them, -1 for none.
            caches: the pool's keys and values of each layer. Texts are written there; the caller counts them into the
                caches' lengths.
        """
        decoder, scalars = self.model.decoder, self.model.encoder.language_model.layers
        ids = torch.cat([block.ids.flatten() for block in blocks])
        if conditioning is None:
            x = self.table.lookup(ids, self.dtype)
        else:
            soft, certain = conditioning
            count = len(ids) - len(certain)
            looked_up = self.table.lookup(torch.cat((ids, certain.clamp(min=0))), self.dtype)
            texts, canvases, known = looked_up.split([count, len(certain), len(certain)])
            soft = torch.where(certain[:, None] >= 0, known, soft)
            x = torch.cat((texts, decoder.self_conditioning(canvases, soft)))
        text = torch.cat([torch.full((block.ids.numel(), 1), block.causal, device=x.device) for block in blocks])
        shared: dict[LayerConfig, SharedInputs] = {}
        for index, (layer, cache) in enumerate(zip(decoder.layers, caches, strict=True)):
            if layer.kind not in shared:
                shared[layer.kind] = SharedInputs(layer.kind, self.config, blocks, cache[0].shape[1] - 1)
            scalar = torch.where(text, scalars[index].layer_scalar, layer.layer_scalar)
            x = self.run(layer, x, shared[layer.kind], cache, scalar)
        return decoder.norm(x)
