"""Triton's kernels at the published shapes, compiled for GPUs that are not here: what a tile takes.

    python tests/measure/kernel_counts.py [89 90 100 120]

Prints a line a kernel and GPU, as JSON: bytes of shared memory, instructions in the inner loop, and for a kernel that
reads weights these times the threads of a tile over the weights that it reads in a turn: instructions a weight.
Needs triton, and neither a GPU nor torch's CUDA build. `nvdisasm` comes with triton.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlx_dgemma.torch_backend import attention_kernels, gather_kernel, kernels, routing_kernel

FORMATS = {  # MODE, BITS, GROUP, types of weights and scales
    "affine 4": (0, 4, 64, "*i32", "*i32"), "affine 8": (0, 8, 64, "*i32", "*i32"),
    "mxfp4": (1, 4, 32, "*i32", "*i32"), "nvfp4": (2, 4, 16, "*i32", "*i32"), "mxfp8": (3, 8, 32, "*i32", "*i32"),
    "bf16": (4, 16, 64, "*bf16", "*bf16"), "fp8": (4, 16, 64, "*fp8e4nv", "*fp32"),
}  # fmt: skip
Case = tuple[str, object, dict[str, str], list[str], dict[str, int], int]


def products() -> Iterator[Case]:
    pointers = {"x": "*bf16", "factors": "*fp32", "y": "*bf16", "ends": "*i32", "tokens": "*i32"}
    numbers = ["weight_stride", "scales_stride"]
    for name, (mode, bits, group, weight, scales) in FORMATS.items():
        fp8 = name == "fp8"
        types = {**pointers, "weight": weight, "scales": scales} | ({"x": weight} if fp8 else {})
        stored = {"MODE": mode, "BITS": bits, "GROUP": group, "PIECES": 16 // bits, "FACTORS": fp8, "DEPTH": 64}
        uses = (("gate and up", 1408, 2816, 2048), ("down", 2816, 704, 2048), ("gate and up, a token", 1408, 2816, 8))
        for use, out, width, rows in (*uses, ("gate and up, 8 canvases", 1408, 2816, 16384)):
            gated = use != "down"
            tile = kernels.shape(rows, 128, out // 2 if gated else out, stored, gated=gated)
            tile = kernels.fp8_shape(rows // 128) if fp8 else tile
            sizes = {"N": out, "K": width, "E": 128, "EXPERTS": 128, "GATHERED": gated, "GATED": gated}
            constants = sizes | stored | tile
            weights = constants["DEPTH"] * tile["COLUMNS"] * (2 if gated else 1)
            yield f"experts {use}, {name}", kernels._product_kernel, types, numbers, constants, weights
        if bits == 8:
            uses = (("linear", 8192, 256), ("narrow linear", 2816, 256), ("head", 262144, 256), ("linear", 2816, 1))
            for use, out, rows in uses:
                tile = kernels.shape(rows, 1, out, stored)
                sizes = {"N": out, "K": 2816, "E": 1, "EXPERTS": 1, "GATHERED": False, "GATED": False}
                case = f"{use}, {name}, {tile['ROWS']} rows"
                yield case, kernels._product_kernel, types, numbers, sizes | stored | tile, 64 * tile["COLUMNS"]


def others(capability: int) -> Iterator[Case]:
    mode, bits, group, *_ = FORMATS["affine 8"]
    stored = {"V": 262144, "D": 2816, "MODE": mode, "BITS": bits, "GROUP": group, "PIECES": 2, "ROWS": 256, "DEPTH": 64}
    types = {"shares": "*bf16", "weight": "*i32", "scales": "*i32", "y": "*fp32"}
    options = {"num_warps": 8, "num_stages": 3}
    yield "mean, affine 8, 256 rows", kernels._mean_kernel, types, ["T", "PART"], stored | options, 64 * 64
    types = {"weight": "*i32", "scales": "*i32", "factors": "*fp32", "y": "*bf16"}
    numbers = ["first", "rows", "weight_stride", "scales_stride"]
    for name in ("affine 4", "nvfp4"):
        mode, bits, group, *_ = FORMATS[name]
        stored = {"MODE": mode, "BITS": bits, "GROUP": group, "PIECES": 4, "FACTORS": mode == 2}
        sizes = {"N": 1408, "K": 2816, "ROWS": 128, "num_warps": 4, "num_stages": 3}
        yield f"unpacking, {name}", kernels._unpack_kernel, types, numbers, stored | sizes, 0
    types = dict.fromkeys(("q", "keys", "values", "canvas_keys", "canvas_values", "out"), "*bf16")
    types |= dict.fromkeys(("slot", "lo", "hi", "canvas"), "*i32") | dict.fromkeys(("top_out", "mass_out"), "*fp32")
    for dim, groups in ((256, 8), (512, 2)):
        for parts in (1, 4):
            sizes = {"G": groups, "R": 16 // groups, "DIM": dim, "CANVAS": True, "PARTS": parts}
            kinds, numbers = {**types, "out": "*bf16" if parts == 1 else "*fp32"}, ["queries", "room", "q_stride"]
            name = f"attention, heads of {dim}, {parts} parts"
            tile = attention_kernels.shape(dim, 10**6 if parts == 1 else 4096, roomy=capability in (90, 100))
            yield name, attention_kernels._attention_kernel, kinds, [*numbers, "new_stride"], sizes | tile, 0
            if parts > 1:
                kinds = {"means": "*fp32", "top": "*fp32", "mass": "*fp32", "out": "*bf16"}
                sizes = {"DIM": dim, "PARTS": parts, "LANES": parts, "num_warps": dim // 256, "num_stages": 3}
                yield f"{parts} parts of {dim}", attention_kernels._combine_kernel, kinds, ["rows"], sizes, 0
    types = {"qkv": "*bf16", "q_weight": "*bf16", "k_weight": "*bf16", "rotation": "*fp32", "out": "*bf16"}
    sizes = {"H": 16, "G": 8, "DIM": 256, "VALUES": True, "num_warps": 1, "num_stages": 3}
    yield "heads", attention_kernels._heads_kernel, {**types, "eps": "fp32"}, ["T"], sizes, 0
    types = {"y": "*bf16", "places": "*i32", "weights": "*fp32", "out": "*bf16"}
    sizes = {"DIM": 2816, "K": 8, "LANES": 8, "COLUMNS": 1024, "num_warps": 4, "num_stages": 3}
    yield "experts' sum", gather_kernel._gather_kernel, types, [], sizes, 0
    types = dict.fromkeys(("logits", "per_expert"), "*bf16") | {"weights": "*fp32", "experts": "*i32", "counts": "*i32"}
    sizes = {"LANES": 128, "K": 8, "ROWS": 8, "num_warps": 4, "num_stages": 3}
    chosen = sizes | {"E": 128, "COLUMNS": 8}
    yield "routing: experts", routing_kernel._choose_kernel, types, ["T", "first", "here"], chosen, 0
    types = dict.fromkeys(("experts", "counts", "tokens", "places", "ends"), "*i32")
    yield "routing: places", routing_kernel._place_kernel, types, ["T", "blocks", "here"], sizes | {"BLOCKS": 32}, 0


def compiled(kernel, types: dict[str, str], numbers: list[str], constants: dict[str, int], capability: int):
    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in constants.items() if name not in options}
    signature = {**types, **dict.fromkeys(numbers, "i32"), **dict.fromkeys(constants, "constexpr")}
    signature = {name: signature[name] for name in kernel.arg_names}
    # As at run time: pointers, and these numbers of a real model, are multiples of 16.
    even = {name for name, kind in types.items() if kind[0] == "*"}
    even |= {name for name in numbers if "stride" in name or name in ("PART", "rows")}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in even}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def inner_loop(cubin: bytes) -> int:
    """Instructions of the longest loop around a matrix product; 0 if there is none. What goes back from behind the
    kernel's end waited out of line."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        text = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True).stdout
    labels, lines, longest = {}, [], 0
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(found[1])
    for place, line in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        body = lines[labels.get(target[1], place) : place + 1] if target else []
        if "EXIT" not in map(str.strip, body) and any("MMA" in instruction for instruction in body):
            longest = max(longest, len(body))
    return longest


def count(capability: int) -> Iterator[dict]:
    for name, kernel, types, numbers, constants, weights in (*products(), *others(capability)):
        made = compiled(kernel, types, numbers, constants, capability)
        found = {"kernel": name, "capability": capability, "shared": made.metadata.shared}
        found["loop"] = inner_loop(made.asm["cubin"])
        if weights and found["loop"]:  # a short one is unrolled
            found["a weight"] = round(found["loop"] * 32 * constants["num_warps"] / weights, 2)
        yield found


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:] or (89, 90, 100, 120)):
        for found in count(capability):
            print(json.dumps(found), flush=True)
