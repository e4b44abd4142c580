"""A fused folder is the checkpoint with its adapter, and PEFT's files are read and written."""

from __future__ import annotations

import json
import shutil

import folders
import mlx.core as mx
import numpy as np
import pytest
from test_adapters import KEYS, logits, made

from mlx_dgemma.checkpoint import adapter_folder, peft
from mlx_dgemma.checkpoint.adapter import ATTENTION_AND_MLP, CONFIG
from mlx_dgemma.fuse.__main__ import main
from mlx_dgemma.load import load

BACKENDS = ["mlx", "torch"]


def fused(folder, path, destination, *flags) -> int:
    return main(["--model", str(folder), "--adapter-path", str(path), "--save-path", str(destination), *flags])


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return folders.shard(folders.write(tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_fused_folder_is_the_checkpoint_with_its_adapter(sharded, tmp_path, backend):
    pytest.importorskip(backend)
    path = made(sharded, tmp_path / "adapter", keys=KEYS)
    assert fused(sharded, path, tmp_path / "fused") == 0
    assert {f.name for f in (tmp_path / "fused").iterdir()} == {f.name for f in sharded.iterdir()}
    unfused, whole = load(sharded, backend, adapter_path=path)[0], load(tmp_path / "fused", backend)[0]
    assert np.abs(logits(unfused) - logits(whole)).max() < 1e-4
    assert np.abs(logits(whole) - logits(load(sharded, backend)[0])).max() > 0.1


def test_quantized_weights_are_quantized_again_path_by_path(tmp_path):
    folder, _, _ = folders.quantized(tmp_path / "packed")
    path = made(folder, tmp_path / "adapter", keys=("self_attn.q_proj", "mlp.up_proj", "experts.down_proj"))
    assert fused(folder, path, tmp_path / "fused") == 0
    assert json.loads((tmp_path / "fused" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    old, new = (load(where, "mlx")[0].network for where in (folder, tmp_path / "fused"))
    before, after = (dict(network.named_modules()) for network in (old, new))
    learnt, everything = adapter_folder.read(path), slice(None)
    for layer in range(4):
        for name in ("self_attn.q_proj", "mlp.up_proj", "experts.down_proj", "self_attn.k_proj"):
            place = f"model.decoder.layers.{layer}.{name}"
            one, other = before[place], after[place]
            rows = [np.array(linear.rows(everything, mx.float32)) for linear in (one, other)]
            if name == "self_attn.k_proj":
                assert (rows[0] == rows[1]).all()
                continue
            a, b = (learnt.tensors[f"{place}.lora_{side}"] for side in "ab")
            added = 2.0 * (b @ a if b.ndim == 3 else (a @ b).T)
            step = np.repeat(np.abs(np.array(other.scales)), one.quantization.group_size, axis=-1)
            assert (np.abs(rows[1] - rows[0] - added) <= step + 1e-6).all()  # rounded once more
            assert np.abs(added).max() > step.mean()


def test_nothing_but_the_checkpoint_is_copied(sharded, tmp_path, capfd):
    folder, path = tmp_path / "folder", made(sharded, tmp_path / "adapter", keys=KEYS)
    shutil.copytree(sharded, folder)
    (folder / "notes.py").write_text("mine")
    assert fused(folder, path, tmp_path / "fused") == 0
    assert {f.name for f in (tmp_path / "fused").iterdir()} == {f.name for f in sharded.iterdir()}
    (tmp_path / "key").write_text("secret")
    (folder / "LICENSE").symlink_to(tmp_path / "key")
    assert fused(folder, path, tmp_path / "leaked") == 2
    assert "LICENSE is a link that leads out of the folder" in capfd.readouterr().err
    assert not (tmp_path / "leaked").exists()


def test_whole_weights_are_put_in_place(sharded, tmp_path):
    from test_adapters import write

    name = "model.decoder.layers.1.experts.down_proj.weight"
    tensors = {name: -folders.tensors()[name.removesuffix(".weight")]}
    path = write(tmp_path / "full", tensors, fine_tune_type="full")
    assert fused(sharded, path, tmp_path / "fused") == 0
    difference = logits(load(sharded, "mlx", adapter_path=path)[0]) - logits(load(tmp_path / "fused", "mlx")[0])
    assert np.abs(difference).max() == 0


def test_peft_s_files_are_written_and_read(sharded, tmp_path):
    path = made(sharded, tmp_path / "adapter", keys=ATTENTION_AND_MLP, scale=1.5)
    assert fused(sharded, path, tmp_path / "peft", "--peft") == 0
    ours, theirs = adapter_folder.read(path), adapter_folder.read(tmp_path / "peft")
    assert ours.scale == theirs.scale and ours.tensors.keys() == theirs.tensors.keys()
    assert all((theirs.tensors[name] == array).all() for name, array in ours.tensors.items())


@pytest.mark.slow
def test_peft_and_transformers_add_the_same(sharded, tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("torch")
    import reference
    import torch
    from peft import PeftModel

    path = made(sharded, tmp_path / "adapter", keys=ATTENTION_AND_MLP, scale=1.5)
    assert fused(sharded, path, tmp_path / "peft", "--peft") == 0
    assert fused(sharded, path, tmp_path / "fused") == 0
    with_it = PeftModel.from_pretrained(reference.load(sharded), str(tmp_path / "peft")).eval()
    whole = reference.load(tmp_path / "fused")
    ids, canvas = (torch.tensor(np.random.default_rng(0).integers(2, 90, size=(1, n))) for n in (30, 16))
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids, decoder_input_ids=canvas).logits for model in (whole, with_it))
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "about", "words"),
    [
        (lambda n, a: None if "encoder" in n else a, {}, "decoder alone"),
        (lambda n, a: a + 1 if "encoder" in n else a, {}, "tuned apart"),
        (lambda n, a: a, {"use_dora": True}, "use_dora"),
        (lambda n, a: a, {"r": None}, "need numbers"),
    ],
)
def test_what_cannot_be_read_of_peft_is_named(sharded, tmp_path, capsys, change, about, words):
    from safetensors.numpy import load_file, save_file

    path = made(sharded, tmp_path / "adapter", keys=("self_attn.q_proj",))
    fused(sharded, path, tmp_path / "peft", "--peft")
    file = tmp_path / "peft" / peft.FILE
    changed = {name: change(name, array) for name, array in load_file(file).items()}
    save_file({name: array for name, array in changed.items() if array is not None}, file)
    folders.edit(tmp_path / "peft", CONFIG, **about)
    capsys.readouterr()
    assert fused(sharded, tmp_path / "peft", tmp_path / "fused") == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1
    assert not (tmp_path / "fused").exists()


def test_nothing_is_written_over(sharded, tmp_path, capsys):
    path = made(sharded, tmp_path / "adapter", keys=("mlp.up_proj",))
    shutil.copytree(sharded, tmp_path / "there")
    assert fused(sharded, path, tmp_path / "there") == 2
    assert "exists" in capsys.readouterr().err
    made(sharded, tmp_path / "experts", keys=("experts.down_proj",))
    assert fused(sharded, tmp_path / "experts", tmp_path / "new", "--peft") == 2
    assert "no experts" in capsys.readouterr().err
