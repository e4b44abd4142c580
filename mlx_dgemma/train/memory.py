"""What a training run needs of memory, before anything is loaded. Bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ..checkpoint.adapter import Shape, pair_shapes
from ..checkpoint.config import ModelConfig
from ..checkpoint.memory import available, gigabytes
from ..errors import Mistake
from .options import Options

KEPT, MADE_AGAIN = 58, 10  # numbers a row and layer, times hidden_size, that the backward pass finds: measured on MLX
SLICE = 4096 * 4  # numbers a row of a slice of the vocabulary


def linear_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Path of each linear in a layer -> [..., out, in]."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    shapes: dict[str, Shape] = {}
    for number, layer in enumerate(config.layers):
        queries, keys = (heads * layer.head_dim for heads in (config.num_attention_heads, layer.num_key_value_heads))
        path = f"model.decoder.layers.{number}"
        shapes |= {f"{path}.self_attn.q_proj": (queries, hidden), f"{path}.self_attn.k_proj": (keys, hidden)}
        shapes |= {f"{path}.self_attn.v_proj": (keys, hidden)} if layer.sliding else {}
        shapes |= {f"{path}.self_attn.o_proj": (hidden, queries)}
        shapes |= {f"{path}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{path}.mlp.down_proj": (hidden, inner)}
        shapes |= {f"{path}.experts.gate_up_proj": (experts, 2 * config.moe_intermediate_size, hidden)}
        shapes |= {f"{path}.experts.down_proj": (experts, hidden, config.moe_intermediate_size)}
    return shapes


def in_last_layers(paths: Iterable[str], layers: int, count: int) -> list[str]:
    """Those of the last `count` layers, as mlx-lm's num_layers says; -1: of all."""
    first = layers - count if count >= 0 else 0
    return [path for path in paths if ".layers." not in path or int(path.split(".layers.")[1].split(".")[0]) >= first]


def needed(config: ModelConfig, weights: int, options: Options, longest: int, checkpoint: bool) -> dict[str, int]:
    """Bytes by what they are for.

    Args:
        weights: of the checkpoint as it lies in memory.
        longest: tokens of the longest text.
    """
    rows = options.batch_size * (longest + config.canvas_length)
    width = 4 if (options.dtype or config.dtype) == "float32" else 2
    if options.fine_tune_type == "full":
        learnt = weights * (
            3 if options.optimizer == "adamw" else 1
        )  # gradients and two moments, in the weights' dtype
    else:
        linears = linear_shapes(config)
        paths = in_last_layers(linears, len(config.layers), options.num_layers)
        chosen = [path for path in paths if path.endswith(tuple(options.keys))]
        shapes = [pair_shapes(linears[path], options.rank) for path in chosen]
        learnt = 16 * sum(
            math.prod(shape) for pair in shapes for shape in pair
        )  # float32: itself, gradient, two moments
    layers = len(config.layers) * (MADE_AGAIN if checkpoint else KEPT) + (KEPT if checkpoint else 0)
    keys = longest + config.canvas_length
    scores = 3 * 4 * config.num_attention_heads * options.batch_size * keys * keys  # of one layer
    scores *= 1 if checkpoint else len(config.layers)
    return {
        "weights": weights,
        "what is learnt": learnt,
        "activations": layers * rows * config.hidden_size * width + scores,
        "vocabulary": rows * SLICE + 4 * rows * config.hidden_size * 4,
    }


def check(config: ModelConfig, weights: int, options: Options, longest: int, checkpoint: bool) -> None:
    """Mistake where it does not fit, which names what would."""
    total, free = sum(needed(config, weights, options, longest, checkpoint).values()), available()
    if total <= free:
        return
    single = replace(options, batch_size=1, fine_tune_type="lora")
    least = sum(needed(config, weights, single, longest, True).values())
    if least <= free:
        advice = "--batch-size 1 --grad-checkpoint with --fine-tune-type lora would fit"
    else:
        advice = (
            f"even one example at a time needs {gigabytes(least)}: take a checkpoint of fewer bits, or shorter texts"
        )
    raise Mistake(f"too little memory to train: needs {gigabytes(total)}, {gigabytes(free)} are free; {advice}")
