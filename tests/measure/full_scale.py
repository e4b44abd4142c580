"""The converter at the published checkpoint's size, on files with holes: memory, speed, and values compared.

    python tests/measure/full_scale.py FOLDER [flags of mlx_dgemma.convert, -q if none]

Makes FOLDER/source (no disk is used: 1,047 tensors of the published names and shapes, zeros but for random values in
some), converts it to FOLDER/made in a process of its own, whose anonymous memory is read every 50 ms, compares
what has values with `mx.quantize` of the whole tensor, and then has MLX load, quantize and save the same tensors, one
after another. Prints one JSON object. Needs 17 GB of disk for -q, twice.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs, read_tensors
from mlx_dgemma.checkpoint.names import is_vision, parameter_name

SHARD = 5_000_000_000
LAYERS = "model.decoder.layers"
FILLED = {  # tensor -> which slice of its first axis has values
    f"{LAYERS}.3.router.proj.weight": slice(None),
    f"{LAYERS}.7.self_attn.v_proj.weight": slice(None),
    "model.encoder.language_model.layers.12.layer_scalar": slice(None),
    f"{LAYERS}.0.experts.gate_up_proj": slice(0, 2),
    f"{LAYERS}.17.experts.gate_up_proj": slice(63, 66),
    f"{LAYERS}.29.experts.down_proj": slice(126, 128),
}


def config() -> dict:
    made = checkpoints.config(
        vocab_size=262144, hidden_size=2816, intermediate_size=2112, moe_intermediate_size=704, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, num_experts=128, top_k_experts=8, canvas_length=256, sliding_window=1024,
        max_position_embeddings=262144, layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 5,
        full={"head_dim": 512, "num_key_value_heads": 2},
    )  # fmt: skip
    return made | {"dtype": "bfloat16"}


def vision_shapes() -> dict[str, tuple[int, ...]]:
    tower = "model.encoder.vision_tower"
    shapes: dict[str, tuple[int, ...]] = {
        "model.encoder.embed_vision.embedding_projection.weight": (2816, 1152),
        f"{tower}.std_bias": (1152,),
        f"{tower}.std_scale": (1152,),
        f"{tower}.patch_embedder.position_embedding_table": (2, 10240, 1152),
        f"{tower}.patch_embedder.input_proj.weight": (1152, 768),
    }
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{n}_proj.linear": (1152, 1152) for n in "qkvo"}
    layer |= {f"self_attn.{n}_norm": (72,) for n in "qk"} | {
        f"mlp.{n}_proj.linear": (4304, 1152) for n in ("gate", "up")
    }
    layer |= {"mlp.down_proj.linear": (1152, 4304)}
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    layer |= {f"{n}_layernorm": (1152,) for n in norms}
    return shapes | {f"{tower}.encoder.layers.{i}.{n}.weight": s for i in range(27) for n, s in layer.items()}


def write_source(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config()))
    shapes, shards, end = {**checkpoints.shapes(config()), **vision_shapes()}, [{}], 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if end + size > SHARD:
            shards.append({})
            end = 0
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + size]}
    weight_map = {}
    for number, table in enumerate(shards, 1):
        header = json.dumps(table).encode()
        header += b" " * (-len(header) % 8)
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + max(entry["data_offsets"][1] for entry in table.values()))
        weight_map |= dict.fromkeys(table, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    r = np.random.default_rng(0)
    for name, where in FILLED.items():
        tensor = read_tensors(folder)[name]
        first, last, _ = where.indices(tensor.shape[0])
        values = mx.array(r.standard_normal((last - first, *tensor.shape[1:]), np.float32)).astype(mx.bfloat16)
        with tensor.file.open("rb+") as file:
            file.seek(tensor.start + first * tensor.nbytes // tensor.shape[0])
            file.write(np.asarray(values.view(mx.uint16)))
    return folder


def convert(source: Path, made: Path, flags: list[str]) -> dict:
    argv = ["-m", "mlx_dgemma.convert", "--hf-path", source, "--mlx-path", made, "--json", *flags]
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *map(str, argv)], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.05)
    report = json.loads(process.stdout.read())
    return {"seconds": time.perf_counter() - started, "peak_anonymous_bytes": peak, "bytes": report["bytes"]}


def compare(source: Path, made: Path) -> int:
    """-> how many tensors hold what their whole source quantizes to."""
    config, weights = parse_config(*read_configs(made)), read_tensors(made)
    for name in FILLED:
        original = mx.load(str(read_tensors(source)[name].file))[name]
        path = parameter_name(name)
        layer = path.removesuffix(".weight")
        found = [mx.load(str(weights[n].file))[n] for n in (path, f"{layer}.scales", f"{layer}.biases") if n in weights]
        expected = [original]
        if len(found) > 1:
            q = config.quantized_paths.get(layer, config.quantization)
            expected = mx.quantize(original, group_size=q.group_size, bits=q.bits, mode=q.mode)
        assert len(found) == len(expected) and all(
            mx.array_equal(*pair).item() for pair in zip(found, expected, strict=True)
        )
    return len(FILLED)


def mlx_alone(source: Path, made: Path, out: Path) -> float:
    """Seconds of loading, quantizing and saving every tensor as `made` has it, in MLX calls and nothing else."""
    config, tensors, started = parse_config(*read_configs(made)), read_tensors(source), time.perf_counter()
    out.mkdir()
    for number, (name, tensor) in enumerate(tensors.items()):
        array = mx.load(str(tensor.file))[name]
        layer = parameter_name(name).removesuffix(".weight")
        q = (config.quantized_paths or {}).get(layer, config.quantization)
        if q and array.ndim > 1 and not is_vision(name) and "norm" not in name:
            kinds = ("weight", "scales", "biases")
            arrays = mx.quantize(array, group_size=q.group_size, bits=q.bits, mode=q.mode)
            mx.save_safetensors(str(out / f"{number}.safetensors"), dict(zip(kinds, arrays, strict=False)))
        else:
            mx.save_safetensors(str(out / f"{number}.safetensors"), {"weight": array})
    os.sync()
    return time.perf_counter() - started


def main() -> None:
    folder, flags = Path(sys.argv[1]), sys.argv[2:] or ["-q"]
    source = write_source(folder / "source")
    report = convert(source, folder / "made", flags)
    report["compared"] = compare(source, folder / "made")
    report["seconds_of_mlx_alone"] = mlx_alone(source, folder / "made", folder / "alone")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
