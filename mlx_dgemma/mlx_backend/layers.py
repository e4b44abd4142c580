"""The three places where a weight is used: a product, a product per expert, an embedding; plain or quantized.

A weight is one array, or the arrays that `mx.quantize` makes of it. Quantized layers compute in the activations' dtype.
"""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.config import Quantization
from . import family, parallel

F = TypeVar("F", bound=Callable)
TILE = 8  # rows of one expert that the CPU device multiplies at once
LOG2_E = 1.4426950408889634


def compiled(function: F) -> F:
    """Make one kernel of an elementwise function, for all shapes; on a GPU only: on the CPU device `mx.compile` would
    run a C++ compiler, and gain nothing."""
    fused = mx.compile(function, shapeless=True)

    @wraps(function)
    def call(*arguments):
        return fused(*arguments) if family.current().gpu else function(*arguments)

    return call


def by_power(x: mx.array) -> bool:
    """Whether e ** x is faster by the C library's power: of float32 on the CPU device it takes 6 ns a number, MLX's
    own function 19."""
    return x.dtype == mx.float32 and not family.current().gpu


def exp(x: mx.array) -> mx.array:
    """e ** x."""
    return mx.power(2.0, x * LOG2_E) if by_power(x) else mx.exp(x)


def tanh(x: mx.array) -> mx.array:
    return 1 - 2 / (1 + exp(2 * x)) if by_power(x) else mx.tanh(x)


class Linear(nn.Module):
    """x @ weight.T without a bias. `weight` is [..., out, in], packed in groups along `in` after `quantize`."""

    def __init__(self, *shape: int):
        super().__init__()
        self.width = shape[-1]  # `in`, whether the weight is packed or not
        self.weight = mx.zeros(shape)
        self.quantization: Quantization | None = None

    def quantize(self, quantization: Quantization) -> None:
        """Expect the arrays of `mx.quantize`. ValueError if the groups do not divide the rows."""
        quantization.check(self.width)
        self.quantization, affine, outer = quantization, quantization.mode == "affine", self.weight.shape[:-1]
        groups, words = self.width // quantization.group_size, self.width * quantization.bits // 32
        self.weight = mx.zeros((*outer, words), dtype=mx.uint32)
        self.scales = mx.zeros((*outer, groups), dtype=mx.float32 if affine else mx.uint8)
        if affine:
            self.biases = mx.zeros(self.scales.shape)

    def lay_by_input(self) -> None:
        """Lay a plain weight out as [..., in, out]; its shape stays. The BLAS of MLX's wheels for Linux multiplies by
        that faster, to the same bits."""
        if self.quantization is None:
            self.weight = mx.contiguous(self.weight.swapaxes(-1, -2)).swapaxes(-1, -2)
            mx.eval(self.weight)  # so that the next one takes the memory that is left

    @property
    def _packed(self) -> tuple[mx.array, mx.array, mx.array | None]:
        return self.weight, self.scales, self.get("biases")

    @property
    def is_packed(self) -> bool:
        """True where products take the packed weight. On the CPU device MLX would unpack it for each row of x, and sum
        up in 16 bits: there it is dequantized first."""
        return self.quantization is not None and family.current().gpu

    def rows(self, index: mx.array | slice, dtype: mx.Dtype) -> mx.array:
        """`weight[index]`, dequantized."""
        if self.quantization is None:
            return self.weight[index]
        weight, scales, biases = (None if array is None else array[index] for array in self._packed)
        # The fp modes dequantize to bfloat16 whatever their dtype argument says.
        return mx.dequantize(weight, scales, biases, **vars(self.quantization)).astype(dtype)

    def product(self, x: mx.array, *, transpose: bool = True) -> mx.array:
        """x @ weight.T, or x @ weight."""
        if self.is_packed:
            return mx.quantized_matmul(x, *self._packed, transpose=transpose, **vars(self.quantization))
        weight = self.rows(slice(None), x.dtype)
        return x @ (weight.T if transpose else weight)

    def __call__(self, x: mx.array) -> mx.array:
        return self.product(x)


class ExpertLinear(Linear):
    """One product per expert. `weight` is [E, out, in]."""

    @property
    def count(self) -> int:
        """How many experts this rank has."""
        return len(self.weight)

    def scale_globally(self, *, per_row: bool) -> None:
        """Expect `weight_scale_2`, too: float32 factors [E, out] or [E], as NVIDIA's NVFP4 has them."""
        self.weight_scale_2 = mx.ones(self.weight.shape[:2] if per_row else self.weight.shape[:1])

    def __call__(self, x: mx.array, experts: mx.array, *, ascending: bool = False) -> mx.array:
        """x [..., in] and experts [...] broadcast -> [..., out]; where these are [..., 1], the rows of x share one, and
        are multiplied together. `ascending`: the experts are sorted, so that the weights of each are read once."""
        if "weight_scale_2" not in self:
            return self._gathered(x, experts, ascending)
        # Without the factor a weight is up to 2688, and sums of them leave float16's range.
        y = self._gathered(x.astype(mx.float32) if x.dtype == mx.float16 else x, experts, ascending)
        factors = self.weight_scale_2[experts]
        return (y * (factors if factors.ndim == y.ndim else factors[..., None])).astype(x.dtype)

    def _gathered(self, x: mx.array, experts: mx.array, ascending: bool) -> mx.array:
        if self.is_packed:
            indices = {"rhs_indices": experts, "sorted_indices": ascending}
            y = mx.gather_qmm(x[..., None, :], *self._packed, transpose=True, **indices, **vars(self.quantization))
            return y.squeeze(-2)
        dtype = x.dtype if family.current().gpu else mx.float32  # the CPU's gather_mm knows nothing else
        weight = self.rows(slice(None), dtype).astype(dtype).swapaxes(-1, -2)
        return expert_product(x.astype(dtype), weight, experts, ascending).astype(x.dtype)


def expert_product(x: mx.array, weight: mx.array, experts: mx.array, ascending: bool) -> mx.array:
    """x [..., in], weight [E, in, out] -> [..., out], with `experts` as `ExpertLinear` has them."""
    if experts.ndim > 1 and experts.shape[-1] == 1:
        return mx.gather_mm(x, weight, rhs_indices=experts.squeeze(-1))
    return mx.gather_mm(x[..., None, :], weight, rhs_indices=experts, sorted_indices=ascending).squeeze(-2)


def tiles_of(experts: mx.array, count: int) -> tuple[mx.array, mx.array, mx.array]:
    """Lay ascending `experts` [n], of `count`, in tiles of TILE places that one has to itself -> the expert of each
    tile [tiles, 1]; which of the n stands at each place [tiles, TILE], where none does the first; the places [n].

    On the CPU device `gather_mm` calls the BLAS for each matrix of its left side: a tile is one, and not a row."""
    n = len(experts)
    sizes = mx.zeros(count, mx.int32).at[experts].add(1)
    places = mx.arange(n) + mx.cumsum(-sizes % TILE, inclusive=False)[experts]
    tiles = min(n, n // TILE + count)  # at most
    owners = mx.zeros(tiles, mx.uint32).at[places // TILE].maximum(experts)
    index = mx.zeros(tiles * TILE, mx.int32).at[places].add(mx.arange(n))
    return owners[:, None], index.reshape(tiles, TILE), places


class Embedding(Linear):
    """`weight` [V, D], tied: the table that is looked up is also the head. Activations take `dtype` from here on."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__(vocab_size, hidden_size)
        self.dtype, self.vocab_size = mx.float32, vocab_size
        self.here = parallel.mine.part(vocab_size, "the vocabulary")  # the rows of this rank

    def __call__(self, ids: mx.array) -> mx.array:
        """ids [N] -> [N, D], scaled by sqrt(D) as Gemma's are."""
        return parallel.sum_up(self.share(ids))

    def share(self, ids: mx.array) -> mx.array:
        """This rank's summand of `__call__`: zeros for ids of other ranks."""
        rows, here = self.rows_here(ids, self.dtype)
        rows = rows * self.width**0.5
        return rows if parallel.mine.ranks == 1 else mx.where(here[:, None], rows, 0)

    def rows_here(self, ids: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """The rows of `ids` [N], and [N] bool: which of them this rank has. Others are of any numbers."""
        if parallel.mine.ranks == 1:
            return self.rows(ids, dtype), mx.array(True)
        first, last = self.here.start, self.here.stop
        return self.rows(mx.clip(ids, first, last - 1) - first, dtype), (ids >= first) & (ids < last)

    def part(self, first: int, last: int) -> Linear:
        """A view of rows [first, last)."""
        return self._view(Linear(0, self.width), lambda array: array[first:last])

    def as_experts(self, count: int) -> ExpertLinear:
        """A view of the table as `count` experts of equal size."""
        return self._view(ExpertLinear(0, 0, self.width), lambda array: array.reshape(count, -1, array.shape[-1]))

    def _view(self, layer: Linear, view: Callable[[mx.array], mx.array]) -> Linear:
        layer.quantization = self.quantization
        for name, array in self.parameters().items():
            layer[name] = view(array)
        return layer
