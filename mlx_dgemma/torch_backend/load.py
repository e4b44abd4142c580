"""A checkpoint -> TorchModel."""

from __future__ import annotations

import torch

from ..checkpoint.adapter import Adapter
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.config import FP8
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


def load_torch(checkpoint: Checkpoint, dtype: str, adapter: Adapter | None = None, share: Share = WHOLE) -> TorchModel:
    """Load a checkpoint, or a rank's share of it; `dtype` is one of DTYPES. Mistake names the tensor that is missing,
    left over, or of the wrong shape or dtype."""
    needed, name, fp8 = checkpoint.nbytes(share), checkpoint.folder.name, dtype == FP8
    parallel.join(share)
    device = devices.current_device()
    network = declare(checkpoint.config, checkpoint.tensors)
    if fp8:
        _check_fp8(network, device, name)
    network.dtype = DTYPES[dtype]
    check_memory(needed // 2 if fp8 else needed, name, devices.free(device))
    with devices.memory_for(device, name):
        load_weights(network, checkpoint.tensors, device, fp8=fp8)
        if adapter:
            attach(network, adapter)
    return TorchModel(network, checkpoint.config, device)
