"""Chains of small operations: one kernel each on a GPU (torch.compile), as they are on a CPU.

A layer has two dozen of these operations, and between two matrix products they cost more in launches than in work.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import gelu

from . import device, formats
from .formats import Rounded


def fused(function: Callable) -> Callable:
    """Compile `function` where its first argument is on a GPU, for all sizes at once, as they change with the rows of a
    call. The last size of a matrix is the model's: known, it makes loads of many numbers. Where a gradient is wanted
    nothing is compiled: a short run would spend its time in the compiler."""

    @functools.cache
    def compiled() -> Callable:
        torch._dynamo.config.recompile_limit = 64  # of 8 by default: beyond it, functions are run uncompiled
        torch._dynamo.config.specialize_float = True  # or each is an input of float64
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(first: Tensor, *rest):
        tensors = [x for x in (first, *rest) if isinstance(x, Tensor)]
        if not first.is_cuda or any(x.requires_grad for x in tensors):
            return function(first, *rest)
        for tensor in tensors:
            if tensor.ndim > 1:
                torch._dynamo.mark_static(tensor, tensor.ndim - 1)
        return compiled()(first, *rest)

    return call


class _Normed(torch.autograd.Function):
    """x / its root mean square, with half the operations that autograd would make of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        y, scale = ctx.saved_tensors
        return (gradient - y * (gradient * y).mean(dim=-1, keepdim=True)) * scale, None


def _rms(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    if x.is_cuda and not torch.compiler.is_compiling():
        return functional.rms_norm(x, x.shape[-1:], eps=eps)
    if x.requires_grad:
        return _Normed.apply(x, eps)
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


Activation = Tensor | Rounded  # the input of a product: rounded where its weight is E4M3


def _for_product(x: Tensor, fp8: bool) -> Activation:
    return formats.to_fp8(x) if fp8 else x


@fused
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, fp8: bool = False) -> Activation:
    """RMSNorm, computed in float32."""
    normed = _rms(x, eps)
    return _for_product((normed if weight is None else normed * weight.float()).to(x.dtype), fp8)


@fused
def rotated_norm(x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> Tensor:
    """RMSNorm of heads x [T, H, D], then RoPE by `rotation` [2, T, D / 2]: the cosines and the sines."""
    low, high = (_rms(x, eps) * weight.float()).to(x.dtype).float().chunk(2, dim=-1)
    cos, sin = rotation[0, :, None], rotation[1, :, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def _gelu(x: Tensor) -> Tensor:
    if x.is_cuda or x.requires_grad:
        return gelu(x, approximate="tanh")
    # On a CPU torch's takes another tanh for what does not fill its vectors: a row would depend on its company.
    x = x.float()
    return (x * x).mul_(0.044715).add_(1).mul_(x).mul_(math.sqrt(2 / math.pi)).tanh_().add_(1).mul_(x).mul_(0.5)


@fused
def gated(gate_up: Tensor, fp8: bool = False) -> Activation:
    """[..., 2 n], the gate first -> gelu(gate) * up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _for_product(_gelu(gate).to(up.dtype) * up, fp8)


@fused
def after_attention(
    x: Tensor, attended: Tensor, norms: tuple[Tensor, ...], router: Tensor, eps: float, fp8: bool = False
):
    """Add `attended` to the residual -> the residual, and its norms for the dense MLP, the experts and the router."""
    post, dense, sparse = norms
    x = x + (_rms(attended, eps) * post.float()).to(x.dtype)
    normed = _rms(x, eps)
    routed = normed.to(x.dtype) * router * (1 / math.sqrt(x.shape[-1]))
    dense, sparse = ((normed * weight.float()).to(x.dtype) for weight in (dense, sparse))
    return x, _for_product(dense, fp8), _for_product(sparse, fp8), routed


def gather(y: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Sum the experts' outputs of each token, at `places` [T, K] of y, by their weights [T, K]. A weight of 0 hides
    even NaN. On a GPU one kernel does it, but where a gradient is wanted."""
    if device.by_kernel(y) and not weights.requires_grad:
        from .gather_kernel import gather as by_kernel

        return by_kernel(y, places, weights)
    chosen, weights = y.index_select(0, places.flatten()).unflatten(0, places.shape), weights[..., None]
    return torch.where(weights != 0, chosen * weights, 0).sum(dim=1).to(y.dtype)


@fused
def after_experts(x: Tensor, dense: Tensor, sparse: Tensor, norms: tuple[Tensor, ...], scalar: Tensor, eps: float):
    """Add both feed-forward parts to the residual, and scale it by the layer's scalar [T, 1]."""
    first, second, post = norms
    both = (_rms(dense, eps) * first.float()).to(x.dtype) + (_rms(sparse, eps) * second.float()).to(x.dtype)
    return (x + (_rms(both, eps) * post.float()).to(x.dtype)) * scalar


to_fp8 = fused(formats.to_fp8)
