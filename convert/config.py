"""config.json of the output."""

from collections.abc import Mapping
from typing import Any

from ..checkpoint.config import DEFAULT_ROPE, ModelConfig, parse_config
from ..errors import Mistake

_LEFT_OUT = ("torch_dtype", "_name_or_path", "quantization", "quantization_config")


def hub_config(stored: Mapping[str, Any], config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Rewrite config.json in the hub's layout, without quantization; `config` is `stored`, parsed.

    Raises:
        Mistake: a layer's heads differ from others of its kind. The hub's layout has one entry for each kind.
    """
    result = {name: value for name, value in stored.items() if name not in _LEFT_OUT} | {
        "canvas_length": config.canvas_length,
        "eos_token_id": stored.get("eos_token_id") or list(config.stop_ids),
        "tie_word_embeddings": True,
        "dtype": dtype,
        "text_config": _text_config(stored["text_config"], config, dtype),
    }
    vision = stored.get("vision_config") or {}
    rope = vision.get("rope_parameters") or {}
    if rope.get("rope_type") == "axial":  # transformers 5.23's name; it reads the hub's as this
        result["vision_config"] = {**vision, "rope_parameters": {**rope, "rope_type": "default"}}
    for index, (layer, written) in enumerate(zip(config.layers, parse_config(result).layers, strict=True)):
        if layer != written:
            heads = f"{layer.num_key_value_heads} key-value heads of {layer.head_dim}"
            others = f"others of its kind {written.num_key_value_heads} of {written.head_dim}"
            raise Mistake(f"config.json: layer {index} has {heads}, {others}; the hub's layout cannot express it")
    return result


def _text_config(stored: Mapping[str, Any], config: ModelConfig, dtype: str) -> dict[str, Any]:
    full = next(layer for layer in config.layers if not layer.sliding)  # the last layer is full
    sliding = next((layer for layer in config.layers if layer.sliding), full)
    ropes = stored.get("rope_parameters") or {}
    return {name: value for name, value in stored.items() if name not in ("per_layer_config", "torch_dtype")} | {
        "head_dim": sliding.head_dim,
        "num_key_value_heads": sliding.num_key_value_heads,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_key_value_heads,
        "layer_types": ["sliding_attention" if layer.sliding else "full_attention" for layer in config.layers],
        "rope_parameters": {kind: ropes.get(kind) or default for kind, default in DEFAULT_ROPE.items()},
        "final_logit_softcapping": config.final_logit_softcapping,
        "dtype": dtype,
    }
