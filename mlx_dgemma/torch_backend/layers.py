"""The three uses of a weight: a product, a product per expert, an embedding; plain, quantized or FP8.

Quantized weights stay packed: on a GPU the kernels unpack them in registers, on a CPU each use unpacks them.
"""

import functools
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..checkpoint.config import Quantization
from . import device, formats, parallel
from .formats import Packed, Rounded
from .fused import Activation, gated, rms_norm, to_fp8

MIN_ROWS = 16  # rows of a product; BLAS sums fewer of them in another order
FEW_ROWS = 32  # of an expert: by measure on an H100, our product is faster with as many, and with a gate always
FEW = 16  # experts whose products a GPU makes all at once for every row, rather than wait for what each has to do


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [T, n] @ matrix [n, m]. On a CPU with rows of zeros where T is small: a row's numbers must not depend on its
    company."""
    if x.is_cuda or len(x) >= MIN_ROWS:
        return x @ matrix
    return (pad(x, (0, 0, 0, MIN_ROWS - len(x))) @ matrix)[: len(x)]


@functools.cache
def _has_grouped_mm() -> bool:
    """Return whether torch has kernels for this GPU: on Hopper and Blackwell servers. Elsewhere it reads the sizes of
    all groups from the device."""
    return torch.cuda.get_device_capability()[0] in (9, 10)


@functools.cache
def sums_alike(dtype: torch.dtype, width: int) -> bool:
    """Return whether a row of a product [T, width] is the same on this CPU whatever rows are beside it."""
    numbers = torch.Generator().manual_seed(0)
    x, matrix = (torch.randn(shape, generator=numbers).to(dtype) for shape in ((300, width), (width, 200)))
    whole, parts = product(x, matrix), (slice(0, 1), slice(7, 40), slice(44, 108), slice(108, 300))
    return all(torch.equal(product(x[part], matrix), whole[part]) for part in parts)


class FrozenProduct(torch.autograd.Function):
    """[T, in] -> [T, out] by the kernels, with `ends` expert by expert. x has a gradient, the weights have none. For it
    they are unpacked anew: neither they nor x are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Packed, ends: Tensor | None, factors: Tensor | None) -> Tensor:
        from .kernels import grouped_product, quantized_product

        ctx.packed = packed
        ctx.save_for_backward(ends, factors)
        return quantized_product(x, packed) if ends is None else grouped_product(x, packed, ends, factors=factors)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        from .kernels import grouped_product, unpacked

        ends, factors = ctx.saved_tensors
        weight, gradient = unpacked(ctx.packed, gradient.dtype, factors=factors), gradient.contiguous()
        if ends is None:
            return gradient @ weight, None, None, None
        if gradient.dtype == torch.bfloat16 and _has_grouped_mm():
            to_x = torch._grouped_mm(gradient, weight, offs=ends)
        else:
            to_x = grouped_product(gradient, Packed(weight.transpose(-2, -1)), ends)
        real = torch.arange(len(to_x), device=to_x.device) < ends[-1]
        return torch.where(real[:, None], to_x, 0), None, None, None


class Linear(nn.Module):
    """`weight` [..., out, in]; in groups along `in` once `quantize` was called, in E4M3 once `to_fp8` was. No bias."""

    def __init__(self, *shape: int):
        super().__init__()
        self.declare(Packed(torch.empty(shape)))

    def declare(self, packed: Packed) -> None:
        self.quantization, self.width = packed.quantization, packed.width
        for name in ("weight", "scales", "biases"):
            self.register_buffer(name, vars(packed)[name])

    @property
    def packed(self) -> Packed:
        return Packed(self.weight, self.scales, self.biases, self.quantization, self.width)

    @property
    def is_fp8(self) -> bool:
        return self.weight.dtype == formats.E4M3

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., out, in], however it is stored."""
        return self.packed.shape

    def quantize(self, quantization: Quantization) -> None:
        """Expect the arrays of `mx.quantize`. ValueError if the groups do not divide the rows."""
        *outer, width = self.weight.shape
        quantization.check(width)
        affine, groups = quantization.mode == "affine", width // quantization.group_size
        weight = torch.empty((*outer, width * quantization.bits // 32), dtype=torch.int32)
        scales = torch.empty((*outer, groups), dtype=torch.float32 if affine else torch.uint8)
        self.declare(Packed(weight, scales, torch.empty_like(scales) if affine else None, quantization))

    def to_fp8(self) -> None:
        """Convert floats to E4M3 in place. One expert at a time: on the way it takes four times the memory."""
        weight = torch.empty_like(self.weight, dtype=formats.E4M3)
        scales = torch.empty((*weight.shape[:-1], 1), device=weight.device)
        for place in range(len(weight)) if weight.ndim == 3 else [...]:
            weight[place], scales[place] = formats.to_fp8(self.weight[place])
        self.declare(Packed(weight, scales))

    def tile(self) -> None:
        """Lay quantized weights out for the kernels, once. The numbers stay the same."""
        if self.quantization is not None and self.width is None:
            self.declare(formats.tiled(self.packed))

    def rows(self, index: Tensor | slice | int, dtype: torch.dtype) -> Tensor:
        """`weight[index]` as floats."""
        if isinstance(index, slice) and self.width is not None and device.by_kernel(self.weight):
            from .kernels import unpacked

            return unpacked(self.packed, dtype, rows=index)
        return self.packed.rows(index, dtype)

    def forward(self, x: Activation) -> Tensor:
        """[T, in] -> [T, out]."""
        if self.is_fp8:
            numbers, scale = rounded = x if isinstance(x, Rounded) else to_fp8(x)
            if device.by_kernel(numbers):
                return torch._scaled_mm(
                    numbers, self.weight.T, scale, self.scales.T, out_dtype=torch.bfloat16, use_fast_accum=True
                )
            return product(rounded.exact(), self.rows(slice(None), torch.float32).T).to(torch.bfloat16)
        if self.quantization is not None and device.by_kernel(self.weight):
            return FrozenProduct.apply(x, self.packed, None, None)
        return product(x, self.rows(slice(None), x.dtype).T)


class SideBySide(nn.Module):
    """Linears over the same input; one product where they are stored alike."""

    def __init__(self, *linears: Linear):
        super().__init__()
        self.sizes = [linear.weight.shape[-2] for linear in linears]
        first, arrays = linears[0], [dict(linear.named_buffers()) for linear in linears]
        alike = len({(linear.quantization, linear.weight.dtype) for linear in linears}) == 1
        if alike:
            for name in arrays[0]:
                setattr(first, name, torch.cat([named[name] for named in arrays], dim=-2))
        self.linears = nn.ModuleList([first] if alike else linears)
        self.is_fp8 = all(linear.is_fp8 for linear in self.linears)

    def forward(self, x: Activation) -> Tensor:
        """[T, in] -> [T, the sum of their outs]."""
        outputs = [linear(x) for linear in self.linears]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class ExpertLinear(Linear):
    """`weight` [E, out, in]."""

    def scale_globally(self, *, per_row: bool) -> None:
        """Expect `weight_scale_2`, too: float32 factors [E, out] or [E], as NVIDIA's NVFP4 has them."""
        self.register_buffer("weight_scale_2", torch.empty(self.weight.shape[: 2 if per_row else 1]))

    @property
    def factors(self) -> Tensor | None:
        """[E, out] float32, of a weight's rows. Before them a weight is up to 2688: sums leave float16's range."""
        if not hasattr(self, "weight_scale_2"):
            return None
        factors = self.weight_scale_2
        return factors if factors.ndim == 2 else factors[:, None].expand(-1, self.packed.out)

    def forward(self, x: Activation, ends: Tensor, tokens: Tensor | None = None, *, gate: bool = False) -> Tensor:
        """Multiply expert by expert.

        Args:
            x: [N, in], sorted by expert, or with `tokens` [N] those that row by row are to be taken.
            ends: [E] int32, where each expert's rows end.
            gate: return gelu(the first half of out) * the second.

        Returns:
            [N, out or out / 2]. Rows behind the last end are undefined.
        """
        first = x.numbers if isinstance(x, Rounded) else x
        by_kernel, plain = device.by_kernel(first), self.quantization is None and not self.is_fp8
        count = len(first if tokens is None else tokens)
        ours = by_kernel and (not plain or gate or count <= FEW_ROWS * len(ends))
        if first.is_cuda and not ours and plain and first.dtype == torch.bfloat16 and _has_grouped_mm():
            y = self._grouped(x, ends, tokens)
        elif by_kernel:
            from .kernels import grouped_product

            x = to_fp8(x) if self.is_fp8 and first is x else x
            y = grouped_product(x, self.packed, ends, tokens=tokens, gated=gate, factors=self.factors)
            return to_fp8(y) if self.is_fp8 and gate else y
        elif first.is_cuda and plain and len(self.weight) <= FEW:
            y = self._all_at_once(x, ends, tokens)
        elif device.by_kernel(self.weight) and not self.is_fp8:
            y = FrozenProduct.apply(x if tokens is None else x.index_select(0, tokens), self.packed, ends, self.factors)
        else:
            y = self._expert_by_expert(x, ends, tokens)
        return gated(y, self.is_fp8) if gate else y

    def _grouped(self, x: Tensor, ends: Tensor, tokens: Tensor | None) -> Tensor:
        """By torch's kernel."""
        return torch._grouped_mm(x if tokens is None else x[tokens], self.weight.transpose(-2, -1), offs=ends)

    def _all_at_once(self, x: Tensor, ends: Tensor, tokens: Tensor | None) -> Tensor:
        """By one product with all experts, of which each row keeps its own: nothing is read from the device."""
        products = x @ self.weight.flatten(0, 1).T
        rows = torch.arange(len(x), device=x.device) if tokens is None else tokens
        experts = torch.searchsorted(ends, torch.arange(len(rows), device=x.device), right=True)
        chosen = rows * len(ends) + experts.clamp(max=len(ends) - 1)
        return products.unflatten(-1, (len(ends), -1)).flatten(0, 1).index_select(0, chosen)

    def _expert_by_expert(self, x: Activation, ends: Tensor, tokens: Tensor | None) -> Tensor:
        if self.is_fp8:
            x = (x if isinstance(x, Rounded) else to_fp8(x)).exact().to(torch.bfloat16)
        x, factors, parts = x if tokens is None else x.index_select(0, tokens), self.factors, []
        dtype = torch.float32 if factors is not None and x.dtype == torch.float16 else x.dtype
        sizes = [end - start for start, end in pairwise([0, *ends.tolist(), len(x)])]  # the last: of no expert here
        for expert, rows in enumerate(x.to(dtype).split(sizes)[:-1]):
            if len(rows):
                y = product(rows, self.rows(expert, dtype).T)
                parts.append(y if factors is None else y * factors[expert])
        # Together at once: where a gradient is wanted, each write into a part would copy the whole.
        return torch.cat([*parts, x.new_zeros((sizes[-1], self.packed.out))]).to(x.dtype)


class Embedding(Linear):
    """`weight` [V, D], tied: the table that is looked up is also the head."""

    SLICE = 16_384  # rows unpacked at a time on a CPU

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__(vocab_size, hidden_size)
        self.here = parallel.mine.part(vocab_size, "the vocabulary")  # the rows of this rank
        self.vocab_size, self.hidden_size = self.here.stop - self.here.start, hidden_size

    def rows_here(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The rows of `ids` [T], and [T] bool: which of them this rank has. Others are of any numbers."""
        here = (ids >= self.here.start) & (ids < self.here.stop)
        return self.rows((ids - self.here.start).clamp(0, self.vocab_size - 1), dtype), here

    def lookup(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[T] -> [T, D], scaled as Gemma's are."""
        return self.scaled(parallel.placed(*self.rows_here(ids, dtype)))

    def scaled(self, rows: Tensor) -> Tensor:
        """Scale by sqrt(D), which the reference rounds to the activations' dtype first."""
        return rows * torch.full((), self.hidden_size**0.5, dtype=rows.dtype, device=rows.device)

    def mean(self, shares: Tensor) -> Tensor:
        """shares [T, V] -> [T, D]: the sum of the rows by their shares."""
        if self.quantization is None:
            return product(shares, self.weight)
        if device.by_kernel(shares):
            from .kernels import mean

            return mean(shares, self.packed)
        total = torch.zeros((len(shares), self.hidden_size), dtype=torch.float32, device=shares.device)
        for first in range(0, self.vocab_size, self.SLICE):
            part = slice(first, first + self.SLICE)
            total += product(shares[:, part], self.rows(part, shares.dtype))
        return total.to(shares.dtype)


class Norm(nn.Module):
    """RMSNorm; without `scaled` it has no weight."""

    def __init__(self, size: int, eps: float, *, scaled: bool = True):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(size) if scaled else None)

    def forward(self, x: Tensor, *, fp8: bool = False) -> Activation:
        return rms_norm(x, self.weight, self.eps, fp8)
