"""What the JSON files of a checkpoint's folder may hold: their types and bounds, as JSON Schemas.

A value of another type, or a size that no model has, is a Mistake before anything is made of it. What the settings
mean, and which go together, is for those who read them.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ..errors import Mistake

Schema = Mapping[str, Any]
MAX_DEPTH = 64  # objects and lists within each other
MAX_IDS = 1 << 20  # of a vocabulary


def _whole(least: int, most: int) -> Schema:
    words = f"a whole number from {least} to {most}"
    return {"type": ["integer", "null"], "minimum": least, "maximum": most, "description": words}


def _number(least: float, most: float) -> Schema:
    words = f"a number from {least:g} to {most:g}"
    return {"type": ["number", "null"], "minimum": least, "maximum": most, "description": words}


def _object(properties: Mapping[str, Schema] | None = None) -> Schema:
    return {"type": ["object", "null"], "description": "a JSON object", "properties": properties or {}}


def _list(items: Schema) -> Schema:
    return {"type": ["array", "null"], "items": items, "maxItems": 4096, "description": "a list"}


TEXT: Schema = {"type": ["string", "null"], "description": "a text"}
FLAG: Schema = {"type": ["boolean", "null"], "description": "true or false"}
ID = _whole(0, MAX_IDS - 1)
IDS: Schema = {"anyOf": [ID, _list({**ID, "type": "integer"})], "description": "a token's id, or a list of such"}
HEADS = _object({"head_dim": _whole(2, 1 << 14), "num_key_value_heads": _whole(1, 1 << 14)})
ROPE = _object({"rope_type": TEXT, "rope_theta": _number(1, 1e12), "partial_rotary_factor": _number(1e-3, 1)})
STORED = {"bits": _whole(1, 32), "group_size": _whole(1, 1 << 16), "mode": TEXT}
QUANTIZATION = _object(STORED) | {"additionalProperties": {"properties": STORED}}
RECIPE: Schema = {"additionalProperties": {"properties": STORED}}
GENERATION = _object(
    {
        "max_denoising_steps": _whole(1, 1 << 20),
        "t_min": _number(0, 1e3),
        "t_max": _number(0, 1e3),
        "stability_threshold": _whole(0, 1 << 20),
        "confidence_threshold": _number(0, 1e3),
        "sampler_config": {"properties": {"entropy_bound": _number(0, 1e6)}, "description": "an object"},
        "eos_token_id": IDS,
        "pad_token_id": ID,
    }
)
CONFIG = _object(
    {
        "text_config": _object(
            {
                **HEADS["properties"],
                "vocab_size": _whole(1, MAX_IDS),
                **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), _whole(1, 1 << 20)),
                **dict.fromkeys(("num_attention_heads", "num_global_key_value_heads"), _whole(1, 1 << 14)),
                **dict.fromkeys(("num_experts", "top_k_experts"), _whole(1, 1 << 16)),
                **dict.fromkeys(("sliding_window", "max_position_embeddings"), _whole(1, 1 << 30)),
                "global_head_dim": HEADS["properties"]["head_dim"],
                "num_hidden_layers": _whole(1, 1 << 10),
                "layer_types": _list(TEXT),
                "per_layer_config": _object(),
                "rope_parameters": _object({"sliding_attention": ROPE, "full_attention": ROPE})
                | {"additionalProperties": False, "description": "an object of sliding_attention and full_attention"},
                "rms_norm_eps": _number(1e-12, 0.1),
                "final_logit_softcapping": {**_number(1, 1e6), "type": "number"},
                "dtype": TEXT,
                "tie_word_embeddings": FLAG,
                "attention_bias": FLAG,
                "eos_token_id": IDS,
                "pad_token_id": ID,
            }
        ),
        "vision_config": _object({"rope_parameters": _object()}),
        "canvas_length": _whole(1, 1 << 16),
        "dtype": TEXT,
        "torch_dtype": TEXT,
        "tie_word_embeddings": FLAG,
        "eos_token_id": IDS,
        "pad_token_id": ID,
        "quantization": QUANTIZATION,
        "quantization_config": QUANTIZATION,
        "generation_config": GENERATION,
    }
)
_TEMPLATES = _list({**_object(), "required": ["name", "template"], "additionalProperties": TEXT})
_TOKEN = {"anyOf": [TEXT, _object({"content": TEXT})], "description": "a text, or an object with a content"}
OBJECT: Schema = {"type": "object", "description": "a JSON object"}
TOKENIZER_CONFIG = OBJECT | {
    "properties": {"chat_template": {"anyOf": [TEXT, _TEMPLATES], "description": "a text, or a list of such"}}
}
TOKENIZER_CONFIG |= {"patternProperties": {"^(bos|eos|pad|unk|mask)_token$": _TOKEN}}
ADAPTER = OBJECT | {"properties": {"lora_parameters": _object({"scale": _number(-1e6, 1e6)})}}
INDEX: Schema = {"type": "object", "description": "an object with a weight_map", "required": ["weight_map"]}
INDEX |= {"properties": {"weight_map": {"type": "object", "description": "an object"}}}


@functools.cache
def _validator() -> Any:
    from jsonschema.validators import Draft202012Validator, extend  # here: it takes a tenth of a second

    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=types)  # to JSON Schema, 4.0 is an integer


def check(value: Any, schema: Schema, name: str) -> None:
    """Raise Mistake where `value`, what the file `name` holds, is not as described: where, what it must be, what it is.

    What nests deeper than MAX_DEPTH is none of these files.
    """
    check_depth(value, name)
    error = next(_validator()(schema).iter_errors(value), None)
    if error is not None:
        need, path = error.schema["description"], ".".join(map(str, error.absolute_path))
        if not path:
            raise Mistake(f"{name} must hold {need}, got {type(value).__name__}: fetch the file again")
        raise Mistake(f"{name}: {path} must be {need}, got {error.instance!r:.80}")


def check_depth(value: Any, name: str) -> None:
    """Raise Mistake where objects and lists nest deeper than MAX_DEPTH: much that follows recurses."""
    if nests_deeper(value, MAX_DEPTH):
        raise Mistake(f"{name} nests more than {MAX_DEPTH} deep: fetch the file again")


def nests_deeper(value: Any, depth: int) -> bool:
    """Whether objects and lists nest deeper. Does not recurse."""
    level = [value]
    for _ in range(depth):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return True
