"""Our Metal kernels on the CPU: their bodies compiled as C++ behind metal_shim.h, and run thread by thread."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.mlx_backend import kernels, metal

HERE = Path(__file__).parent
C = {
    mx.float32: "float", mx.bfloat16: "bfloat16_t", mx.int32: "int", mx.uint32: "uint", mx.uint8: "uint8_t",
}  # fmt: skip
COMPILER = ("g++", "-std=c++17", "-O1", "-w", "-fPIC", "-U_FORTIFY_SOURCE")  # which forbids long jumps between stacks
FOLDER = tempfile.TemporaryDirectory(prefix="metal_shim")

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ compiles the kernels' bodies")


def _constant(name: str, value: mx.Dtype | bool | int) -> str:
    if isinstance(value, mx.Dtype):
        return f"using {name} = {C[value]};"
    return f"constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {str(value).lower()};"


@cache
def _header() -> str:
    """The folder of the shim, in which g++ has read it already: that takes most of a kernel's time."""
    header = shutil.copy(HERE / "metal_shim.h", FOLDER.name)
    subprocess.run([*COMPILER, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)
    return FOLDER.name


@cache
def _compiled(source: str) -> ctypes.CDLL:
    name = Path(FOLDER.name) / hashlib.sha256(source.encode()).hexdigest()[:16]
    name.with_suffix(".cc").write_text(source)
    built = [*COMPILER, "-shared", f"-I{_header()}", "-o", str(name.with_suffix(".so"))]
    subprocess.run([*built, str(name.with_suffix(".cc"))], check=True)
    return ctypes.CDLL(str(name.with_suffix(".so")))


def launch(kernel, inputs, template, grid, threadgroup, outputs):
    """Stands for `kernels.launch`."""
    mx.eval(inputs)
    lines = ['#include "metal_shim.h"', kernel.header.replace(metal.SHARED, "")]
    lines += [_constant(name, value) for name, value in template.items()]
    lines += ['extern "C" void run(void** arrays, const uint* g) {']
    pointers = [(name, C[a.dtype], "const ") for name, a in zip(kernel.inputs, inputs, strict=True)]
    pointers += [(name, C[dtype], "") for name, (_, dtype) in zip(kernel.outputs, outputs, strict=True)]
    lines += [f"{const}{kind}* {name} = ({const}{kind}*)arrays[{i}];" for i, (name, kind, const) in enumerate(pointers)]
    lines += ["shim::run({g[0], g[1], g[2]}, {g[3], g[4], g[5]}, [&]() {", kernel.body, "});", "}"]
    given = [np.ascontiguousarray(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a) for a in inputs]
    raw = {mx.bfloat16: np.uint16, mx.float32: np.float32, mx.int32: np.int32}
    made = [np.full(shape, 77, raw[dtype]) for shape, dtype in outputs]  # what a kernel leaves is anything
    arrays = (ctypes.c_void_p * len(pointers))(*(a.ctypes.data for a in (*given, *made)))
    _compiled("\n".join(lines)).run(arrays, (ctypes.c_uint * 6)(*grid, *threadgroup))
    back = [mx.array(a) for a in made]
    return [a.view(mx.bfloat16) if dtype == mx.bfloat16 else a for a, (_, dtype) in zip(back, outputs, strict=True)]


def install(patch: pytest.MonkeyPatch) -> None:
    """All kernels are right and fast, and run here."""
    patch.setattr(kernels, "launch", launch)
    patch.setattr(kernels, "used", lambda name, dtype: True)
    few_threads(patch)


def few_threads(patch: pytest.MonkeyPatch) -> None:
    """Of a row, and of those that choose experts: a thread here is dear."""
    patch.setattr(kernels, "THREADS", 64)
    patch.setattr(kernels, "ROUTING", 96)
