"""A model of any shape with random weights, made on the device: to be measured, not to be read."""

import torch
from torch import Tensor

from ..checkpoint.config import FP8, ModelConfig, Recipe
from ..errors import Mistake
from . import device as devices
from .layers import Linear
from .model import TorchModel
from .network import Network
from .weights import DTYPES, lay_out, place, to_fp8


def _random(module: Linear, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights of variance 1 / in; where the layer is quantized, random codes with a scale that makes them so."""
    shape, stored, device = module.weight.shape, module.quantization, generator.device
    if stored is None:
        weight = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        return {"weight": weight.mul_(shape[-1] ** -0.5)}
    codes = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=device, generator=generator)
    groups = module.scales.shape
    scale = (
        12 / (groups[-1] * stored.group_size)
    ) ** 0.5 / 2**stored.bits  # codes are uniform, of variance 4^bits / 12
    bias = -scale * (2**stored.bits - 1) / 2
    return {
        "weight": codes,
        "scales": torch.full(groups, scale, device=device),
        "biases": torch.full(groups, bias, device=device),
    }


def _fill(network: Network, recipe: Recipe, generator: torch.Generator, *, fp8: bool) -> None:
    linears = {path: module for path, module in network.named_modules() if isinstance(module, Linear)}
    for path, module in linears.items():
        if stored := recipe(path):
            with torch.device("meta"):
                module.quantize(stored)
        arrays = _random(module, network.dtype, generator)
        for name in [*arrays]:  # none is kept here while it is converted
            place(network, f"{path}.{name}", arrays.pop(name), generator.device)
        if fp8 and not module.quantization:
            to_fp8(network, f"{path}.weight")
        lay_out(module)
    for path, array in network.named_buffers():
        if array.is_meta:
            place(network, path, torch.ones(array.shape), generator.device)


def dummy_torch(config: ModelConfig, dtype: str, recipe: Recipe, seed: int = 0, peaked: float = 1.0) -> TorchModel:
    """Make a model of the shape of `config`.

    Args:
        dtype: one of `weights.DTYPES`, as `load_torch` takes it.
        recipe: path of a layer -> how it is quantized, affine, or None.
        peaked: a factor on the logits. With 1, every prediction is about uniform, which no trained model's is.

    Raises:
        Mistake: `dtype` is none of these, or the device has too little memory.
    """
    if dtype not in DTYPES:
        raise Mistake(f"precision {dtype!r} is not one that torch makes: need one of {', '.join(DTYPES)}")
    device = devices.current_device()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        network = Network(config)
    network.dtype = DTYPES[dtype]
    with devices.memory_for(device, f"random weights in {dtype}"):
        _fill(network, recipe, generator, fp8=dtype == FP8)
        network.join()  # behind `_fill`, which names each linear
    network.model.decoder.norm.weight *= peaked
    return TorchModel(network, config, device)
