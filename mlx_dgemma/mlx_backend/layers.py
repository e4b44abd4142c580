"""The three places where a weight is used: a product, a product per expert, an embedding; plain or quantized.

A weight is one array, or the triple that `mx.quantize` makes of it. Quantized layers compute in the activations' dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.config import Quantization
from . import arithmetic
from .arithmetic import bring, product, rms_norm


class Linear(nn.Module):
    """`weight` [..., out, in]; in groups along `in` once `quantize` was called. No bias, as nothing here has one."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = mx.zeros(shape)
        self.quantization: Quantization | None = None

    def quantize(self, quantization: Quantization) -> None:
        """Expect the arrays of `mx.quantize`. ValueError if the groups do not divide the rows."""
        *outer, width = self.weight.shape
        bits, group = quantization.bits, quantization.group_size
        if width % group or width * bits % 32:
            raise ValueError(f"groups of {group} with {bits} bits do not divide rows of {width}")
        self.quantization = quantization
        self.weight = mx.zeros((*outer, width * bits // 32), dtype=mx.uint32)
        affine = quantization.mode == "affine"
        self.scales = mx.zeros((*outer, width // group), dtype=mx.float32 if affine else mx.uint8)
        if affine:
            self.biases = mx.zeros(self.scales.shape)

    @property
    def _groups(self) -> dict:
        quantization = self.quantization
        return {"group_size": quantization.group_size, "bits": quantization.bits, "mode": quantization.mode}

    def rows(self, index, dtype: mx.Dtype) -> mx.array:
        """`weight[index]`, dequantized."""
        if self.quantization is None:
            return self.weight[index]
        biases = self.biases[index] if "biases" in self else None
        # The fp modes dequantize to bfloat16 whatever was asked of them.
        return mx.dequantize(self.weight[index], self.scales[index], biases, **self._groups).astype(dtype)

    def product(self, x: Any, *, transpose: bool = True) -> Any:
        """x @ weight.T, or x @ weight, in the namespace."""
        if arithmetic.namespace() is mx and self.quantization is not None:
            arrays = (self.weight, self.scales, self.get("biases"))
            return mx.quantized_matmul(x, *arrays, transpose=transpose, **self._groups)
        # MLX's CPU quantized_matmul unpacks a weight anew for every row.
        weight = bring(self.weight if self.quantization is None else self.rows(slice(None), mx.float32))
        return product(bring(x), weight.T if transpose else weight)

    def __call__(self, x: Any) -> Any:
        return self.product(x)


class ExpertLinear(Linear):
    """`weight` [E, out, in]. Rows of x come sorted by expert."""

    def scale_globally(self, *, per_row: bool) -> None:
        """Expect `weight_scale_2`, too: float32 factors [E, out] or [E], as NVIDIA's NVFP4 has them."""
        self.weight_scale_2 = mx.ones(self.weight.shape[:2] if per_row else self.weight.shape[:1])

    def __call__(self, x: Any, experts: Any) -> Any:
        """x [N, in], experts [N] ascending -> [N, out], all of the namespace."""
        by_expert = self._expert_by_expert if arithmetic.namespace() is np else self._gathered
        return self._scaled(by_expert, x, experts)

    def unsorted(self, x: Any, experts: Any) -> Any:
        """Few of them: x [..., in], experts [...], which broadcast -> [..., out]; in NumPy's namespace [N, in], [N]."""
        by_row = self._row_by_row if arithmetic.namespace() is np else partial(self._gathered, ascending=False)
        return self._scaled(by_row, x, experts)

    def _scaled(self, product: Callable[..., Any], x: Any, experts: Any) -> Any:
        if "weight_scale_2" not in self:
            return product(x, experts)
        # Before the factor a weight is up to 2688, and sums of them leave float16's range.
        y = product(x.astype(mx.float32) if x.dtype == mx.float16 else x, experts)
        factors = (self.weight_scale_2 if isinstance(y, mx.array) else bring(self.weight_scale_2))[experts]
        return (y * (factors if factors.ndim == y.ndim else factors[..., None])).astype(x.dtype)

    def _gathered(self, x: mx.array, experts: mx.array, ascending: bool = True) -> mx.array:
        x, indices = x[..., None, :], {"rhs_indices": experts, "sorted_indices": ascending}
        if self.quantization is not None:
            arrays = (self.weight, self.scales, self.get("biases"))
            y = mx.gather_qmm(x, *arrays, transpose=True, **indices, **self._groups)
        elif x.dtype == mx.float32 or mx.default_device() != mx.cpu:
            y = mx.gather_mm(x, self.weight.swapaxes(-1, -2), **indices)
        else:  # the CPU's gather_mm knows nothing else
            y = x @ self.weight[experts].swapaxes(-1, -2)
        return y.squeeze(-2)

    # On the CPU device MLX's gather_mm knows float32 only, and is slow; its gather_qmm unpacks a weight once a row.

    def _expert_by_expert(self, x: np.ndarray, experts: np.ndarray) -> np.ndarray:
        ends = np.searchsorted(experts, np.arange(self.weight.shape[0]), side="right")
        parts, start, weight = [], 0, self._weights()
        for expert, end in enumerate(ends.tolist()):
            if end > start:
                parts.append(product(x[start:end], weight(expert).T))
            start = end
        return np.concatenate(parts)

    def _row_by_row(self, x: np.ndarray, experts: np.ndarray) -> np.ndarray:
        weight = self._weights()
        return np.stack([weight(expert) @ row for expert, row in zip(experts.tolist(), x, strict=True)])

    def _weights(self) -> Callable[[int], np.ndarray]:
        """expert -> [out, in] float32: a view, or unpacked, or made of 16 bits, one at a time."""
        if self.weight.dtype == mx.float32:
            return bring(self.weight).__getitem__
        return lambda expert: bring(self.rows(expert, mx.float32))


class Embedding(Linear):
    """`weight` [V, D], tied: the table that is looked up is also the head. Activations take `dtype` from here on."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__(vocab_size, hidden_size)
        self.hidden_size = hidden_size
        self.dtype = mx.float32

    def __call__(self, ids: mx.array) -> mx.array:
        """ids [N] -> [N, D], scaled by sqrt(D) as Gemma's are."""
        return self.rows(ids, self.dtype) * self.hidden_size**0.5

    def part(self, first: int, last: int) -> Linear:
        """Rows [first, last): a view."""
        return self._view(Linear(0, self.hidden_size), lambda array: array[first:last])

    def as_experts(self, count: int) -> ExpertLinear:
        """The table as `count` experts of equal size: a view."""
        return self._view(ExpertLinear(0, 0, self.hidden_size), lambda array: array.reshape(count, -1, array.shape[-1]))

    def _view(self, layer: Linear, look: Callable[[mx.array], mx.array]) -> Linear:
        layer.quantization = self.quantization
        for name, array in self.parameters().items():
            layer[name] = look(array)
        return layer


class Norm(nn.Module):
    """RMSNorm, in float32 inside; without `scaled` it has no weight."""

    def __init__(self, size: int, eps: float, *, scaled: bool = True):
        super().__init__()
        self.eps = eps
        if scaled:
            self.weight = mx.ones((size,))

    def __call__(self, x: Any) -> Any:
        return rms_norm(x, self.get("weight"), self.eps)
