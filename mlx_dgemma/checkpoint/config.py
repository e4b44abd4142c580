"""config.json, in both published layouts -> ModelConfig.

The hub's layout names the full layers' heads `global_head_dim` and `num_global_key_value_heads`; transformers 5.23
writes `per_layer_config` instead. A setting that is not supported is a Mistake that names it: read past, it would be a
wrong answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Mistake
from ..seam.model import Facts
from .description import CONFIG, GENERATION, HEADS, check

MODEL_TYPE = "diffusion_gemma"
DTYPES = ("float32", "bfloat16", "float16")  # of activations, and of weights that are not quantized
FP8 = "fp8"  # torch only: weights in E4M3, activations in bfloat16
MODES = {"affine", "mxfp4", "nvfp4", "mxfp8"}
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_experts",
    "top_k_experts", "sliding_window", "max_position_embeddings",
)  # fmt: skip
DEFAULT_ROPE = {  # transformers: DiffusionGemmaTextConfig
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """A layer's attention."""

    sliding: bool
    head_dim: int
    num_key_value_heads: int
    rope_theta: float
    rotated: int  # leading pairs of a head that rotate; proportional RoPE leaves the others as they are


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a layer's weight is stored, in the words of `mlx.core.quantize`."""

    bits: int
    group_size: int
    mode: str = "affine"

    def check(self, width: int) -> None:
        """ValueError if the groups do not divide rows of `width` numbers."""
        if width % self.group_size or width * self.bits % 32:
            raise ValueError(f"groups of {self.group_size} with {self.bits} bits do not divide rows of {width}")


Recipe = Callable[[str], Quantization | None]  # path of a layer -> how it is to be stored; None: not quantized


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Facts):
    """The text model's sizes, as transformers names them, and how its weights are stored."""

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_attention_heads: int
    num_experts: int
    top_k_experts: int
    rms_norm_eps: float
    sliding_window: int
    final_logit_softcapping: float
    layers: tuple[LayerConfig, ...]
    dtype: str  # one of DTYPES
    quantization: Quantization | None = None  # of layers with scales that `quantized_paths` does not name
    quantized_paths: Mapping[str, Quantization | None] | None = None  # layer -> its entry; None: not quantized

    def cache_numbers(self, tokens: int) -> int:
        """Numbers in the K and V of a text; sliding layers keep a window and a canvas of it."""
        kept = min(tokens, self.sliding_window - 1 + self.canvas_length)
        widths = [2 * layer.num_key_value_heads * layer.head_dim for layer in self.layers]
        return sum(w * (kept if layer.sliding else tokens) for w, layer in zip(widths, self.layers, strict=True))


def _take(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return `values[name]`, or `default` where it is null or missing. Mistake if there is neither."""
    value = default if values.get(name) is None else values[name]
    if value is None:
        raise Mistake(f"config.json: {name} is missing")
    return value


# Settings of the text model that are held to one value: another would change what is computed.
_ONLY = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "rope_scaling": None,
}
_READ = {
    *SIZES, "head_dim", "num_key_value_heads", "global_head_dim", "num_global_key_value_heads", "num_hidden_layers",
    "layer_types", "per_layer_config", "rope_parameters", "rms_norm_eps", "final_logit_softcapping", "dtype",
    "eos_token_id", "pad_token_id", *_ONLY,
}  # fmt: skip
# transformers: PreTrainedConfig. They change nothing that is computed here.
_ELSEWHERE = {
    "_attn_implementation", "_experts_implementation", "_name_or_path", "architectures", "attention_dropout",
    "attn_implementation", "bos_token_id", "chunk_size_feed_forward", "experts_implementation", "id2label",
    "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def _check_supported(config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Raise Mistake at a setting that would change what is computed and that no published checkpoint has."""
    for name, value in ((name, values.get(name)) for values in (text, config) for name in _ONLY):
        if value not in (None, _ONLY[name]):
            wanted = f"only {_ONLY[name]!r}" if _ONLY[name] is not None else "remove it"
            raise Mistake(f"config.json: {name} = {value!r} is not supported: {wanted}")
    for name in sorted(text.keys() - _READ - _ELSEWHERE):
        if text[name] not in (None, False, 0):  # what is off changes nothing
            unknown = "is not a setting we know: remove it if it changes nothing"
            raise Mistake(f"config.json: text_config.{name} = {text[name]!r:.80} {unknown}")


def _rotated(kind: str, head_dim: int, rope: Mapping[str, Any]) -> int:
    """Return how many pairs of a head rotate (transformers: `_compute_proportional_rope_parameters`)."""
    rope_type, factor = rope.get("rope_type") or "default", rope.get("partial_rotary_factor") or 1.0
    known = set(rope) <= {"rope_type", "rope_theta", "partial_rotary_factor"}
    if not known or rope_type not in ("default", "proportional") or (rope_type == "default" and factor != 1.0):
        raise Mistake(f"config.json: rope_parameters of {kind} = {dict(rope)} are not supported")
    return int(factor * head_dim // 2)


def _layer_types(text: Mapping[str, Any]) -> list[str]:
    count, types = _take(text, "num_hidden_layers"), text.get("layer_types")
    if types is None:
        types = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]
    if len(types) != count or not set(types) <= set(DEFAULT_ROPE):
        raise Mistake(f"config.json: layer_types must be {count} of {sorted(DEFAULT_ROPE)}, got {types}")
    return [*types[:-1], "full_attention"]  # transformers forces the last


def _heads(text: Mapping[str, Any], types: list[str]) -> Mapping[int, Mapping[str, int]]:
    """Return the heads of layers that differ from `text`, by the layer's number, from either layout."""
    if text.get("per_layer_config") is None:
        full = {"head_dim": _take(text, "global_head_dim", 512)}
        if heads := text.get("num_global_key_value_heads"):
            full["num_key_value_heads"] = heads
        return {i: full for i, kind in enumerate(types) if kind == "full_attention"}
    overrides: dict[int, Mapping[str, int]] = {}
    for index, entry in text["per_layer_config"].items():  # transformers writes "05" where there are ten layers or more
        known = isinstance(entry, Mapping) and set(entry) <= {"head_dim", "num_key_value_heads"}
        layer = int(index) if index.isdecimal() and len(index) < 6 else len(types)
        if not known or layer >= len(types) or layer in overrides:
            raise Mistake(f"config.json: per_layer_config[{index!r}] = {entry!r:.80} is not supported")
        check(entry, HEADS, f"config.json: per_layer_config[{index!r}]")
        overrides[layer] = entry
    return overrides


def _layers(text: Mapping[str, Any]) -> tuple[LayerConfig, ...]:
    types, heads = _layer_types(text), _take(text, "num_attention_heads")
    overrides, ropes = _heads(text, types), text.get("rope_parameters") or DEFAULT_ROPE
    layers = []
    for index, kind in enumerate(types):
        entry = {**text, **overrides.get(index, {})}
        head_dim, count = _take(entry, "head_dim"), _take(entry, "num_key_value_heads")
        if heads % count:
            raise Mistake(f"config.json: {count} key-value heads do not divide {heads} heads")
        rope = ropes.get(kind) or DEFAULT_ROPE[kind]
        layers.append(
            LayerConfig(
                sliding=kind == "sliding_attention",
                head_dim=head_dim,
                num_key_value_heads=count,
                rope_theta=float(_take(rope, "rope_theta")),
                rotated=_rotated(kind, head_dim, rope),
            )
        )
    return tuple(layers)


def _quantization_entry(path: str, entry: Any) -> Quantization | None:
    if entry is False:
        return None
    if not isinstance(entry, Mapping) or entry.get("group_size") is None or entry.get("bits") is None:
        raise Mistake(f"config.json: quantization of {path} needs group_size and bits, got {entry!r:.80}")
    mode = entry.get("mode") or "affine"
    if mode not in MODES:
        raise Mistake(f"config.json: quantization of {path} is not supported: {entry!r:.80}")
    return Quantization(bits=entry["bits"], group_size=entry["group_size"], mode=mode)


_QUANTIZATION = ("quantization", "quantization_config")


def _check_packing(config: Mapping[str, Any]) -> None:
    """Raise Mistake where the weights are packed by another program."""
    for stored in map(config.get, _QUANTIZATION):
        if isinstance(stored, Mapping) and "quant_method" in stored:
            method = stored["quant_method"]
            advice = f"convert {'it' if method == 'modelopt' else 'the original'} with `python -m mlx_dgemma.convert`"
            raise Mistake(f"config.json: weights quantized by {method!r:.80} cannot be loaded; {advice}")


def _quantization(config: Mapping[str, Any]) -> tuple[Quantization | None, dict[str, Quantization | None]]:
    """Return the entry of the whole model, and those of single layers by path."""
    entries = [config[name] for name in _QUANTIZATION if config.get(name) is not None]
    if not entries:
        return None, {}
    stored = entries[0]
    layers = {path: entry for path, entry in stored.items() if isinstance(entry, dict) or entry is False}
    whole = {name: value for name, value in stored.items() if name not in layers}
    default = _quantization_entry("the whole model", whole)
    paths = {path: _quantization_entry(path, entry) for path, entry in layers.items()}
    if entries[-1] != stored:
        raise Mistake(f"config.json: {' and '.join(_QUANTIZATION)} differ: remove the one that is wrong")
    return default, paths


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def parse_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read the two files' contents. Mistake names what is missing, wrong or not supported."""
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    if model_type != MODEL_TYPE:
        raise Mistake(f"config.json: need a DiffusionGemma, model_type {MODEL_TYPE!r}, got {model_type!r:.80}")
    _check_packing(config)
    check(config, CONFIG, "config.json")
    check(generation, GENERATION, "generation_config.json")
    text = _take(config, "text_config")
    _check_supported(config, text)
    generation = generation or config.get("generation_config") or {}
    default, paths = _quantization(config)
    sizes = {name: _take(text, name) for name in SIZES}
    if sizes["top_k_experts"] > sizes["num_experts"]:
        raise Mistake(f"config.json: top_k_experts = {sizes['top_k_experts']} of num_experts = {sizes['num_experts']}")
    stop_ids = next(filter(None, (_ids(values.get("eos_token_id")) for values in (generation, config, text))), ())
    pad_id = next((values["pad_token_id"] for values in (generation, text) if values.get("pad_token_id")), 0)
    if (most := max((*stop_ids, pad_id))) >= sizes["vocab_size"]:
        raise Mistake(f"config.json: eos_token_id or pad_token_id {most} is none of {sizes['vocab_size']} tokens")
    return ModelConfig(
        **sizes,
        canvas_length=_take(config, "canvas_length", 256),
        rms_norm_eps=float(_take(text, "rms_norm_eps", 1e-6)),
        final_logit_softcapping=float(_take(text, "final_logit_softcapping", 30.0)),
        layers=_layers(text),
        dtype=config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16",
        stop_ids=stop_ids,
        pad_id=pad_id,
        quantization=default,
        quantized_paths=paths,
    )
