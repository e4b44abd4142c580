"""Tensors and a config -> TorchModel."""

from __future__ import annotations

import torch

from ..checkpoint.adapter import Adapter
from ..checkpoint.config import FP8, ModelConfig
from ..checkpoint.folder import Tensor
from ..checkpoint.memory import check_memory
from ..checkpoint.shares import WHOLE, Share
from ..errors import Mistake
from . import device as devices
from . import parallel
from .layers import Linear
from .lora import attach
from .model import TorchModel
from .network import Network
from .weights import DTYPES, declare, load_weights

if devices.has_gpu():
    from . import kernels  # noqa: F401, so that a missing triton is reported before anything is read


def _check_fp8(network: Network, device: torch.device, name: str) -> None:
    if any(isinstance(module, Linear) and module.quantization for module in network.modules()):
        raise Mistake(f"{name} is quantized already: leave out --dtype fp8, or take a checkpoint in bfloat16")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise Mistake(
            f"{torch.cuda.get_device_name(device)} has no FP8: leave out --dtype fp8, or take a 4-bit checkpoint"
        )


def load_torch(
    tensors: dict[str, Tensor],
    config: ModelConfig,
    dtype: str,
    name: str,
    needed: int,
    adapter: Adapter | None = None,
    divided: Share = WHOLE,
) -> TorchModel:
    """Load a checkpoint, or the share of it that `divided` names: `dtype` is one of DTYPES, `name` is for messages,
    `needed` its bytes. Mistake names the tensor that is missing, left over, or of the wrong shape or dtype."""
    parallel.join(divided)
    device, fp8 = devices.the_device(), dtype == FP8
    network = declare(config, tensors)
    if fp8:
        _check_fp8(network, device, name)
    network.dtype = DTYPES[dtype]
    check_memory(needed // 2 if fp8 else needed, name, devices.free(device))
    with devices.enough(device, name):
        load_weights(network, tensors, device, fp8=fp8)
        if adapter:
            attach(network, adapter)
    return TorchModel(network, config, device)
