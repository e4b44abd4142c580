"""Sources for the converter, runs of it, and what must hold of any folder that it makes."""

from __future__ import annotations

import checkpoints
import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.checkpoint.names import is_vision, parameter_name
from mlx_dgemma.convert.__main__ import main
from mlx_dgemma.load import load_model

WIDE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}  # groups of 64 divide every row
VISION = "model.encoder.vision_tower."
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
    if dtype:
        cast = {name: array.astype(getattr(mx, dtype)) for name, array in arrays(folder).items()}
        mx.save_safetensors(str(folder / "model.safetensors"), cast, metadata={"format": "pt"})
    return folder


def arrays(folder):
    loaded: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded |= mx.load(str(file))
    return loaded


def parsed(folder):
    return parse_config(*read_configs(folder))


def loaded(folder, dtype=None):
    config = parsed(folder)
    return load_model(folder, config, "mlx", dtype or config.dtype)


def same(one, other):
    assert one.dtype == other.dtype and one.shape == other.shape, (one.dtype, one.shape, other.dtype, other.shape)
    return mx.array_equal(one, other).item()


def check(folder, original, dtype, *, quantized):
    """Every tensor is what the source's, cast, quantizes to as a whole; vision is as it was; and the folder loads."""
    found, config = arrays(folder), parsed(folder)
    for name, array in arrays(original).items():
        path = parameter_name(name)
        weight, layer = found.pop(path), path.removesuffix(".weight")
        if is_vision(name):
            assert same(weight, array)
        elif f"{layer}.scales" in found:
            q = config.quantized_paths.get(layer, config.quantization)
            expected = mx.quantize(array.astype(dtype), group_size=q.group_size, bits=q.bits, mode=q.mode)
            stored = [weight, found.pop(f"{layer}.scales")]
            stored += [found.pop(f"{layer}.biases")] if q.mode == "affine" else []
            assert all(same(a, b) for a, b in zip(stored, expected, strict=True)), name
        else:
            assert not quantized or array.ndim == 1 or config.quantized_paths[layer] is None, name
            assert same(weight, array.astype(dtype)), name
    assert not found
    return loaded(folder)


def logits(model):
    from mlx_dgemma.seam.model import Row

    canvas = np.arange(model.config.canvas_length, dtype=np.int32)
    return model.logits(Row(canvas, model.new_cache(), 1.0, np.zeros(len(canvas), np.float32), pending=[3, 4, 5]))


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
