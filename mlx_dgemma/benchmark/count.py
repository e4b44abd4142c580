"""Counts what a pass has to do at least: FLOPs and bytes by part, from shapes and bits.

A multiply and an add are two FLOPs. Bytes are weights, once a use (the embedding is used twice in a denoise step, by
the head and by self-conditioning), and the K and V that are read. Activations and logits are left out: a good kernel
keeps them near, so a count is a floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint.config import LayerConfig, ModelConfig
from ..errors import Mistake

PARTS = ("linears", "experts", "attention", "head and draw", "self-conditioning")
CLASSES = ("experts", "attention", "dense MLP", "router", "self-conditioning", "embedding")
_LINEARS = ("attention", "dense MLP", "router")
# Bits a weight, scales and biases of its group among them: affine in groups of 64 has two 16-bit numbers a group.
PRECISIONS: dict[str, dict[str, float]] = {
    "float32": dict.fromkeys(CLASSES, 32.0),
    "bf16": dict.fromkeys(CLASSES, 16.0),
    "fp8": dict.fromkeys(CLASSES, 8.0),
    "8bit": dict.fromkeys(CLASSES, 8.5),
    "4bit": {**dict.fromkeys(CLASSES, 8.5), "experts": 4.5, "self-conditioning": 4.5},  # mlx-community's recipe
    "4bit-uniform": dict.fromkeys(CLASSES, 4.5),
}


def precision(name: str) -> dict[str, float]:
    """Returns bits a weight by class. Mistake if there is no such precision."""
    if name not in PRECISIONS:
        raise Mistake(f"precision {name!r} is not one we count; need one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _attention_parameters(config: ModelConfig, layer: LayerConfig) -> int:
    queries = 2 * config.num_attention_heads * layer.head_dim  # q_proj and o_proj
    keys = (2 if layer.sliding else 1) * layer.num_key_value_heads * layer.head_dim  # full layers have no v_proj
    return config.hidden_size * (queries + keys)


def parameters(config: ModelConfig) -> dict[str, int]:
    """Counts weights by class. Norms and scalars, one in ten thousand, are left out."""
    hidden, layers = config.hidden_size, len(config.layers)
    return {
        "experts": layers * config.num_experts * 3 * hidden * config.moe_intermediate_size,
        "attention": sum(_attention_parameters(config, layer) for layer in config.layers),
        "dense MLP": layers * 3 * hidden * config.intermediate_size,
        "router": layers * (hidden * config.num_experts + hidden + config.num_experts),  # proj and two scales
        "self-conditioning": 3 * hidden * config.intermediate_size,
        "embedding": config.vocab_size * hidden,
    }


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of one pass, by part; a part that the pass does not have is left out."""

    flops: dict[str, float]
    bytes: dict[str, float]

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values())

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """Applies the roofline: whichever takes longer, moving the bytes or making the products."""
        return max(self.total_bytes / bytes_per_second, self.total_flops / flops_per_second)

    def seconds_by_part(self, bytes_per_second: float, flops_per_second: float) -> dict[str, float]:
        """Applies it to each part alone. Their sum is above that of the whole where some wait for bytes and others
        for products."""
        return {
            part: max(self.bytes[part] / bytes_per_second, self.flops[part] / flops_per_second) for part in self.flops
        }


@dataclass(frozen=True)
class Count:
    """Counts passes of a model of this shape, `bits` a weight by class, K and V of `kv_bytes` a number."""

    config: ModelConfig
    bits: Mapping[str, float]
    kv_bytes: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", parameters(self.config))

    @property
    def resident(self) -> float:
        """Bytes of all weights."""
        return sum(map(self._stored, CLASSES))

    def _stored(self, name: str) -> float:
        return self.weights[name] * self.bits[name] / 8

    def _visible(self, layer: LayerConfig, context: int) -> int:
        return min(context, self.config.sliding_window - 1) if layer.sliding else context

    def _body(self, tokens: int, context: int, rows: int) -> Work:
        """Counts the layers for `tokens` in all of `rows` sequences, each behind `context` tokens of text."""
        config, length = self.config, tokens // rows
        active = config.top_k_experts / config.num_experts
        scores = sum(layer.head_dim * (self._visible(layer, context) + length) for layer in config.layers)
        flops = {
            "linears": 2 * tokens * sum(self.weights[name] for name in _LINEARS),
            "experts": 2 * tokens * self.weights["experts"] * active,
            "attention": 4 * tokens * config.num_attention_heads * scores,
        }
        chosen = 1 - (1 - active) ** tokens  # share of experts that a token goes to, each taking its experts at random
        keys = sum(
            layer.num_key_value_heads * layer.head_dim * self._visible(layer, context) for layer in config.layers
        )
        read = {
            "linears": sum(map(self._stored, _LINEARS)),
            "experts": self._stored("experts") * chosen,
            "attention": rows * 2 * self.kv_bytes * keys,
        }
        return Work(flops, read)

    def commit(self, context: int, rows: int = 1) -> Work:
        """Counts encoding `rows` finished canvases, each behind `context` tokens."""
        return self._body(rows * self.config.canvas_length, context, rows)

    def denoise(self, context: int, rows: int = 1) -> Work:
        """Counts one step of `rows` canvases. The sum over the whole vocabulary that self-conditioning may need is
        counted, although an implementation may find out that it need not make it."""
        tokens, table = rows * self.config.canvas_length, self.weights["embedding"]
        body, mixing = self.commit(context, rows), self.weights["self-conditioning"]
        head = {"head and draw": 2 * tokens * table, "self-conditioning": 2 * tokens * (table + mixing)}
        read = {"head and draw": self._stored("embedding")}
        read["self-conditioning"] = self._stored("embedding") + self._stored("self-conditioning")
        return Work(body.flops | head, body.bytes | read)

    def token(self, context: int, rows: int = 1) -> Work:
        """Counts the next token of each of `rows` texts, left to right."""
        body, head = self._body(rows, context, rows), 2 * rows * self.weights["embedding"]
        read = self._stored("embedding")
        return Work(body.flops | {"head and draw": head}, body.bytes | {"head and draw": read})


@dataclass(frozen=True)
class BreakEven:
    """Where diffusion and autoregression are equally fast: a full canvas in `steps` passes and one commit takes as long
    as its tokens one by one."""

    steps: float  # below one: diffusion cannot win
    tokens_per_forward: float | None  # that a text needs for diffusion to win; None where not even zero steps would do

    @classmethod
    def of(cls, canvas: int, step: float, commit: float, token: float) -> BreakEven:
        """Takes seconds of a step, of a commit, and of a token."""
        steps = (canvas * token - commit) / step
        return cls(steps, canvas / steps if steps > 0 else None)


def tokens_per_second(canvas: int, steps: float, step: float, commit: float, rows: int = 1) -> float:
    """Returns the speed of `rows` full canvases at once that take `steps` passes each."""
    return rows * canvas / (steps * step + commit)
