"""Chains of small operations: one kernel each on a GPU (torch.compile), as they are on a CPU.

A layer has two dozen of these operations, and between two matrix products they cost more in launches than in work.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu

from . import formats


def fused(function: Callable) -> Callable:
    """Compile `function` where its first argument is on a GPU, for all sizes at once: they change with the rows of a
    call."""

    @functools.cache
    def compiled() -> Callable:
        torch._dynamo.config.recompile_limit = 64  # of 8 by default: beyond it, functions are run uncompiled
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(first: Tensor, *rest):
        return (compiled() if first.is_cuda else function)(first, *rest)

    return call


def _rms(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


@fused
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm, computed in float32."""
    normed = _rms(x, eps)
    return (normed if weight is None else normed * weight.float()).to(x.dtype)


@fused
def rotated_norm(x: Tensor, weight: Tensor, rotation: Tensor, eps: float) -> Tensor:
    """RMSNorm of heads x [T, H, D], then RoPE by `rotation` [2, T, D / 2]: the cosines and the sines."""
    low, high = (_rms(x, eps) * weight.float()).to(x.dtype).float().chunk(2, dim=-1)
    cos, sin = rotation[0, :, None], rotation[1, :, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


@fused
def gated(gate_up: Tensor) -> Tensor:
    """[..., 2 n], the gate first -> gelu(gate) * up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gelu(gate, approximate="tanh") * up


@fused
def after_attention(x: Tensor, attended: Tensor, norms: tuple[Tensor, ...], router: Tensor, eps: float):
    """Add `attended` to the residual -> the residual, and its norms for the dense MLP, the experts and the router."""
    post, dense, sparse = norms
    x = x + (_rms(attended, eps) * post.float()).to(x.dtype)
    normed = _rms(x, eps)
    routed = normed.to(x.dtype) * router * x.shape[-1] ** -0.5
    return x, (normed * dense.float()).to(x.dtype), (normed * sparse.float()).to(x.dtype), routed


@fused
def route(chosen: Tensor, experts: Tensor, per_expert: Tensor) -> Tensor:
    """The weights [T, K] of the chosen experts, float32. The softmax over the chosen is the reference's softmax over
    all, divided by the sum of the chosen."""
    return chosen.float().softmax(dim=-1) * per_expert.float()[experts]


@fused
def spread(x: Tensor, order: Tensor, top_k: int) -> Tensor:
    """Repeat the rows of x for each pair of token and expert, in `order`."""
    return x.index_select(0, order // top_k)


@fused
def gather(y: Tensor, back: Tensor, weights: Tensor) -> Tensor:
    """Sum the experts' outputs of each token, at `back` [T, K] of y, by their weights [T, K]. A weight of 0 hides even
    NaN."""
    weights = weights[..., None]
    return (
        torch.where(weights != 0, y.index_select(0, back.flatten()).unflatten(0, back.shape) * weights, 0)
        .sum(dim=1)
        .to(y.dtype)
    )


@fused
def after_experts(x: Tensor, dense: Tensor, sparse: Tensor, norms: tuple[Tensor, ...], scalar: Tensor, eps: float):
    """Add both feed-forward parts to the residual, and scale it by the layer's scalar [T, 1]."""
    first, second, post = norms
    both = (_rms(dense, eps) * first.float()).to(x.dtype) + (_rms(sparse, eps) * second.float()).to(x.dtype)
    return (x + (_rms(both, eps) * post.float()).to(x.dtype)) * scalar


to_fp8 = fused(formats.to_fp8)
