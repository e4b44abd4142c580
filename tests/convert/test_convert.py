"""The converter: what it writes loads, and holds what `mx.quantize` makes of the whole of each source tensor."""

from __future__ import annotations

import json
import subprocess
import sys

import checkpoints
import conversions
import mlx.core as mx
import pytest
from conversions import arrays, check, converted, parsed, source

from mlx_dgemma.checkpoint.config import DEFAULT_ROPE, Quantization, parse_config
from mlx_dgemma.checkpoint.folder import read_tensors
from mlx_dgemma.convert import plan, recipes, stream
from mlx_dgemma.convert.config import hub_config

EIGHT = {"bits": 8, "group_size": 64, "mode": "affine"}
MODES = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)]
MODES += [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)]


def test_tiny(tmp_path, capsys):
    made = tmp_path / "made"
    lines = converted(capsys, checkpoints.TINY, made, "-q")
    assert str(made) in lines[-1] and "2.1 MB, 7.25 bits per weight" in lines[-1]
    check(made, checkpoints.TINY, mx.float32, quantized=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (made / name).read_bytes() == (checkpoints.TINY / name).read_bytes()
    assert mx.load(str(made / "model.safetensors"), return_metadata=True)[1] == {"format": "mlx"}
    config = json.loads((made / "config.json").read_text())
    text, stored = config["text_config"], config["quantization"]
    assert config["quantization_config"] == stored
    assert "per_layer_config" not in text and (text["global_head_dim"], text["num_global_key_value_heads"]) == (64, 1)
    assert config["eos_token_id"] == [1, 5] and config["canvas_length"] == 64 and config["dtype"] == "float32"
    assert config["vision_config"]["rope_parameters"] == {"rope_theta": 100.0, "rope_type": "default"}
    plain = {k: v for k, v in stored.items() if not isinstance(v, dict)}
    assert plain == {"bits": 4, "group_size": 64, "mode": "affine"}
    eight = {f"self_attn.{name}_proj" for name in "qkvo"}
    eight |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "router.proj"}
    layer = {k: v for k, v in stored.items() if "layers.1." in k}
    assert layer == {f"model.decoder.layers.1.{name}": EIGHT for name in eight}
    assert stored["model.decoder.embed_tokens"] == EIGHT
    assert not any("experts" in path or "self_conditioning" in path for path in stored)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(map(str, m)))
@pytest.mark.sample(2)
def test_modes_in_slices(tmp_path, capsys, monkeypatch, mode):
    """In every mode, bit for bit what the whole tensor quantizes to; pieces end anywhere between two rows."""
    monkeypatch.setattr(stream, "PIECE", 10_000)
    original, made = source(tmp_path / "source", dtype="bfloat16"), tmp_path / "made"
    name, bits, group = mode
    flags = ["-q", "--q-mode", name, "--q-bits", bits, "--q-group-size", group]
    converted(capsys, original, made, *flags)
    check(made, original, mx.bfloat16, quantized=True)
    config, default = parsed(made), Quantization(mode=name, bits=bits, group_size=group)
    assert config.quantization == default
    assert config.quantized_paths.get("model.decoder.layers.0.self_attn.q_proj", default) == Quantization(**EIGHT)


@pytest.mark.sample(2)
@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize(
    "flags",
    [(), ("--dtype", "bfloat16"), ("-q",), ("-q", "--q-bits", "3", "--q-group-size", "32", "--dtype", "float16")],
)
def test_both_layouts(tmp_path, capsys, monkeypatch, layout, flags):
    monkeypatch.setattr(stream, "PIECE", 10_000)
    original, made = source(tmp_path / "source", layout=layout), tmp_path / "made"
    converted(capsys, original, made, *flags)
    dtype = flags[-1] if "--dtype" in flags else "float32"
    config, before = parsed(made), parsed(original)
    assert config.dtype == dtype
    assert (config.layers, config.stop_ids) == (before.layers, before.stop_ids)
    check(made, original, getattr(mx, dtype), quantized="-q" in flags)


def kinds(folder):
    """class -> the bits its layers have."""
    config, result = parsed(folder), {}
    layers = [name for name in arrays(folder) if name.endswith("proj.weight") and "vision" not in name]
    for path in (name.removesuffix(".weight") for name in layers):
        q = config.quantized_paths.get(path, config.quantization)
        result.setdefault(path.split(".")[-2], set()).add((q.bits, q.group_size) if q else None)
    return result


def test_recipes(tmp_path, capsys):
    original = source(tmp_path / "source")
    converted(capsys, original, tmp_path / "uniform", "-q", "--quant-predicate", "uniform", "--q-bits", 5)
    assert set().union(*kinds(tmp_path / "uniform").values()) == {(5, 64)}
    converted(capsys, original, tmp_path / "precise", "-q", "--quant-predicate", "precise")
    assert kinds(tmp_path / "precise") == {
        "experts": {(4, 32)}, "self_attn": {None}, "mlp": {None}, "router": {None}, "self_conditioning": {None},
    }  # fmt: skip
    file = tmp_path / "own.json"
    custom = {"*.layers.0.experts.*": 8, "*.experts.down_proj": {"bits": 6, "group_size": 32}, "*.self_attn.*": False}
    file.write_text(json.dumps(custom | {"*.router.proj": {"mode": "mxfp8"}}))
    converted(capsys, original, tmp_path / "own", "-q", "--quant-predicate", file)
    assert kinds(tmp_path / "own") == {
        "experts": {(8, 64), (6, 32), (4, 64)}, "self_attn": {None}, "mlp": {(4, 64)}, "router": {(8, 32)},
        "self_conditioning": {(4, 64)},
    }  # fmt: skip
    for name in ("uniform", "precise", "own"):
        check(tmp_path / name, original, mx.float32, quantized=True)


def test_rows_that_the_group_does_not_divide(tmp_path, capsys):
    original, made = source(tmp_path / "source", moe_intermediate_size=24), tmp_path / "made"
    lines = converted(capsys, original, made, "-q")
    for layer in range(4):
        path = f"model.decoder.layers.{layer}.experts.down_proj"
        assert lines[layer].endswith(f"{path} stays unquantized: groups of 64 do not divide its rows of 24")
        assert json.loads((made / "config.json").read_text())["quantization"][path] is False
    check(made, original, mx.float32, quantized=True)


def test_shards(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "SHARD", 300_000)
    original, made = source(tmp_path / "source"), tmp_path / "made"
    converted(capsys, original, made)
    files = sorted(file.name for file in made.glob("*.safetensors"))
    assert len(files) > 3 and files == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    index = json.loads((made / "model.safetensors.index.json").read_text())
    tensors = read_tensors(made)
    assert index["weight_map"] == {name: tensor.file.name for name, tensor in tensors.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(array.size for array in arrays(original).values())
    assert all(tensor.start % 2 == 0 for tensor in tensors.values())
    sizes = {file: sum(t.nbytes for t in tensors.values() if t.file.name == file) for file in files}
    assert max(sizes.values()) <= 300_000
    check(made, original, mx.float32, quantized=False)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-q"], 16.55), (["-q", "--q-bits", "8"], 27.98), (["-q", "--q-bits", "6"], 22.26), ([], 51.65),
        (["-q", "--q-bits", "5"], 19.40), (["-q", "--q-bits", "3"], 13.69), (["-q", "--q-bits", "2"], 10.835),
        (["-q", "--q-mode", "mxfp4"], 15.83), (["-q", "--q-mode", "nvfp4"], 16.55),
        (["-q", "--q-mode", "mxfp8"], 27.26),
    ],
)  # fmt: skip
@pytest.mark.sample(4)
def test_sizes_of_the_published_model(tmp_path, capsys, flags, expected):
    """As mlx-community's; planned, no weight is read. Of the published tensors, vision is not here: 1.146 GB."""
    argv = ["--hf-path", checkpoints.published(tmp_path), "--mlx-path", tmp_path / "made", "--dry-run", "--json"]
    code, out, _ = conversions.run(capsys, *argv, *flags)
    report = json.loads(out)
    assert code == 0 and not (tmp_path / "made").exists()
    assert abs((report["bytes"] + 1_145_577_216) / 1e9 / expected - 1) < 1e-3
    if flags == ["-q"]:
        assert report["macs"][0] == 24 and abs(report["text_bytes"] / 15.40e9 - 1) < 1e-3


def test_hub_layout_says_what_the_source_leaves_to_defaults():
    stored = checkpoints.config(layout="transformers", eos=())
    for name in ("rope_parameters", "rms_norm_eps"):
        del stored["text_config"][name]
    del stored["eos_token_id"], stored["canvas_length"]
    stored |= {"torch_dtype": "float32", "vision_config": None}
    stored["text_config"]["eos_token_id"] = 7
    written = hub_config(stored, parse_config(stored), "bfloat16")
    assert written["text_config"]["rope_parameters"] == DEFAULT_ROPE
    assert written["text_config"]["final_logit_softcapping"] == 30.0
    assert (written["eos_token_id"], written["canvas_length"]) == ([7], 256)
    assert (written["dtype"], written["text_config"]["dtype"]) == ("bfloat16", "bfloat16")
    assert "torch_dtype" not in written and written["vision_config"] is None


def test_text_only(tmp_path, capsys):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    lines = converted(capsys, original, made, "--text-only")
    assert "dropped: model.encoder.vision_tower.std_bias" in lines[1]
    assert json.loads((made / "config.json").read_text())["vision_config"] is None
    assert not any("vision" in name for name in arrays(made))
    conversions.loaded(made)


def test_the_default_recipe_names_what_every_token_reads():
    recipe = recipes.mlx_community(recipes.quantization("mxfp4"))
    assert recipe("model.decoder.layers.0.mlp.up_proj") == recipes.EIGHT
    assert recipe("model.decoder.self_conditioning.up_proj").mode == "mxfp4"


def test_help_imports_nothing_heavy():
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'mlx', 'torch', 'transformers', 'huggingface_hub'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        "sys.argv = ['convert', '--help']\n"
        "runpy.run_module('mlx_dgemma.convert', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--q-group-size" in done.stdout and done.stdout.endswith("[]\n")
