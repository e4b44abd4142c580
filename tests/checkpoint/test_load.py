"""Folders: quantized ones, shards, and everything that can be wrong with one. Each message names what is wrong."""

from __future__ import annotations

import json
import shutil
import struct

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from conversions import logits
from folders import edit, quantized, says, shard, tensors, write

from mlx_dgemma.checkpoint import memory
from mlx_dgemma.checkpoint.hub import find
from mlx_dgemma.checkpoint.memory import check_memory
from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Row, Text

GATE_UP = "model.decoder.layers.1.experts.gate_up_proj"


def test_shards_and_vision_tensors_make_no_difference(tmp_path):
    whole = write(
        tmp_path / "whole", {**tensors(), "model.encoder.vision_tower.std_bias": np.full(9, np.nan, np.float32)}
    )
    expected = logits(load(write(tmp_path / "plain"))[0])
    assert np.array_equal(logits(load(whole)[0]), expected)
    assert np.array_equal(logits(load(shard(whole))[0]), expected)


def test_vision_tensors_are_never_read(tmp_path):
    """Their bytes may be garbage of any dtype: only the header is looked at."""
    folder = write(tmp_path, {**tensors(), "model.encoder.embed_vision.x": np.zeros(3, np.int64)})
    load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tmp_path, dtype):
    model, _, _ = load(write(tmp_path), dtype=dtype)
    canvas = np.arange(16, dtype=np.int32)
    cache = model.new_cache()
    [prediction] = model.denoise([Row(canvas, cache, 1.0, np.zeros(16, np.float32), pending=Text([3, 4]))])
    assert np.isfinite(prediction.entropy).all()
    assert cache.layers[0].keys.dtype == getattr(mx, dtype)
    exact = logits(load(tmp_path, dtype="float32")[0])
    # The median: where two experts score alike, a rounding may send a token elsewhere.
    assert np.median(np.abs(logits(model) - exact)) < {"float32": 1e-6, "bfloat16": 0.05, "float16": 0.01}[dtype]
    says(tmp_path, "float64", "float32, bfloat16, float16", dtype="float64")


@pytest.mark.parametrize(
    "default",
    [{"group_size": 32, "bits": 4, "mode": "affine"}, {"group_size": 32, "bits": 4, "mode": "mxfp4"},
     {"group_size": 16, "bits": 4, "mode": "nvfp4"}, {"group_size": 32, "bits": 8, "mode": "mxfp8"}],
    ids=lambda d: d["mode"],
)  # fmt: skip
def test_quantized_folders_say_what_their_dequantized_weights_say(tmp_path, default):
    folder, plain, shape = quantized(tmp_path / "quantized", default=default)
    dequantized = {**tensors(**shape), **plain}
    expected = logits(load(write(tmp_path / "plain", dequantized, **shape))[0])
    result = logits(load(folder)[0])
    assert np.abs(result - expected).max() < 1e-3


def test_no_such_folder(tmp_path):
    says(tmp_path / "nowhere", "nowhere", "no such folder")
    (tmp_path / "file").write_text("")
    says(tmp_path / "file", "is a file")


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    says("someone/some-model", "someone/some-model", "not in the local cache", "offline")


def test_a_hub_id_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(checkpoints.TINY, repository / "snapshots" / ("0" * 40))
    assert find("someone/tiny") == repository / "snapshots" / ("0" * 40)


def test_no_weights(tmp_path):
    (write(tmp_path) / "model.safetensors").unlink()
    says(tmp_path, str(tmp_path), "no weights")


def test_a_missing_shard(tmp_path):
    (shard(write(tmp_path)) / "model-00002-of-00002.safetensors").unlink()
    says(tmp_path, "model-00002-of-00002.safetensors", "index")


def test_a_truncated_shard(tmp_path):
    path = shard(write(tmp_path)) / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    says(tmp_path, "model-00002-of-00002.safetensors is truncated", "tensor model.")
    path.write_bytes(b"12")
    says(tmp_path, "model-00002-of-00002.safetensors", "truncated")
    path.write_bytes(struct.pack("<Q", 20) + b"no JSON at all, is it")
    says(tmp_path, "model-00002-of-00002.safetensors", "damaged header")


def test_an_index_that_names_a_tensor_its_shard_lacks(tmp_path):
    shard(write(tmp_path))
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.decoder.more"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    says(tmp_path, "model.decoder.more", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (GATE_UP, None, ["missing"]),
        (GATE_UP, np.zeros((8, 48, 31), np.float32), ["shape [8, 48, 31]", "need [8, 48, 32]", "model.safetensors"]),
        (GATE_UP, np.zeros((8, 48, 32), np.int32), ["dtype I32", "need F32", "model.safetensors"]),
        ("model.decoder.layers.1.self_attn.v_proj.weight", np.zeros((2, 2), np.float32), ["not part of"]),
        ("model.decoder.layers.0.layer_scalar", np.zeros((), np.float32), ["shape []", "need [1]"]),
    ],
)  # fmt: skip
def test_a_wrong_tensor(tmp_path, name, array, words):
    changed = {**tensors(), name: array}
    write(tmp_path, {key: value for key, value in changed.items() if value is not None})
    says(tmp_path, name, *words)


def test_weights_with_nan_stop_the_first_pass_and_name_a_tensor(tmp_path):
    changed = tensors()
    changed["model.decoder.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
    model, _, _ = load(write(tmp_path, changed))
    row = Row(np.arange(16, dtype=np.int32), model.new_cache(), 1.0, np.zeros(16, np.float32), pending=Text([3]))
    with pytest.raises(Mistake, match=r"not finite.*layers\.2\.mlp\.up_proj\.weight"):
        model.denoise([row])


def test_configs(tmp_path):
    write(tmp_path)
    edit(tmp_path, "config.json", model_type="llama")
    says(tmp_path, "model_type", "llama", "DiffusionGemma")
    (tmp_path / "config.json").write_text("{not JSON")
    says(tmp_path, "config.json", "not JSON")
    (tmp_path / "config.json").unlink()
    says(tmp_path, "config.json", "missing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_activation": "relu"}, ["hidden_activation", "relu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"use_bidirectional_attention": "all"}, ["use_bidirectional_attention", "all"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"num_experts": 0}, ["num_experts", "0"]),
        ({"per_layer_config": {"1": {"rope": 3}}}, ["per_layer_config", "rope"]),
        ({"layer_types": ["sliding_attention"]}, ["layer_types"]),
    ],
)
def test_text_configs(tmp_path, changes, words):
    write(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    edit(tmp_path, "config.json", text_config={**text, **changes})
    says(tmp_path, "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler_config": {"_cls_name": "GumbelSamplerConfig", "tau": 1}}, ["sampler_config", "GumbelSamplerConfig"]),
        ({"stopping_config": {"_cls_name": "PatienceStop"}}, ["stopping_config", "PatienceStop"]),
        ({"top_p": 0.9}, ["top_p"]),
        ({"t_min": 0.9}, ["t_min", "0.9"]),
    ],
)
def test_generation_configs(tmp_path, changes, words):
    write(tmp_path, generation=checkpoints.generation_config(**changes))
    says(tmp_path, "generation_config.json", *words)


def test_quantization_without_its_group(tmp_path):
    path = "model.decoder.layers.0.self_attn.q_proj"
    folder, _, _ = quantized(tmp_path, **{path: {"bits": 8}})
    says(folder, path, "group_size")
    edit(folder, "config.json", quantization={"bits": 4, "mode": "affine"})
    says(folder, "the whole model", "group_size")
    edit(folder, "config.json", quantization={"quant_method": "modelopt"})
    says(folder, "modelopt", "convert")


def test_quantization_of_a_path_without_scales(tmp_path):
    path = "model.decoder.layers.0.router.proj"
    edit(
        write(tmp_path), "config.json", quantization={"group_size": 32, "bits": 4, path: {"group_size": 32, "bits": 8}}
    )
    says(tmp_path, f"{path}.scales is missing")


def test_too_little_memory(monkeypatch, tmp_path):
    write(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    says(tmp_path, "too little memory", "needs", "free", "no published checkpoint would fit")
    monkeypatch.setattr(memory, "available", lambda: 30 * 10**9)
    with pytest.raises(Mistake, match=r"needs 50\.5 GB, 30\.0 GB are free; mlx-community/.*-8bit would fit"):
        check_memory(50_500_000_000, "google/diffusiongemma-26B-A4B-it")


def test_without_a_tokenizer(tmp_path):
    (write(tmp_path) / "tokenizer.json").unlink()
    says(tmp_path, "tokenizer.json")


def test_an_unknown_backend():
    says(None, "cuda", "mlx", backend="cuda")
