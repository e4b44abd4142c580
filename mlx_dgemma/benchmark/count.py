"""Counts what a pass has to do at least: FLOPs and bytes by part, from shapes and bits.

A multiply and an add are two FLOPs. Bytes are weights, once a use (the embedding is used twice in a denoise step, by
the head and by self-conditioning), and the K and V that are read. Activations and logits are left out: a good kernel
keeps them near, so a count is a floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint.config import ModelConfig
from ..checkpoint.parameters import parameters

CLASSES = ("experts", "attention", "dense MLP", "router", "self-conditioning", "embedding")
LINEARS = ("attention", "dense MLP", "router")
# Bits a weight, with the scales and biases of its group: affine in groups of 64 has two 16-bit numbers a group.
UNIFORM = {"float32": 32.0, "bf16": 16.0, "fp8": 8.0, "8bit": 8.5, "4bit-uniform": 4.5, "3bit-uniform": 3.5}
BITS = {name: dict.fromkeys(CLASSES, bits) for name, bits in UNIFORM.items()} | {
    "4bit": {**dict.fromkeys(CLASSES, 8.5), "experts": 4.5, "self-conditioning": 4.5},  # mlx-community's recipe
    "3bit": {**dict.fromkeys(CLASSES, 8.5), "experts": 3.5, "self-conditioning": 3.5},
    "2-3bit": {**dict.fromkeys(CLASSES, 8.5), "experts": 2.5 + 1 / 3},  # convert's README has the recipe
    "2bit": {**dict.fromkeys(CLASSES, 8.5), "experts": 2.5, "self-conditioning": 2.5},
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

    def without(self, part: str) -> "Work":
        """Returns the same pass where it lacks a part."""
        return Work(*({name: n for name, n in table.items() if name != part} for table in (self.flops, self.bytes)))

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """Applies the roofline: whichever takes longer, moving the bytes or making the products."""
        return max(self.total_bytes / bytes_per_second, self.total_flops / flops_per_second)

    def seconds_by_part(self, bytes_per_second: float, flops_per_second: float) -> dict[str, float]:
        """Applies it to each part alone. Their sum is above that of the whole where some wait for bytes and others
        for products."""
        rates = bytes_per_second, flops_per_second
        return {part: max(self.bytes[part] / rates[0], self.flops[part] / rates[1]) for part in self.flops}


class Count:
    """Counts passes of a model of this shape, `bits` a weight by class, K and V of `kv_bytes` a number."""

    def __init__(self, config: ModelConfig, bits: Mapping[str, float], kv_bytes: float = 2.0):
        self.config, self.kv_bytes, self.weights = config, kv_bytes, parameters(config)
        self.stored = {name: self.weights[name] * bits[name] / 8 for name in CLASSES}  # bytes

    @property
    def resident(self) -> float:
        """Bytes of all weights."""
        return sum(self.stored.values())

    def _body(self, tokens: int, context: int, rows: int) -> Work:
        """Counts the layers for `tokens` in all of `rows` sequences, each behind `context` tokens of text."""
        config, length = self.config, tokens // rows
        active = config.top_k_experts / config.num_experts
        scores = keys = 0
        for layer in config.layers:
            seen = min(context, config.sliding_window - 1) if layer.sliding else context
            scores += layer.head_dim * (seen + length)
            keys += layer.num_key_value_heads * layer.head_dim * seen
        chosen = 1 - (1 - active) ** tokens  # share of experts that a token goes to, each taking its experts at random
        flops = {
            "linears": 2 * tokens * sum(self.weights[name] for name in LINEARS),
            "experts": 2 * tokens * self.weights["experts"] * active,
            "attention": 4 * tokens * config.num_attention_heads * scores,
        }
        read = {
            "linears": sum(self.stored[name] for name in LINEARS),
            "experts": self.stored["experts"] * chosen,
            "attention": rows * 2 * self.kv_bytes * keys,
        }
        return Work(flops, read)

    def commit(self, context: int, rows: int = 1) -> Work:
        """Counts encoding `rows` finished canvases, each behind `context` tokens."""
        return self._body(rows * self.config.canvas_length, context, rows)

    def denoise(self, context: int, rows: int = 1) -> Work:
        """Counts one step of `rows` canvases. The sum over the whole vocabulary that self-conditioning may need is
        counted, although an implementation may find out that it need not make it."""
        body, mlp, table = self.commit(context, rows), self.weights["self-conditioning"], self.weights["embedding"]
        double = 2 * rows * self.config.canvas_length
        head = {"head and draw": double * table, "self-conditioning": double * (table + mlp)}
        read = {"head and draw": self.stored["embedding"]}
        read["self-conditioning"] = self.stored["embedding"] + self.stored["self-conditioning"]
        return Work(body.flops | head, body.bytes | read)

    def token(self, context: int, rows: int = 1) -> Work:
        """Counts the next token of each of `rows` texts, left to right."""
        body, head = self._body(rows, context, rows), 2 * rows * self.weights["embedding"]
        return Work(body.flops | {"head and draw": head}, body.bytes | {"head and draw": self.stored["embedding"]})

    def passes(self, context: int, rows: int = 1) -> dict[str, Work]:
        """Counts all three."""
        counts = {"step": self.denoise, "commit": self.commit, "token": self.token}
        return {name: count(context, rows) for name, count in counts.items()}


def break_even(canvas: int, step: float, commit: float, token: float) -> dict[str, float | None]:
    """Returns the `steps` a block with which a canvas and its commit take as long as its tokens one by one: below one,
    diffusion cannot win; and the same in `tokens_per_forward`, None where not even zero steps would do. Takes seconds
    of a step, of a commit, and of a token."""
    steps = (canvas * token - commit) / step
    return {"steps": steps, "tokens_per_forward": canvas / steps if steps > 0 else None}


def tokens_per_second(canvas: int, steps: float, step: float, commit: float, rows: int = 1) -> float:
    """Returns the speed of `rows` full canvases at once that take `steps` passes each."""
    return rows * canvas / (steps * step + commit)
