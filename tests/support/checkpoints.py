"""Checkpoints for tests: any shape, both config layouts, weights from a NumPy seed: the same on every machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
TINY = ROOT / "mlx_dgemma" / "tiny"
BPE = ROOT / "tests" / "fixtures" / "bpe"
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "top_k_experts": 2,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 2048,
}
GLOBAL = {"head_dim": 32, "num_key_value_heads": 1}  # of full layers
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}


def config(*, canvas_length: int = 16, layout: str = "hub", full: dict | None = None, eos=(1,), **shape) -> dict:
    """config.json as the hub has it, or as transformers 5.23 writes it (`layout="transformers"`)."""
    text = {**SHAPE, **shape, "rope_parameters": ROPE, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh"}
    text |= {"model_type": "diffusion_gemma_text", "use_bidirectional_attention": "vision", "tie_word_embeddings": True}
    text["num_hidden_layers"] = len(text["layer_types"])
    full = {**GLOBAL, **(full or {})}
    if layout == "hub":
        text["global_head_dim"] = full["head_dim"]
        text["num_global_key_value_heads"] = full["num_key_value_heads"]
        text["final_logit_softcapping"] = 30.0
    else:
        layers = [i for i, kind in enumerate(text["layer_types"]) if kind == "full_attention"]
        text["per_layer_config"] = {str(i): full for i in layers}
    vision = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "position_embedding_size": 16}
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": canvas_length,
        "dtype": "float32",
        "eos_token_id": list(eos),
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": vision,
    }


def generation_config(**changes) -> dict:
    return {
        "max_new_tokens": 256,
        "max_denoising_steps": 48,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "t_min": 0.4,
        "t_max": 0.8,
        "stability_threshold": 1,
        "confidence_threshold": 0.005,
        "eos_token_id": [1],
        "pad_token_id": 0,
        **changes,
    }


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The text tensors of a checkpoint (facts of the published one: names, and which layers lack a v_proj)."""
    text, layers = config["text_config"], {}
    hidden, inner, experts = text["hidden_size"], text["intermediate_size"], text["num_experts"]
    table = {"embed_tokens.weight": (text["vocab_size"], hidden), "norm.weight": (hidden,)}
    table |= {"self_conditioning.pre_norm.weight": (hidden,), "self_conditioning.down_proj.weight": (hidden, inner)}
    table |= {f"self_conditioning.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    for i, kind in enumerate(text["layer_types"]):
        own = text.get("per_layer_config", {}).get(str(i), {})
        if kind == "full_attention" and not own:
            own = {"head_dim": text["global_head_dim"], "num_key_value_heads": text["num_global_key_value_heads"]}
        dim = own.get("head_dim", text["head_dim"])
        kv, heads = own.get("num_key_value_heads", text["num_key_value_heads"]) * dim, text["num_attention_heads"] * dim
        layer = {
            "layer_scalar": (1,),
            "self_attn.q_proj.weight": (heads, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
        }
        if kind == "sliding_attention":
            layer["self_attn.v_proj.weight"] = (kv, hidden)
        layer |= {"self_attn.o_proj.weight": (hidden, heads)}
        layer |= {f"self_attn.{name}_norm.weight": (dim,) for name in "qk"}
        layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        layer |= {"mlp.down_proj.weight": (hidden, inner), "router.scale": (hidden,)}
        layer |= {"router.per_expert_scale": (experts,), "router.proj.weight": (experts, hidden)}
        layer |= {"experts.gate_up_proj": (experts, 2 * text["moe_intermediate_size"], hidden)}
        layer |= {"experts.down_proj": (experts, hidden, text["moe_intermediate_size"])}
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        layer |= {f"{name}_layernorm.weight": (hidden,) for name in norms}
        for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
            layer[f"{name}.weight"] = (hidden,)
        layers |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    named = {f"model.decoder.{name}": shape for name, shape in {**table, **layers}.items()}
    count = len(text["layer_types"])
    return named | {f"model.encoder.language_model.layers.{i}.layer_scalar": (1,) for i in range(count)}


def weights(config: dict, *, seed: int = 0, peaked: float = 1.0) -> dict[str, np.ndarray]:
    """Random, with norms near 1 and layer scalars that differ between encoder and decoder. `peaked` scales the final
    norm: at 1 predictions are broad, at 20 they settle as a trained model's do."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes(config).items():
        if name.endswith("layer_scalar") or "norm" in name or name.endswith(("router.scale", "per_expert_scale")):
            array = 1 + 0.2 * rng.standard_normal(shape)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                array *= shape[0] ** -0.25  # scores of the size that a scale of 1 / sqrt(dim) would give
        else:
            array = rng.standard_normal(shape) / np.sqrt(shape[-1])
        made[name] = array.astype(np.float32)
    # As in a trained model, what a pass hears of the last one must not dominate: random self-conditioning is chaotic,
    # and multiplies a rounding error by ten every ten steps.
    made["model.decoder.self_conditioning.down_proj.weight"] *= np.float32(0.1)
    made["model.decoder.norm.weight"] *= np.float32(peaked)
    return made


def write(folder: Path, config: dict, tensors: dict[str, np.ndarray], generation: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation or generation_config()))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published(folder):
    """A folder with a file of holes, of the names and shapes that the text part of the published checkpoint has."""
    published_config = config(
        vocab_size=262144, hidden_size=2816, intermediate_size=2112, moe_intermediate_size=704, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, num_experts=128, top_k_experts=8, canvas_length=256, sliding_window=1024,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 5,
        full={"head_dim": 512, "num_key_value_heads": 2},
    )  # fmt: skip
    published_config["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(published_config))
    table, end = {}, 0
    for name, shape in shapes(published_config).items():
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * int(np.prod(shape))]}
    header = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return folder
