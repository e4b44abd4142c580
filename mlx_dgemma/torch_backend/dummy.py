"""A model of any shape with random weights, made on the device: to be measured, not to be read."""

from __future__ import annotations

import torch

from ..checkpoint.config import ModelConfig, Quantization
from ..convert.recipes import mlx_community, plain, quantization
from ..errors import Mistake
from . import device as devices
from .device import the_device
from .layers import Linear
from .model import TorchModel
from .network import Network
from .weights import fingerprint, finish, place, to_fp8

PRECISIONS = {"float32": (torch.float32, plain), "bf16": (torch.bfloat16, plain), "fp8": (torch.bfloat16, plain)}
PRECISIONS["4bit"] = (torch.bfloat16, mlx_community(quantization(bits=4)))  # as `convert -q` stores it


def _quantized(module: Linear, stored: Quantization, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random codes, whose scale makes weights of variance 1 / in."""
    device, scales = generator.device, module.scales.shape
    codes = torch.randint(-(2**31), 2**31, module.weight.shape, dtype=torch.int32, device=device, generator=generator)
    scale = (
        12 / (scales[-1] * stored.group_size)
    ) ** 0.5 / 2**stored.bits  # codes are uniform, of variance 4^bits / 12
    bias = -scale * (2**stored.bits - 1) / 2
    return {"weight": codes, "scales": torch.full(scales, scale), "biases": torch.full(scales, bias)}


def dummy_torch(config: ModelConfig, precision: str, seed: int = 0, peaked: float = 1.0) -> TorchModel:
    """`precision` is one of PRECISIONS; "4bit" keeps 8 bits where `convert` does. `peaked` is a factor on the logits:
    with 1, every prediction is about uniform, which no trained model's is.

    Raises:
        Mistake: `precision` is not one we make, or the device has too little memory.
    """
    if precision not in PRECISIONS:
        raise Mistake(f"precision {precision!r} is not one that torch makes: need one of {', '.join(PRECISIONS)}")
    (dtype, recipe), device = PRECISIONS[precision], the_device()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        network = Network(config)
        quantized = {
            path: (module, recipe(path)) for path, module in network.named_modules() if isinstance(module, Linear)
        }
        for module, stored in quantized.values():
            if stored:
                module.quantize(stored)
    network.dtype = dtype
    with devices.enough(device, f"random weights in {precision}"):
        for path, (module, stored) in quantized.items():
            shape = module.weight.shape
            made = _quantized(module, stored, generator) if stored else {
                "weight": torch.randn(shape, dtype=dtype, device=device, generator=generator).mul_(shape[-1] ** -0.5)
            }  # fmt: skip
            for name, array in made.items():
                place(network, f"{path}.{name}", array, dtype, device)
            if precision == "fp8":
                to_fp8(network, f"{path}.weight")
        for path, array in list(network.named_buffers()):
            if array.is_meta:
                place(network, path, torch.ones(array.shape), dtype, device)
    network.model.decoder.norm.weight *= peaked
    finish(network)
    return TorchModel(network, config, device, fingerprint(network, config))
