"""The embedded model's weights as a Gemma 4 checkpoint: the two share every layer, so that mlx-lm and transformers must
write with it what `autoregress` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import checkpoints
from safetensors.numpy import load_file, save_file

SCALARS = "model.encoder.language_model.layers."  # the causal pass's own


def write(folder: Path) -> Path:
    stored = json.loads((checkpoints.TINY / "config.json").read_text())
    full = next(iter(stored["text_config"].pop("per_layer_config").values()))
    config = {
        **stored["text_config"],
        "model_type": "gemma4_text",
        "global_head_dim": full["head_dim"],
        "num_global_key_value_heads": full["num_key_value_heads"],
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": 30.0,
        "vocab_size_per_layer_input": stored["text_config"]["vocab_size"],
        "architectures": ["Gemma4ForCausalLM"],
        "dtype": "float32",
        "eos_token_id": [1, 5],
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], "pad_token_id": 0}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoints.TINY / name, folder / name)
    tensors = load_file(checkpoints.TINY / "model.safetensors")
    named = {}
    for name, array in tensors.items():
        if name.startswith("model.decoder.") and not name.endswith("layer_scalar") and "self_conditioning" not in name:
            named[name.replace("model.decoder.", "model.")] = array
        elif name.startswith(SCALARS):
            named["model.layers." + name.removeprefix(SCALARS)] = array
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
