"""Folders that load, small and with a tokenizer: plain, sharded or quantized; and what loading a wrong one says."""

from __future__ import annotations

import json
import shutil

import checkpoints
import pytest
from packed import pack
from safetensors.numpy import load_file, save_file

from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import load


def write(folder, tensors=None, generation=None, **config):
    """A random checkpoint with the embedded model's tokenizer; `tensors` replaces all weights."""
    config = checkpoints.config(**{"vocab_size": 288, **config})
    checkpoints.write(folder, config, tensors or checkpoints.weights(config), generation)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoints.TINY / name, folder)
    return folder


def tensors(**config):
    return checkpoints.weights(checkpoints.config(**{"vocab_size": 288, **config}))


def edit(folder, name: str, **changes):
    """Change entries of a JSON file."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder):
    """Two shards and an index, as large checkpoints have."""
    arrays = load_file(folder / "model.safetensors")
    names = sorted(arrays)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: arrays[name] for name in own}, folder / file, {"format": "mlx"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def says(folder, *words: str, **options) -> str:
    """Loading the folder is a mistake, whose one line has all the words."""
    with pytest.raises(Mistake) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message.strip()
    for word in words:
        assert word in message, message
    return message


def quantized(folder, *, default=None, shape=None, **paths):
    """An MLX folder as mlx-community's are: triples beside plain tensors, and the groups in config.json."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, **(shape or {})}
    write(folder, **shape)
    arrays, named, plain = {}, {}, {}
    default = default or {"group_size": 32, "bits": 4, "mode": "affine"}
    for name, array in load_file(folder / "model.safetensors").items():
        path = name.removesuffix(".weight")
        wide = array.ndim >= 2 and array.shape[-1] % 32 == 0
        if not wide or "norm" in name:
            arrays[name] = array
            continue
        own = {"group_size": 64, "bits": 8, "mode": "affine"} if ".self_attn." in name or "embed" in name else default
        if own is not default:
            named[path] = {"group_size": 64, "bits": 8}
        packed, plain[name] = pack(array, **own)
        for kind, part in zip(("weight", "scales", "biases"), packed, strict=False):
            arrays[f"{path}.{kind}"] = part
    save_file(arrays, folder / "model.safetensors", {"format": "mlx"})
    both = {**default, **named, **paths}
    edit(folder, "config.json", quantization=both, quantization_config=both)
    return folder, plain, shape
