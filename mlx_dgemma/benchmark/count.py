"""What a pass has to do at least: FLOPs and bytes by part, counted from shapes and bits.

A multiply and an add are two FLOPs. Bytes are weights, once a use (the embedding is used twice in a denoise step, by
the head and by self-conditioning), and the K and V that are read. Activations and logits are left out: a good kernel
keeps them near, so what is counted here is a floor.
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
    """Bits a weight by class. Mistake if there is no such precision."""
    if name not in PRECISIONS:
        raise Mistake(f"precision {name!r} is not one we count; need one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _attention_parameters(config: ModelConfig, layer: LayerConfig) -> int:
    """Full layers have no v_proj."""
    queries = 2 * config.num_attention_heads * layer.head_dim  # q_proj and o_proj
    keys = (2 if layer.sliding else 1) * layer.num_key_value_heads * layer.head_dim
    return config.hidden_size * (queries + keys)


def parameters(config: ModelConfig) -> dict[str, int]:
    """Class -> weights. Norms and scalars, one in ten thousand, are left out."""
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
    """Of one pass, by part; a part that it does not have is left out."""

    flops: dict[str, float]
    bytes: dict[str, float]

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values())

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The roofline: whichever takes longer, moving the bytes or making the products."""
        return max(self.total_bytes / bytes_per_second, self.total_flops / flops_per_second)

    def seconds_by_part(self, bytes_per_second: float, flops_per_second: float) -> dict[str, float]:
        """The roofline of each part alone. Their sum is above that of the whole where some wait for bytes and others
        for products."""
        return {
            part: max(self.bytes[part] / bytes_per_second, self.flops[part] / flops_per_second) for part in self.flops
        }

    def as_json(self) -> dict:
        return {"flops": self.flops, "bytes": self.bytes}


@dataclass(frozen=True)
class Count:
    """Counts of a model of this shape, `bits` a weight by class, K and V of `kv_bytes` a number."""

    config: ModelConfig
    bits: Mapping[str, float]
    kv_bytes: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", parameters(self.config))

    @property
    def resident(self) -> float:
        """Bytes of all weights."""
        return sum(self._stored(name) for name in CLASSES)

    def _stored(self, name: str) -> float:
        return self.weights[name] * self.bits[name] / 8

    def _experts_read(self, tokens: float) -> float:
        """Bytes of those that at least one of `tokens` goes to, if each takes its own at random."""
        share = 1 - (1 - self.config.top_k_experts / self.config.num_experts) ** tokens
        return self._stored("experts") * share

    def _seen(self, layer: LayerConfig, context: int) -> int:
        return min(context, self.config.sliding_window - 1) if layer.sliding else context

    def _attention_flops(self, tokens: float, context: int, own: float) -> float:
        """Scores and sums of `tokens` queries over the text they see and `own` tokens beside them."""
        heads = self.config.num_attention_heads
        return sum(
            4 * tokens * heads * layer.head_dim * (self._seen(layer, context) + own) for layer in self.config.layers
        )

    def _text_bytes(self, context: int) -> float:
        """K and V of one sequence, as a pass reads them."""
        return sum(
            2 * layer.num_key_value_heads * layer.head_dim * self.kv_bytes * self._seen(layer, context)
            for layer in self.config.layers
        )

    def _body(self, tokens: float, context: int, rows: int, own: float) -> Work:
        """The layers, for `tokens` in `rows` sequences."""
        active = self.weights["experts"] * self.config.top_k_experts / self.config.num_experts
        flops = {
            "linears": 2 * tokens * sum(self.weights[name] for name in _LINEARS),
            "experts": 2 * tokens * active,
            "attention": self._attention_flops(tokens, context, own),
        }
        read = {
            "linears": sum(map(self._stored, _LINEARS)),
            "experts": self._experts_read(tokens),
            "attention": rows * self._text_bytes(context),
        }
        return Work(flops, read)

    def commit(self, context: int, rows: int = 1) -> Work:
        """Encoding `rows` finished canvases, each behind `context` tokens."""
        length = self.config.canvas_length
        return self._body(rows * length, context, rows, length)

    def denoise(self, context: int, rows: int = 1) -> Work:
        """One step of `rows` canvases, each behind `context` tokens. The sum over the whole vocabulary that
        self-conditioning may need is counted; an implementation may find out that it need not make it."""
        tokens, table = rows * self.config.canvas_length, self.weights["embedding"]
        body = self.commit(context, rows)
        mixing = self.weights["self-conditioning"]
        head = {"head and draw": 2 * tokens * table, "self-conditioning": 2 * tokens * (table + mixing)}
        read = {"head and draw": self._stored("embedding")}
        read["self-conditioning"] = self._stored("embedding") + self._stored("self-conditioning")
        return Work(body.flops | head, body.bytes | read)

    def token(self, context: int, rows: int = 1) -> Work:
        """The next token of each of `rows` texts of `context` tokens, left to right."""
        body = self._body(rows, context, rows, 1)
        head = {"head and draw": 2 * rows * self.weights["embedding"]}
        return Work(body.flops | head, body.bytes | {"head and draw": self._stored("embedding")})


@dataclass(frozen=True)
class BreakEven:
    """Where diffusion and autoregression are equally fast: a full canvas in `steps` passes and one commit takes as long
    as its tokens one by one."""

    steps: float  # below one: diffusion cannot win
    tokens_per_forward: float | None  # that a text needs for diffusion to win; None where not even zero steps would do

    @classmethod
    def of(cls, canvas: int, step: float, commit: float, token: float) -> BreakEven:
        """Seconds of a step, of a commit, and of a token."""
        steps = (canvas * token - commit) / step
        return cls(steps, canvas / steps if steps > 0 else None)


def tokens_per_second(canvas: int, steps: float, step: float, commit: float, rows: int = 1) -> float:
    """Of `rows` full canvases at once that take `steps` passes each."""
    return rows * canvas / (steps * step + commit)
