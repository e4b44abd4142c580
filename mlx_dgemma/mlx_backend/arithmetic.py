"""Whose products, exp, tanh, sine and cosine: MLX's, but NumPy's on MLX's CPU device. Of that, the x86 wheel has the
reference BLAS, fifty times as slow as the OpenBLAS that NumPy brings, and takes exp and tanh one number at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

SUBNORMAL = -87.0  # below that exp is a subnormal number in float32
HALVES = {mx.bfloat16, mx.float16}
SMALL = 1_000_000  # multiplications: up to so many, OpenBLAS takes kernels that sum in another order

_few = False


@contextmanager
def few() -> Iterator[None]:
    """Inside, a pass over one token a row is built: MLX's own everywhere, so that nothing waits while it is built."""
    global _few
    _few, before = True, _few
    try:
        yield
    finally:
        _few = before


def is_few() -> bool:
    return _few


def namespace() -> Any:
    return np if mx.default_device() == mx.cpu and not _few else mx


def compiled() -> bool:
    """On the CPU device a compiled function would be built by the system's compiler, if there is one."""
    return namespace() is mx and not (_few and mx.default_device() == mx.cpu)


def bring(array: mx.array | np.ndarray) -> Any:
    """Into the namespace. On the CPU this waits for a lazy array; there is no queue of work to stall. NumPy gets a
    view, or a copy in float32 of what has 16 bits."""
    if namespace() is mx:
        return array if isinstance(array, mx.array) else mx.array(array)
    if isinstance(array, mx.array) and array.dtype in HALVES:
        array = array.astype(mx.float32)
    return np.asarray(array)


def single(array: Any) -> Any:
    """Into the namespace, in float32."""
    return bring(array) if namespace() is np else array.astype(mx.float32)


def to_mlx(array: mx.array | np.ndarray, dtype: mx.Dtype) -> mx.array:
    """Out of the namespace again."""
    return (array if isinstance(array, mx.array) else mx.array(array)).astype(dtype)


def matmul(a: Any, b: Any) -> Any:
    """a [..., T, K] @ b [..., K, N], both of the namespace, in float32; the bits of a row may depend on T."""
    return a @ b if namespace() is np else single(a.astype(b.dtype) @ b)


def product(x: Any, weight: Any) -> Any:
    """x [T, K] @ weight [K, N], both of the namespace; in NumPy's a row has the same bits whatever T is."""
    if namespace() is mx:
        return x @ weight
    return _padded(x, weight) if steady() else np.asarray(mx.array(x) @ mx.array(weight))


def _padded(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight, with rows of zeros behind x where it alone would be a small product."""
    count, rows = len(x), max(2, SMALL // weight.size + 1)  # one row is a small product however wide it is
    if count < rows:
        x = np.concatenate([x, np.zeros((rows - count, x.shape[1]), np.float32)])
    # An expert's few rows take a fifth less time as columns.
    return ((weight.T @ x.T).T if 8 * len(x) < weight.shape[1] else x @ weight)[:count]


@cache
def steady() -> bool:
    """Whether a row of `_padded` has the same bits whatever T is, with the BLAS of this NumPy. With OpenBLAS's kernels
    for AVX-512 it has; with those for AVX2 they depend on its place, and MLX's own product is taken."""
    rng = np.random.default_rng(0)
    for inner, width in ((64, 48), (100, 33), (704, 352)):
        x, weight = (rng.standard_normal(shape, np.float32) for shape in ((1501, inner), (inner, width)))
        whole = _padded(x, weight)
        parts = [slice(first, first + count) for first, count in ((0, 1), (11, 2), (37, 30), (1, 255), (0, 1500))]
        if not all(np.array_equal(_padded(x[part], weight), whole[part]) for part in parts):
            return False
    return True


def weight(xp: Any, below: Any, *, spent: bool = False) -> Any:
    """exp(below), of a number and a maximum; `spent`: its place may be taken. NumPy's `below` is first raised, in
    place, to where that is no subnormal number: a CPU is ten times as slow with those, and peaked softmaxes are full of
    them."""
    if xp is mx:
        return mx.exp(below)
    return np.exp(np.maximum(below, SUBNORMAL, out=below), out=below if spent else None)


def dot(a: Any, b: Any) -> Any:
    """Along the last axis, which stays with length 1."""
    return np.vecdot(a, b)[..., None] if namespace() is np else (a * b).sum(axis=-1, keepdims=True)


def rms_norm(x: Any, weight: mx.array | None, eps: float) -> Any:
    """x / sqrt(mean(x²) + eps) * weight along the last axis (arXiv 1910.07467), in float32 inside."""
    if namespace() is mx:
        return mx.fast.rms_norm(x, weight, eps)
    normed = x / np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + eps)
    if weight is not None:
        normed *= bring(weight)
    return normed


def softmax(x: Any) -> Any:
    """Along the last axis."""
    if namespace() is mx:
        return mx.softmax(x, axis=-1)
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rope(x: Any, offset: int, wavelengths: mx.array) -> Any:
    """x [1, H, T, D] of positions from `offset` on, pair (i, i + D / 2) turned by position / wavelengths[i]: RoFormer's
    rotary embedding (arXiv 2104.09864), the halves as pairs."""
    if namespace() is mx:
        return mx.fast.rope(x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=offset, freqs=wavelengths)
    positions = np.arange(offset, offset + x.shape[2], dtype=np.float32)
    angles = positions[:, None] / bring(wavelengths)
    cos, sin = np.cos(angles), np.sin(angles)
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
