"""Tensors and a config -> TorchModel."""

from __future__ import annotations

import torch

from ..checkpoint import Tensor
from ..config import ModelConfig
from ..load import check_memory
from . import memory
from .model import TorchModel
from .weights import declare, fingerprint, load_weights


def has_device() -> bool:
    return torch.cuda.is_available()


def the_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if has_device() else torch.device("cpu")


def load_torch(tensors: dict[str, Tensor], config: ModelConfig, dtype: str, name: str) -> TorchModel:
    """ValueError names the tensor that is missing, left over, or of the wrong shape or dtype."""
    device = the_device()
    network = declare(config, tensors)
    network.dtype = getattr(torch, dtype)
    check_memory(sum(tensor.nbytes for tensor in tensors.values()), name, memory.free(device))
    load_weights(network, tensors, device, lambda path, shape: tuple(slice(None) for _ in shape))
    return TorchModel(network, config, device, fingerprint(network, config))
