"""Triton's kernels, compiled for GPUs that are not here: at the published shapes they fit a multiprocessor."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
pytest.importorskip("triton", reason="torch has it on Linux with CUDA; elsewhere: pip install triton")

# In another process: here the kernels may be in Triton's interpreter.
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mlx_dgemma.torch_backend import kernels


def shared(kernel, pointers, numbers, constants, *, num_warps, num_stages):
    signature = {**pointers, **dict.fromkeys(numbers, "i32"), **dict.fromkeys(constants, "constexpr")}
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in pointers}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options).metadata.shared


memory = {}
FORMATS = {
    "affine 4": (0, 4, 64, "*u8", "*bf16"), "affine 8": (0, 8, 64, "*u8", "*bf16"), "mxfp4": (1, 4, 32, "*u8", "*u8"),
    "nvfp4": (2, 4, 16, "*u8", "*u8"), "mxfp8": (3, 8, 32, "*u8", "*u8"), "plain": (4, 8, 64, "*bf16", "*bf16"),
    "fp8": (5, 8, 64, "*u8", "*fp32"),
}
for name, (mode, bits, group, weight, scale) in FORMATS.items():
    pointers = {"x": "*bf16", "weight": weight, "scales": scale, "biases": scale, "y": "*bf16", "ends": "*i32"}
    for rows in (16, 64):  # an expert
        constants = {"N": 1408, "K": 2816, "E": 128, "EXPERTS": 128, "MODE": mode, "BITS": bits, "GROUP": group}
        constants |= {"DEPTH": 128, **kernels._shape(rows)}
        options = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
        memory[f"{name}, {rows} rows"] = shared(kernels._product_kernel, pointers, [], constants, **options)
pointers = {"shares": "*bf16", "weight": "*u8", "scales": "*bf16", "biases": "*bf16", "y": "*fp32"}
constants = {"D": 2816, "MODE": 0, "BITS": 8, "GROUP": 64, "ROWS": 64, "COLUMNS": 64, "DEPTH": 64}
memory["mean"] = shared(kernels._mean_kernel, pointers, ["T", "V", "PART"], constants, num_warps=4, num_stages=3)
pointers = dict.fromkeys(("q", "keys", "values", "canvas_keys", "canvas_values", "out"), "*bf16")
pointers |= dict.fromkeys(("slot", "lo", "hi", "canvas"), "*i32") | dict.fromkeys(("top_out", "mass_out"), "*fp32")
for dim, groups, rows, stages in ((256, 8, 32, 2), (256, 8, 64, 2), (512, 2, 32, 1)):
    for parts in (1, 8):
        constants = {"H": 16, "G": groups, "DIM": dim, "CANVAS": True, "PARTS": parts, "ROWS": rows, "KEYS": 32}
        kinds = {**pointers, "out": "*bf16" if parts == 1 else "*fp32"}
        options = {"num_warps": 8, "num_stages": stages}
        name = f"attention, heads of {dim}, {rows} queries, {parts} parts"
        memory[name] = shared(kernels._attention_kernel, kinds, ["queries", "room"], constants, **options)
print(json.dumps(memory))
"""


@pytest.mark.parametrize("capability", [90, 120])
def test_shared_memory(capability):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(capability)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    memory = json.loads(run.stdout)
    assert len(memory) == 21 and max(memory.values()) <= 99 * 1024, memory  # what Ada and small Blackwell have
