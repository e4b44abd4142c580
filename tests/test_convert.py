"""The converter: what it writes loads, and holds what `mx.quantize` makes of the source; mistakes leave nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import checkpoints
import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint import read_configs, read_tensors
from mlx_dgemma.config import DEFAULT_ROPE, Quantization, parse_config
from mlx_dgemma.convert import stream
from mlx_dgemma.convert.__main__ import convert, main, parser
from mlx_dgemma.convert.names import is_vision, parameter_name
from mlx_dgemma.convert.recipes import mlx_community
from mlx_dgemma.load import load_model

WIDE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}  # groups of 64 divide every row
VISION = "model.encoder.vision_tower."
EIGHT = {"bits": 8, "group_size": 64, "mode": "affine"}


def source(folder, *, layout="hub", tensors=None, without=(), **shape):
    """A random checkpoint with two vision tensors; `tensors` replaces some."""
    config = checkpoints.config(layout=layout, **{**WIDE, **shape})
    made = checkpoints.weights(config)
    made[VISION + "std_bias"] = np.linspace(-1, 1, 16, dtype=np.float16)
    made[VISION + "patch_embedder.input_proj.weight"] = np.ones((16, 24), np.float32)
    made = {name: array for name, array in made.items() if name not in without}
    return checkpoints.write(folder, config, made | (tensors or {}))


def arrays(folder):
    loaded: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found, metadata = mx.load(str(file), return_metadata=True)
        assert metadata == {"format": "mlx"} or file.parent.name == "source" or folder == checkpoints.TINY
        loaded |= found
    return loaded


def parsed(folder):
    return parse_config(*read_configs(folder))


def same(one, other):
    assert one.dtype == other.dtype and one.shape == other.shape
    return mx.array_equal(one, other).item()


def check(folder, original, dtype, *, quantized):
    """Every tensor is what the source's, cast, quantizes to; vision is as it was; and the folder loads."""
    found, config = arrays(folder), parsed(folder)
    for name, array in arrays(original).items():
        path = parameter_name(name)
        weight, layer = found.pop(path), path.removesuffix(".weight")
        if is_vision(name):
            assert same(weight, array)
        elif f"{layer}.scales" in found:
            q = config.quantized_paths.get(layer, config.quantization)
            triple = mx.quantize(array.astype(dtype), group_size=q.group_size, bits=q.bits, mode="affine")
            stored = (weight, found.pop(f"{layer}.scales"), found.pop(f"{layer}.biases"))
            assert all(same(a, b) for a, b in zip(stored, triple, strict=True)), name
        else:
            assert not quantized or array.ndim == 1 or config.quantized_paths[layer] is None, name
            assert same(weight, array.astype(dtype)), name
    assert not found
    load_model(folder, config, "mlx", config.dtype)


def run(capsys, *argv):
    """-> (exit code, lines on stderr); nothing goes to stdout."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as exit:  # argparse's
        code = exit.code
    out, err = capsys.readouterr()
    assert out == ""
    return code, err.splitlines()


def test_tiny(tmp_path, capsys):
    made = tmp_path / "made"
    code, lines = run(capsys, "--hf-path", checkpoints.TINY, "--mlx-path", made, "-q")
    assert code == 0 and len(lines) == 1
    assert str(made) in lines[0] and "2.1 MB, 7.25 bits per weight" in lines[0]
    check(made, checkpoints.TINY, mx.float32, quantized=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (made / name).read_bytes() == (checkpoints.TINY / name).read_bytes()
    config = json.loads((made / "config.json").read_text())
    text, stored = config["text_config"], config["quantization"]
    assert config["quantization_config"] == stored
    assert "per_layer_config" not in text and (text["global_head_dim"], text["num_global_key_value_heads"]) == (64, 1)
    assert config["eos_token_id"] == [1, 5] and config["canvas_length"] == 64 and config["dtype"] == "float32"
    assert config["vision_config"]["rope_parameters"] == {"rope_theta": 100.0, "rope_type": "default"}
    assert {k: v for k, v in stored.items() if not isinstance(v, dict)} == {
        "bits": 4,
        "group_size": 64,
        "mode": "affine",
    }
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    eight = attention | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "router.proj"}
    assert {k: v for k, v in stored.items() if "layers.1." in k} == {
        f"model.decoder.layers.1.{n}": EIGHT for n in eight
    }
    assert stored["model.decoder.embed_tokens"] == EIGHT
    assert not any("experts" in path or "self_conditioning" in path for path in stored)


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize(
    "flags",
    [(), ("--dtype", "bfloat16"), ("-q",), ("-q", "--q-bits", "3", "--q-group-size", "32", "--dtype", "float16")],
)
def test_both_layouts(tmp_path, capsys, monkeypatch, layout, flags):
    monkeypatch.setattr(stream, "PIECE", 10_000)  # embedding and experts come in several pieces
    original = source(tmp_path / "source", layout=layout)
    made = tmp_path / "made"
    assert run(capsys, "--hf-path", original, "--mlx-path", made, *flags)[0] == 0
    dtype = flags[-1] if "--dtype" in flags else "float32"
    config, before = parsed(made), parsed(original)
    assert config.dtype == dtype
    assert (config.layers, config.stop_ids) == (before.layers, before.stop_ids)
    check(made, original, getattr(mx, dtype), quantized="-q" in flags)


def test_bfloat16_source(tmp_path, capsys):
    original = source(tmp_path / "source")
    tensors = {name: array.astype(mx.bfloat16) for name, array in arrays(original).items()}
    mx.save_safetensors(str(original / "model.safetensors"), tensors, metadata={"format": "pt"})
    config = json.loads((original / "config.json").read_text()) | {"dtype": "bfloat16"}
    (original / "config.json").write_text(json.dumps(config))
    assert run(capsys, "--hf-path", original, "--mlx-path", tmp_path / "made", "-q")[0] == 0
    check(tmp_path / "made", original, mx.bfloat16, quantized=True)


def test_rows_that_the_group_does_not_divide(tmp_path, capsys):
    original, made = source(tmp_path / "source", moe_intermediate_size=24), tmp_path / "made"
    code, lines = run(capsys, "--hf-path", original, "--mlx-path", made, "-q")
    assert code == 0 and len(lines) == 5
    for layer in range(4):
        path = f"model.decoder.layers.{layer}.experts.down_proj"
        assert lines[layer].endswith(f"{path} stays unquantized: groups of 64 do not divide its rows of 24")
        assert json.loads((made / "config.json").read_text())["quantization"][path] is False
    check(made, original, mx.float32, quantized=True)


def test_shards(tmp_path):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    convert(parser().parse_args(["--hf-path", str(original), "--mlx-path", str(made)]), shard_bytes=300_000)
    files = sorted(file.name for file in made.glob("*.safetensors"))
    assert len(files) > 3 and files == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    index = json.loads((made / "model.safetensors.index.json").read_text())
    tensors = read_tensors(made)
    assert index["weight_map"] == {name: tensor.file.name for name, tensor in tensors.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert all(tensor.start % 2 == 0 for tensor in tensors.values())
    sizes = {file: sum(t.nbytes for t in tensors.values() if t.file.name == file) for file in files}
    assert max(sizes.values()) <= 300_000
    check(made, original, mx.float32, quantized=False)


def test_size_of_the_published_model(tmp_path):
    """Planned from the headers of a file with holes: 15.40 GB of text at 4 bits, 26.83 at 8."""
    config = checkpoints.config(
        vocab_size=262144, hidden_size=2816, intermediate_size=2112, moe_intermediate_size=704, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, num_experts=128, top_k_experts=8,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 5,
        full={"head_dim": 512, "num_key_value_heads": 2},
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    table, end = {}, 0
    for name, shape in checkpoints.shapes(config).items():
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * int(np.prod(shape))]}
    header = json.dumps(table).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    for bits, expected in ((4, 15.40e9), (8, 26.83e9)):
        plan = stream.plan(tmp_path, mlx_community(bits), Quantization(bits=bits, group_size=64), "bfloat16")
        assert abs(plan.nbytes / expected - 1) < 1e-3 and not plan.undivided
        assert all(sum(job.nbytes for job in shard) <= 5e9 for shard in plan.shards)


def break_file(folder):
    with (folder / "model.safetensors").open("rb+") as file:
        file.truncate(file.seek(0, 2) - 100)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | changes.pop("text_config", {})
    (folder / "config.json").write_text(json.dumps(config | {"text_config": text} | changes))


NAN = np.full((8, 64, 64), 1, np.float32)
NAN[5, 3, 2] = np.nan
EXPERTS, SCALE = "model.decoder.layers.2.experts.down_proj", "model.decoder.layers.1.router.scale"
MISTAKES = {  # what the source has instead of what it should, the flags, and what the line must name
    "nan": ({"tensors": {EXPERTS: NAN}}, ["-q"], [EXPERTS, "model.safetensors", "NaN"]),
    "inf": ({"tensors": {SCALE: np.full(64, np.inf, np.float32)}}, [], [SCALE, "Inf"]),
    "nan in vision": ({"tensors": {VISION + "std_bias": np.full(3, np.nan, np.float16)}}, [], ["std_bias", "NaN"]),
    "too large": ({"tensors": {SCALE: np.full(64, 1e6, np.float32)}}, ["--dtype", "float16"], [SCALE, "float16"]),
    "missing": ({"without": [EXPERTS]}, ["-q"], [EXPERTS + " is missing"]),
    "left over": ({"tensors": {"model.extra": np.zeros(3)}}, [], ["model.extra", "model.safetensors", "not part"]),
    "twice": ({"tensors": {EXPERTS + ".weight": NAN}}, [], [EXPERTS, "same parameter"]),
    "shape": ({"tensors": {SCALE: np.zeros(63, np.float32)}}, [], [SCALE, "model.safetensors", "[63]", "[64]"]),
    "dtype": ({"tensors": {SCALE: np.zeros(64, np.int32)}}, [], [SCALE, "model.safetensors", "I32"]),
    "bits": ({}, ["-q", "--q-bits", "7"], ["--q-bits", "7", "2, 3, 4, 5, 6, 8"]),
    "zero bits": ({}, ["-q", "--q-bits", "0"], ["--q-bits", "0"]),
    "group": ({}, ["-q", "--q-group-size", "16"], ["--q-group-size", "16", "32, 64, 128"]),
    "bits without -q": ({}, ["--q-bits", "4"], ["--q-bits", "-q"]),
    "no such dtype": ({}, ["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
}


def fails(capsys, tmp_path, argv, *named):
    """One line, exit code 2, nothing new in the folder."""
    before = sorted(tmp_path.rglob("*"))
    code, lines = run(capsys, *argv)
    assert code == 2 and len(lines) == 1 and "mlx_dgemma.convert: " in lines[0]
    for word in named:
        assert word in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(tmp_path, capsys, case):
    changes, flags, named = MISTAKES[case]
    original = source(tmp_path / "source", **changes)
    fails(capsys, tmp_path, ["--hf-path", original, "--mlx-path", tmp_path / "made", *flags], *named)


def test_broken_sources(tmp_path, capsys):
    def wrong(name, breaking, *named):
        folder = source(tmp_path / name, layout="transformers")
        breaking(folder)
        fails(capsys, tmp_path, ["--hf-path", folder, "--mlx-path", tmp_path / "made"], *named)

    wrong("cut", break_file, "model.safetensors", "truncated")
    wrong("quantized", lambda f: edit_config(f, quantization=EIGHT), "quantized already")
    wrong("gptq", lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}), "gptq")
    wrong("other", lambda f: edit_config(f, model_type="gemma4"), "gemma4", "diffusion_gemma")
    wrong("empty", lambda f: (f / "model.safetensors").unlink(), "no weights")
    missing = tmp_path / "nowhere" / "at" / "all"
    fails(capsys, tmp_path, ["--hf-path", missing, "--mlx-path", tmp_path / "made"], str(missing), "no such folder")


def test_heads_that_the_hub_layout_cannot_express(tmp_path, capsys):
    config = checkpoints.config(layout="transformers", **WIDE)
    config["text_config"]["per_layer_config"]["3"] = {"head_dim": 16, "num_key_value_heads": 4}
    original = checkpoints.write(tmp_path / "source", config, checkpoints.weights(config))
    argv = ["--hf-path", original, "--mlx-path", tmp_path / "made"]
    fails(capsys, tmp_path, argv, "layer 3", "4 key-value heads of 16", "1 of 32")


def test_hub_layout_says_what_the_source_leaves_to_defaults():
    stored = checkpoints.config(layout="transformers", eos=())
    for name in ("rope_parameters", "rms_norm_eps"):
        del stored["text_config"][name]
    del stored["eos_token_id"], stored["canvas_length"]
    stored |= {"torch_dtype": "float32", "vision_config": None}
    stored["text_config"]["eos_token_id"] = 7
    written = stream.hub_config(stored, parse_config(stored), "bfloat16")
    assert written["text_config"]["rope_parameters"] == DEFAULT_ROPE
    assert written["text_config"]["final_logit_softcapping"] == 30.0
    assert (written["eos_token_id"], written["canvas_length"]) == ([7], 256)
    assert (written["dtype"], written["text_config"]["dtype"]) == ("bfloat16", "bfloat16")
    assert "torch_dtype" not in written and written["vision_config"] is None


def test_destinations(tmp_path, capsys, monkeypatch):
    original, made = source(tmp_path / "source"), tmp_path / "made"

    def refused(destination, *named):
        fails(capsys, tmp_path, ["--hf-path", original, "--mlx-path", destination], *named)

    refused(original, f"{original} exists", "--mlx-path")
    refused(tmp_path / "no" / "made", "no folder", str(tmp_path / "no"))
    (tmp_path / "made.part").mkdir()
    refused(made, "made.part exists", "remove it")
    (tmp_path / "made.part").rmdir()
    made.symlink_to(tmp_path / "nowhere")
    refused(made, f"{made} exists")
    made.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_500_000))
    refused(made, "too little disk", "needs 4.4 MB", "1.5 MB are free")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_interrupted(tmp_path, capsys, monkeypatch):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    monkeypatch.setattr(stream.mx, "quantize", interrupt)
    code, lines = run(capsys, "--hf-path", original, "--mlx-path", made, "-q")
    assert code == 130 and len(lines) == 1 and "interrupted" in lines[0]
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_unforeseen_error_is_not_dressed_and_leaves_nothing(tmp_path, monkeypatch):
    original = source(tmp_path / "source")
    monkeypatch.setattr(shutil, "copyfile", disk_full)
    with pytest.raises(OSError, match="No space"):
        main(["--hf-path", str(original), "--mlx-path", str(tmp_path / "made")])
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


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
