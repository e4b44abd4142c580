"""Whose exp, tanh, sine and cosine: MLX's, but NumPy's on MLX's CPU device, whose x86 build takes them one number at a
time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

SUBNORMAL = -87.0  # below that exp is a subnormal number in float32

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
    """Into the namespace. On the CPU this waits for a lazy array; there is no queue of work to stall."""
    if namespace() is np:
        return np.asarray(array)
    return array if isinstance(array, mx.array) else mx.array(array)


def tanh(x: mx.array) -> mx.array:
    if namespace() is mx:
        return mx.tanh(x)
    return mx.array(np.tanh(np.asarray(x.astype(mx.float32)))).astype(x.dtype)


def weight(xp: Any, below: Any) -> Any:
    """exp(below), of a number and a maximum. NumPy's `below` is first raised, in place, to where that is no subnormal
    number: a CPU is ten times as slow with those, and peaked softmaxes are full of them."""
    return xp.exp(below) if xp is mx else np.exp(np.maximum(below, SUBNORMAL, out=below))


def dot(a: Any, b: Any) -> Any:
    """Along the last axis, which stays with length 1."""
    return np.vecdot(a, b)[..., None] if namespace() is np else (a * b).sum(axis=-1, keepdims=True)


def rope(x: mx.array, offset: int, wavelengths: mx.array) -> mx.array:
    """x [1, H, T, D] of positions from `offset` on, pair (i, i + D / 2) turned by position / wavelengths[i]: RoFormer's
    rotary embedding (arXiv 2104.09864), the halves as pairs."""
    if namespace() is mx:
        return mx.fast.rope(x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=offset, freqs=wavelengths)
    positions = np.arange(offset, offset + x.shape[2], dtype=np.float32)
    angles = positions[:, None] / np.asarray(wavelengths)
    cos, sin = mx.array(np.cos(angles)), mx.array(np.sin(angles))
    left, right = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
