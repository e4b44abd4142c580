"""What the converter reads beside the published checkpoint: MLX folders, quantized or not, and NVIDIA's NVFP4."""

from __future__ import annotations

import json

import checkpoints
import conversions
import mlx.core as mx
import numpy as np
import pytest
from conversions import (
    WIDE,
    arrays,
    check,
    contents,
    converted,
    fails,
    loaded,
    logits,
    modelopt,
    parsed,
    run,
    same,
    source,
)  # fmt: skip

from mlx_dgemma.checkpoint.names import parameter_name
from mlx_dgemma.convert import stream


def dequantized(folder, dtype):
    """path -> weight, as a network of `dtype` computes with it."""
    stored, config = arrays(folder), parsed(folder)
    made = {}
    for name, array in stored.items():
        layer = name.removesuffix(".weight")
        q = (config.quantized_paths or {}).get(layer, config.quantization)
        if name.endswith(".weight") and f"{layer}.scales" in stored:
            rest = [stored[f"{layer}.{kind}"] for kind in ("scales", "biases") if f"{layer}.{kind}" in stored]
            if q.mode == "affine":
                rest = [part.astype(dtype) for part in rest]
            array = mx.dequantize(array, *rest, group_size=q.group_size, bits=q.bits, mode=q.mode)
        if not name.endswith((".scales", ".biases")):
            made[name] = array.astype(dtype) if "vision" not in name else array
    return made


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.sample(2)
def test_back_to_plain_weights(tmp_path, capsys, monkeypatch, mode, dtype):
    """The published names, without groups, and the weights that the quantized folder computes with."""
    monkeypatch.setattr(stream, "PIECE", 10_000)
    original, small, back = source(tmp_path / "source", dtype=dtype), tmp_path / "small", tmp_path / "back"
    converted(capsys, original, small, "-q", "--q-mode", mode, "--quant-predicate", "uniform")
    converted(capsys, small, back, "-d")
    assert set(arrays(back)) == set(arrays(original))
    expected, stored = dequantized(small, getattr(mx, dtype)), arrays(back)
    for name, array in stored.items():
        assert same(array, expected[parameter_name(name)]), name
    config = json.loads((back / "config.json").read_text())
    assert "quantization" not in config and "quantization_config" not in config and config["dtype"] == dtype
    assert mx.load(str(back / "model.safetensors"), return_metadata=True)[1] == {"format": "pt"}
    if (mode, dtype) != ("affine", "bfloat16"):  # whose weights are others in a network of float32
        assert np.abs(logits(loaded(back, "float32")) - logits(loaded(small, "float32"))).max() < 1e-4


@pytest.mark.slow
def test_back_and_into_transformers(tmp_path, capsys):
    pytest.importorskip("transformers", reason="the reference")
    reference = pytest.importorskip("reference", reason="needs torch and transformers")
    original, small, back = source(tmp_path / "source"), tmp_path / "small", tmp_path / "back"
    converted(capsys, original, small, "-q")
    converted(capsys, small, back, "-d", "--text-only")
    session = reference.Session(reference.load(back))
    session.encode(np.array([3, 4, 5]))
    canvas = np.arange(16, dtype=np.int32)
    assert np.abs(session.logits(canvas) - logits(loaded(small))).max() < 1e-4


@pytest.mark.slow
def test_transformers_finds_every_tensor_and_none_too_many(tmp_path, capsys):
    pytest.importorskip("transformers", reason="the reference")
    reference = pytest.importorskip("reference", reason="needs torch and transformers")
    converted(capsys, checkpoints.TINY, tmp_path / "small", "-q")
    converted(capsys, tmp_path / "small", tmp_path / "back", "-d")
    model = reference.network()
    _, info = model.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info


def test_kept_as_it_is(tmp_path, capsys):
    """Without -q and -d every layer stays as it stands, to the byte; so does a layer that is as it is wanted."""
    original, small, copy = source(tmp_path / "source"), tmp_path / "small", tmp_path / "copy"
    converted(capsys, original, small, "-q")
    converted(capsys, small, copy)
    converted(capsys, small, tmp_path / "again", "-q")
    expected = contents(small)
    for folder in (copy, tmp_path / "again"):
        stored = contents(folder)
        assert {n: stored[n] for n in stored if n != "README.md"} == {
            n: expected[n] for n in stored if n != "README.md"
        }
    converted(capsys, small, tmp_path / "half", "--dtype", "float16")
    assert arrays(tmp_path / "half")["model.decoder.embed_tokens.scales"].dtype == mx.float16
    loaded(tmp_path / "half")


def test_quantized_otherwise(tmp_path, capsys):
    """As if its dequantized weights had been the source."""
    original, eight, four, back = (tmp_path / name for name in ("source", "eight", "four", "back"))
    source(original)
    converted(capsys, original, eight, "-q", "--q-bits", "8", "--quant-predicate", "uniform")
    converted(capsys, eight, four, "-q", "--quant-predicate", "uniform")
    converted(capsys, eight, back, "-d")
    check(four, back, mx.float32, quantized=True)


def test_an_mlx_folder_without_groups(tmp_path, capsys):
    original, plain = source(tmp_path / "source"), tmp_path / "plain"
    converted(capsys, original, plain)
    converted(capsys, plain, tmp_path / "four", "-q")
    converted(capsys, plain, tmp_path / "back", "-d")
    check(tmp_path / "four", original, mx.float32, quantized=True)
    assert all(same(array, arrays(tmp_path / "back")[name]) for name, array in arrays(original).items())


def test_scales_that_are_not_finite(tmp_path, capsys):
    for mode, code in (("affine", np.nan), ("mxfp4", 255), ("nvfp4", 127), ("mxfp8", 255)):
        original, small = source(tmp_path / mode), tmp_path / f"{mode}-small"
        converted(capsys, original, small, "-q", "--q-mode", mode)
        name = "model.decoder.layers.1.experts.down_proj.scales"
        damaged = arrays(small)
        changed = np.array(damaged[name])
        changed[1, 2, 0] = code
        mx.save_safetensors(str(small / "model.safetensors"), damaged | {name: mx.array(changed)})
        fails(capsys, tmp_path, ["--hf-path", small, "--mlx-path", tmp_path / "made"], name, "NaN")


@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_modelopt(tmp_path, capsys, monkeypatch, layout):
    """Packed values and scales stay as they are, and logits are those of the float32 weights that they stand for."""
    monkeypatch.setattr(stream, "PIECE", 3_000)  # ends within an expert's projection
    exact = modelopt(tmp_path / "nvidia", layout=layout)
    made = tmp_path / "made"
    lines = converted(capsys, tmp_path / "nvidia", made)
    assert "dropped: model.decoder.layers.*.experts.*.gate_proj.input_scale (32 of them)" in "\n".join(lines)
    config = parsed(made)
    assert config.quantized_paths["model.decoder.layers.0.self_attn.q_proj"] is None
    stored = arrays(made)
    assert stored["model.decoder.layers.0.experts.gate_up_proj.weight_scale_2"].shape == (8, 128)
    assert stored["model.decoder.layers.0.experts.down_proj.weight_scale_2"].shape == (8,)
    plain = checkpoints.config(**WIDE)
    expected = logits(loaded(checkpoints.write(tmp_path / "plain", plain, exact)))
    assert np.abs(logits(loaded(made)) - expected).max() < 1e-4
    half = logits(loaded(made, "float16"))
    assert np.isfinite(half).all() and np.abs(half - expected).max() < 0.1

    converted(capsys, tmp_path / "nvidia", tmp_path / "back", "-d")
    back = arrays(tmp_path / "back")
    assert all(np.array_equal(np.array(back[name]), array) for name, array in exact.items())
    converted(capsys, made, tmp_path / "back2", "-d")
    assert contents(tmp_path / "back2")["model.safetensors"] == contents(tmp_path / "back")["model.safetensors"]


def test_modelopt_with_the_rest_quantized(tmp_path, capsys):
    exact = modelopt(tmp_path / "nvidia")
    converted(capsys, tmp_path / "nvidia", tmp_path / "kept", "-q", "--q-mode", "nvfp4")
    converted(capsys, tmp_path / "nvidia", tmp_path / "plain")
    kept, plain = arrays(tmp_path / "kept"), arrays(tmp_path / "plain")
    assert all(same(kept[name], plain[name]) for name in kept if ".experts." in name)
    assert "model.decoder.layers.0.self_attn.q_proj.scales" in kept
    loaded(tmp_path / "kept")
    converted(capsys, tmp_path / "nvidia", tmp_path / "four", "-q")
    checkpoints.write(tmp_path / "exact", checkpoints.config(**WIDE), exact)
    check(tmp_path / "four", tmp_path / "exact", mx.float32, quantized=True)
    copy = tmp_path / "copy"
    converted(capsys, tmp_path / "plain", copy)
    assert contents(copy)["model.safetensors"] == contents(tmp_path / "plain")["model.safetensors"]


def test_modelopt_that_is_not_whole(tmp_path, capsys):
    name = "model.decoder.layers.1.experts.3.up_proj.weight_scale_2"
    modelopt(tmp_path / "nvidia", leave_out=name)
    fails(capsys, tmp_path, ["--hf-path", tmp_path / "nvidia", "--mlx-path", tmp_path / "made"], name, "missing")


def test_told_as_json(tmp_path, capsys):
    modelopt(tmp_path / "nvidia")
    code, out, _ = run(capsys, "--hf-path", tmp_path / "nvidia", "--mlx-path", tmp_path / "made", "--json", "-q")
    report = json.loads(out)
    assert code == 0 and len(report["dropped"]) == 4 * 8 * 3 and report["destination"] == str(tmp_path / "made")
    by_class = {line["name"]: line for line in report["classes"]}
    assert 0.05 < by_class["experts"]["relative_error"] < 0.15 and by_class["norms and scalars"]["relative_error"] == 0
    assert report["bytes"] == sum(line["nbytes"] for line in report["classes"])
    assert conversions.parsed(tmp_path / "made").quantization.bits == 4


def test_copies_and_adapters_are_dropped_and_listed(tmp_path, capsys):
    original = source(tmp_path / "source")
    copies = {"lm_head.weight": arrays(original)["model.decoder.embed_tokens.weight"]}
    source(tmp_path / "copied", tensors={name: np.array(array) for name, array in copies.items()})
    mx.save_safetensors(str(tmp_path / "copied" / "adapters.safetensors"), {"x": mx.zeros(3)})
    (tmp_path / "copied" / "._model.safetensors").write_bytes(bytes(99))
    lines = converted(capsys, tmp_path / "copied", tmp_path / "made", "-q")
    for name in ("lm_head.weight", "adapters.safetensors"):
        assert any(f"dropped: {name}" in line for line in lines), lines
    check(tmp_path / "made", original, mx.float32, quantized=True)
    assert not list((tmp_path / "made").glob("*adapter*")) and not list((tmp_path / "made").glob("._*"))


def test_a_source_without_a_tokenizer_is_told_first(tmp_path, capsys):
    (source(tmp_path / "source") / "tokenizer.json").unlink()
    lines = converted(capsys, tmp_path / "source", tmp_path / "made")
    assert "has no tokenizer.json" in lines[0]
