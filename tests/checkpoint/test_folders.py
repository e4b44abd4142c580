"""What lies in a model's folder, as people have it: copies, companions, other settings; and which folder is meant."""

from __future__ import annotations

import json
import shutil

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from conversions import logits
from folders import edit, quantized, says, shard, tensors, write
from terminals import caller, mistake

from mlx_dgemma.checkpoint.hub import find
from mlx_dgemma.generate.__main__ import main
from mlx_dgemma.load import load


def decoder(arrays):
    """The names that the encoder and the output layer would have for the decoder's weights, and the weights."""
    own = {name: array for name, array in arrays.items() if name.startswith("model.decoder.")}
    copies = {name.replace("model.decoder.", "model.encoder.language_model."): array for name, array in own.items()}
    copies = {name: array for name, array in copies.items() if "layer_scalar" not in name and "self_cond" not in name}
    return copies | {"lm_head.weight": arrays["model.decoder.embed_tokens.weight"]}


def test_copies_of_tied_tensors(tmp_path):
    arrays = tensors()
    expected = logits(load(write(tmp_path / "plain"))[0])
    assert np.array_equal(logits(load(write(tmp_path / "copied", arrays | decoder(arrays)))[0]), expected)
    renamed = {**arrays, "lm_head.weight": arrays["model.decoder.embed_tokens.weight"]}
    del renamed["model.decoder.embed_tokens.weight"]
    assert np.array_equal(logits(load(write(tmp_path / "renamed", renamed))[0]), expected)
    for name in ("lm_head.weight", "model.encoder.language_model.layers.1.experts.down_proj"):
        wrong = arrays | decoder(arrays)
        wrong[name] = wrong[name].copy()
        wrong[name].flat[-1] += 1
        says(write(tmp_path / name, wrong), name, "model.safetensors", "must be a copy of model.decoder.", "differs")
    says(write(tmp_path / "cut", arrays | {"lm_head.weight": np.zeros((2, 2), np.float32)}), "must be a copy")


def test_what_lies_beside_the_weights(tmp_path):
    expected = logits(load(write(tmp_path))[0])
    (tmp_path / "._model.safetensors").write_bytes(bytes.fromhex("0005160700020000") + bytes(4080))
    (tmp_path / "._config.json").write_bytes(bytes(99))
    for name in ("adapters.safetensors", "adapter_model.safetensors", "0000100_adapters.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {"model.decoder.layers.0.self_attn.q_proj.lora_a": mx.zeros(3)})
    assert np.array_equal(logits(load(tmp_path)[0]), expected)
    (tmp_path / "model.safetensors").unlink()
    says(tmp_path, "0000100_adapters.safetensors, adapter_model.safetensors, adapters.safetensors", "an adapter")


def test_an_adapter_beside_the_weights_is_told(tmp_path, capfd):
    folder = shutil.copytree(checkpoints.TINY, tmp_path / "model")
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"x": mx.zeros(3)})
    few = ["--prompt", "x", "--max-tokens", "4", "--max-denoising-steps", "1"]
    code, _, err = caller(main, capfd)("--model", str(folder), *few)
    assert code == 0 and "adapters.safetensors beside the weights is an adapter, and not used" in err


def test_zero_padded_layers(tmp_path):
    """transformers writes them so where there are ten layers or more, so in each real checkpoint that it saves."""
    kinds = ["sliding_attention", "full_attention"] * 5
    shape = {"layer_types": kinds, "vocab_size": 288}
    config = checkpoints.config(layout="transformers", **shape)
    expected = logits(load(write(tmp_path / "plain", layout="transformers", **shape))[0])
    folder = write(tmp_path / "padded", layout="transformers", **shape)
    text = config["text_config"]
    padded = {f"{int(layer):02}": entry for layer, entry in text["per_layer_config"].items()}
    assert list(padded) == ["01", "03", "05", "07", "09"]
    edit(folder, "config.json", text_config={**text, "per_layer_config": padded})
    assert np.array_equal(logits(load(folder)[0]), expected)
    edit(folder, "config.json", text_config={**text, "per_layer_config": padded | {"1": padded["01"]}})
    says(folder, "per_layer_config['1']")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": YARN}, ["rope_scaling", "yarn", "not supported"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, ["rope_scaling", "linear"]),
        ({"rope_parameters": YARN}, ["rope_parameters", "yarn"]),
        ({"rope_parameters": {"full_attention": {**YARN, "rope_theta": 1e4}}}, ["rope_parameters", "yarn"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping = 50.0", "remove it"]),
        ({"query_pre_attn_scalar": 256}, ["query_pre_attn_scalar"]),
        ({"attention_k_eq_v": False}, ["attention_k_eq_v = False"]),
        ({"enable_moe_block": False}, ["enable_moe_block"]),
        ({"num_kv_shared_layers": 2}, ["num_kv_shared_layers"]),
        ({"final_logit_softcapping": 1e-300}, ["final_logit_softcapping", "from 1 to 1e+06", "1e-300"]),
        ({"final_logit_softcapping": None}, ["final_logit_softcapping", "None"]),
        ({"vocab_size": 10**12}, ["vocab_size", "1000000000000"]),
        ({"hidden_size": 32.0}, ["hidden_size", "a whole number", "32.0"]),
        ({"num_attention_heads": True}, ["num_attention_heads", "True"]),
        ({"layer_types": []}, ["layer_types"]),
        ({"per_layer_config": []}, ["per_layer_config"]),
        ({"rms_norm_eps": "1e-6"}, ["rms_norm_eps", "'1e-6'"]),
    ],
)
def test_settings_that_would_change_what_is_computed(tmp_path, changes, words):
    write(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    edit(tmp_path, "config.json", text_config={**text, **changes})
    says(tmp_path, "config.json", *words)


def test_settings_that_are_off_change_nothing(tmp_path):
    text = json.loads((write(tmp_path) / "config.json").read_text())["text_config"]
    off = {
        "rope_scaling": None,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "attn_logit_softcapping": None,
    }
    off |= {"attention_k_eq_v": True, "enable_moe_block": True, "use_cache": True, "output_attentions": False}
    edit(tmp_path, "config.json", text_config={**text, **off})
    load(tmp_path)


def test_a_tokenizer_of_another_model(tmp_path):
    """It has more ids than the model: a prompt could have one that the model does not know."""
    write(tmp_path, vocab_size=280)
    says(tmp_path, "the model knows 280 tokens", "ids up to 287")


CONFIGS = {"quantization": [], "quantization_config": {"bits": 4.0, "group_size": 32}, "canvas_length": 10**12}
CONFIGS |= {"eos_token_id": "1", "pad_token_id": None, "dtype": 16, "text_config": [], "generation_config": 5}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "pad_token_id"])
def test_the_root_of_a_config(tmp_path, name):
    edit(write(tmp_path), "config.json", **{name: CONFIGS[name]})
    says(tmp_path, "config.json", name)


def test_two_quantizations_that_differ(tmp_path):
    folder, _, _ = quantized(tmp_path)
    whole = {"group_size": 64, "bits": 4, "mode": "affine"}
    stored = json.loads((folder / "config.json").read_text())["quantization"]
    edit(folder, "config.json", quantization_config=stored | whole)
    says(folder, "quantization and quantization_config differ")


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd.safetensors", "a/b.safetensors", "..", "", 5, None, ["x"], "x\0.safetensors"],
)
def test_an_index_leads_nowhere_else(tmp_path, name):
    shard(write(tmp_path / "model"))
    shutil.copy(tmp_path / "model" / "model-00001-of-00002.safetensors", tmp_path / "model.safetensors")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.decoder.norm.weight"] = name
    path.write_text(json.dumps(index))
    says(tmp_path / "model", "model.safetensors.index.json", "model.decoder.norm.weight", "in the folder")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache without a network, that holds org/small: the embedded model as main and as an older commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--small"
    (repository / "refs" / "pr").mkdir(parents=True)
    for ref, commit in (("main", "0" * 40), ("pr/1", "1" * 40)):
        (repository / "refs" / ref).write_text(commit)
        shutil.copytree(checkpoints.TINY, repository / "snapshots" / commit)
    return repository / "snapshots"


def test_a_revision(cache):
    assert find("org/small") == find("org/small@main") == cache / ("0" * 40)
    assert find("org/small@pr/1") == find(f"org/small@{'1' * 40}") == cache / ("1" * 40)
    says(f"org/small@{'2' * 40}", "org/small@2222", "not in the local cache")


def test_the_flag_for_a_revision(cache, capfd):
    run = caller(main, capfd)
    few = ["--prompt", "x", "--max-tokens", "4", "--max-denoising-steps", "1", "--json"]
    code, out, _ = run("--model", "org/small", "--revision", "1" * 40, *few)
    assert code == 0 and json.loads(out)["model"] == f"org/small@{'1' * 40}"
    for model in (["--model", str(checkpoints.TINY)], [], ["--model", "org/small@main"]):
        mistake(run("--revision", "main", *model, *few), "--revision main", "hub id")


def test_a_folder_of_the_organisations_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert find("org/small") == cache / ("0" * 40)
    says("org/other", "org/other is no folder and not in the local cache")
    (tmp_path / "org" / "small").mkdir()
    assert str(find("org/small")) == "org/small"


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "torchao", "hqq"])
def test_foreign_packings(tmp_path, method):
    edit(write(tmp_path), "config.json", quantization_config={"quant_method": method})
    says(tmp_path, f"config.json: weights quantized by '{method}' cannot be loaded")


def test_weights_in_other_formats(tmp_path):
    (write(tmp_path) / "model.safetensors").unlink()
    says(tmp_path, "has no weights: need model.safetensors")
    for name in ("pytorch_model.bin", "model-Q4_K_M.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
        says(tmp_path, f"has no weights but {name}, which is not read: need model.safetensors")
