"""Sources for the converter, runs of it, and what must hold of any folder that it makes."""

from __future__ import annotations

import json

import checkpoints
import mlx.core as mx
import numpy as np
import safetensors.numpy

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.checkpoint.names import is_vision, parameter_name
from mlx_dgemma.convert.__main__ import main
from mlx_dgemma.load import load_model
from mlx_dgemma.seam.model import Row, Text

WIDE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}  # groups of 64 divide every row
VISION = "model.encoder.vision_tower."
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])
EXPERTS, SCALE = "model.decoder.layers.2.experts.down_proj", "model.decoder.layers.1.router.scale"


def source(folder, *, layout="hub", tensors=None, without=(), dtype=None, **shape):
    """A random checkpoint with two vision tensors; `tensors` replaces some."""
    config = checkpoints.config(layout=layout, **{**WIDE, **shape})
    made = checkpoints.weights(config)
    made[VISION + "std_bias"] = np.linspace(-1, 1, 16, dtype=np.float16)
    made[VISION + "patch_embedder.input_proj.weight"] = np.ones((16, 24), np.float32)
    made = {name: array for name, array in made.items() if name not in without}
    if dtype:
        config["dtype"] = dtype
    checkpoints.write(folder, config, made | (tensors or {}))
    (folder / "tokenizer.json").write_text("{}")
    if dtype:
        cast = {name: array.astype(getattr(mx, dtype)) for name, array in arrays(folder).items()}
        mx.save_safetensors(str(folder / "model.safetensors"), cast, metadata={"format": "pt"})
    return folder


def e4m3(codes):
    """float32 of 8-bit floats with 4 bits of exponent and 3 of fraction, written out."""
    sign, exponent, fraction = codes >> 7, (codes >> 3) & 15, codes & 7
    value = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent.astype(int) - 7))
    return np.where(sign == 1, -value, value).astype(np.float32)


def modelopt(folder, *, leave_out=None, layout="hub", dtype="float32"):
    """NVIDIA's layout: experts one by one. -> path -> the float32 weights that they stand for."""
    config = checkpoints.config(layout=layout, **WIDE) | {"dtype": dtype}
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*self_attn*"]}
    plain, r, tensors, exact = checkpoints.weights(config), np.random.default_rng(5), {}, {}
    for name, array in plain.items():
        if ".experts." not in name:
            tensors[name] = exact[name] = array
            continue
        experts, projections = name.rsplit(".", 1)[0], ("gate", "up") if "gate_up" in name else ("down",)
        exact[name] = np.empty_like(array)
        for expert in range(array.shape[0]):
            for part, projection in enumerate(projections):
                rows = array.shape[1] // len(projections)
                codes = r.integers(0, 16, (rows, array.shape[2]), dtype=np.uint8)
                scales = r.integers(0x20, 0x60, (rows, array.shape[2] // 16), dtype=np.uint8)
                scales[0, 0], scales[1, 0] = 0, 3  # zero, and less than normal
                whole = np.float32(r.uniform(0.5, 2) / 400)
                prefix = f"{experts}.{expert}.{projection}_proj"
                tensors[f"{prefix}.weight"] = codes[:, ::2] | codes[:, 1::2] << 4
                tensors[f"{prefix}.weight_scale"] = scales
                tensors[f"{prefix}.weight_scale_2"] = np.array(whole)
                tensors[f"{prefix}.input_scale"] = np.array(0.01, np.float32)
                values = FP4[codes] * np.repeat(e4m3(scales), 16, axis=1) * whole
                exact[name][expert, part * rows : (part + 1) * rows] = values
    tensors = {name: array for name, array in tensors.items() if not leave_out or leave_out not in name}
    checkpoints.write(folder, config, {})
    (folder / "tokenizer.json").write_text("{}")
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name in header:
        if name.endswith(".weight_scale"):
            header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return exact


def arrays(folder):
    loaded: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded |= mx.load(str(file))
    return loaded


def parsed(folder):
    return parse_config(*read_configs(folder))


def loaded(folder, dtype=None):
    config = parsed(folder)
    return load_model(Checkpoint(folder, config), "mlx", dtype or config.dtype)


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, a.shape, b.dtype, b.shape)
    return mx.array_equal(a, b).item()


def check(folder, original, dtype, *, quantized):
    """Every tensor is what the source's, cast, quantizes to as a whole; vision is as it was; and the folder loads."""
    remaining, config = arrays(folder), parsed(folder)
    for name, array in arrays(original).items():
        path = parameter_name(name)
        weight, layer = remaining.pop(path), path.removesuffix(".weight")
        if is_vision(name):
            assert same(weight, array)
        elif f"{layer}.scales" in remaining:
            q = config.quantized_paths.get(layer, config.quantization)
            expected = mx.quantize(array.astype(dtype), group_size=q.group_size, bits=q.bits, mode=q.mode)
            stored = [weight, remaining.pop(f"{layer}.scales")]
            stored += [remaining.pop(f"{layer}.biases")] if q.mode == "affine" else []
            assert all(same(a, b) for a, b in zip(stored, expected, strict=True)), name
        else:
            assert not quantized or array.ndim == 1 or config.quantized_paths[layer] is None, name
            assert same(weight, array.astype(dtype)), name
    assert not remaining
    return loaded(folder)


def logits(model):
    canvas = np.arange(model.config.canvas_length, dtype=np.int32)
    return model.logits(Row(canvas, model.new_cache(), 1.0, np.zeros(len(canvas), np.float32), pending=Text([3, 4, 5])))


def run(capsys, *argv):
    """-> (exit code, stdout, lines on stderr)."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as exit:  # argparse's
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def converted(capsys, original, made, *flags):
    """A run that goes well: nothing on stdout. -> its lines on stderr."""
    code, out, lines = run(capsys, "--hf-path", original, "--mlx-path", made, *flags)
    assert (code, out) == (0, ""), lines
    assert not made.with_name(made.name + ".part").exists()
    return lines


def fails(capsys, folder, argv, *named):
    """One line, exit code 2, nothing new in `folder`."""
    before = sorted(folder.rglob("*"))
    code, out, lines = run(capsys, *argv)
    assert (code, out) == (2, "") and len(lines) == 1 and "mlx_dgemma.convert: " in lines[0], lines
    for word in named:
        assert word in lines[0], lines[0]
    assert sorted(folder.rglob("*")) == before


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}
