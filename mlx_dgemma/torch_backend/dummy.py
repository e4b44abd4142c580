"""A model of any shape with random weights, made on the device: to be measured, not to be read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checkpoint.config import ModelConfig, Quantization
from ..errors import Mistake
from . import device as devices
from .layers import Linear
from .model import TorchModel
from .network import Network
from .weights import DTYPES, FP8, finish, place, to_fp8


def _quantized(module: Linear, stored: Quantization, generator: torch.Generator) -> dict[str, Tensor]:
    """Random codes, whose scale makes weights of variance 1 / in."""
    device, scales = generator.device, module.scales.shape
    codes = torch.randint(-(2**31), 2**31, module.weight.shape, dtype=torch.int32, device=device, generator=generator)
    width = scales[-1] * stored.group_size
    scale = (12 / width) ** 0.5 / 2**stored.bits  # codes are uniform, of variance 4^bits / 12
    bias = -scale * (2**stored.bits - 1) / 2
    return {"weight": codes, "scales": torch.full(scales, scale), "biases": torch.full(scales, bias)}


def _plain(module: Linear, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights of variance 1 / in."""
    shape = module.weight.shape
    weight = torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)
    return {"weight": weight.mul_(shape[-1] ** -0.5)}


def dummy_torch(
    config: ModelConfig,
    dtype: str,
    recipe: Callable[[str], Quantization | None],
    seed: int = 0,
    peaked: float = 1.0,
) -> TorchModel:
    """Make a model of the shape of `config`.

    Args:
        dtype: one of `weights.DTYPES`, as `load_torch` takes it.
        recipe: path of a layer -> how it is quantized, affine, or None.
        peaked: a factor on the logits. With 1, every prediction is about uniform, which no trained model's is.

    Raises:
        Mistake: `dtype` is not one of these, or the device has too little memory.
    """
    if dtype not in DTYPES:
        raise Mistake(f"precision {dtype!r} is not one that torch makes: need one of {', '.join(DTYPES)}")
    kind, device = DTYPES[dtype], devices.the_device()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        network = Network(config)
        linears = {path: module for path, module in network.named_modules() if isinstance(module, Linear)}
        for path, module in linears.items():
            if stored := recipe(path):
                module.quantize(stored)
    network.dtype = kind
    with devices.enough(device, f"random weights in {dtype}"):
        for path, module in linears.items():
            stored = module.quantization
            made = _quantized(module, stored, generator) if stored else _plain(module, kind, generator)
            for name, array in made.items():
                place(network, f"{path}.{name}", array, kind, device)
            if dtype == FP8 and not stored:
                to_fp8(network, f"{path}.weight")
        for path, array in list(network.named_buffers()):
            if array.is_meta:
                place(network, path, torch.ones(array.shape), kind, device)
    network.model.decoder.norm.weight *= peaked
    finish(network)
    return TorchModel(network, config, device)
