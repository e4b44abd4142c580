"""A checkpoint's tensors into the network's parameters, each read, cast, divided and packed on its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoint import parameters
from ..checkpoint.config import ModelConfig
from ..checkpoint.folder import Tensor as Stored
from ..checkpoint.names import GLOBAL_SCALE
from ..checkpoint.parameters import FLOATS, stored_quantization
from ..errors import Mistake
from . import parallel
from .layers import Embedding, ExpertLinear, Linear
from .network import Network


def declare(config: ModelConfig, tensors: Mapping[str, Stored]) -> Network:
    """The network without its numbers: layers with scales in the checkpoint are quantized ones, as the config says of
    their path."""
    with torch.device("meta"):
        network = Network(config)
        linears = {path: module for path, module in network.named_modules() if isinstance(module, Linear)}
        for path, quantization in stored_quantization(linears, config, tensors).items():
            try:
                linears[path].quantize(quantization)
            except ValueError as error:
                raise Mistake(f"config.json: quantization of {path}: {error}") from None
            factor = tensors.get(f"{path}.{GLOBAL_SCALE}")
            if factor is not None and isinstance(linears[path], ExpertLinear):
                linears[path].scale_globally(per_row=len(factor.shape) > 1)
    return network


def match(network: Network, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return each parameter's tensor in the checkpoint, one to one. Mistake names tensor and file."""
    kinds = {torch.int32: ("U32",), torch.uint8: ("U8",)}
    expected = {path: (tuple(a.shape), kinds.get(a.dtype, FLOATS)) for path, a in network.named_buffers()}
    return parameters.match(expected, tensors)


def place(network: Network, path: str, array: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """`array` at `path`: floats cast to `dtype`, but global scales."""
    module, _, name = path.rpartition(".")
    if array.is_floating_point() and name != GLOBAL_SCALE:
        array = array.to(dtype)
    elif array.dtype == torch.uint32:
        array = array.view(torch.int32)
    setattr(network.get_submodule(module), name, array.to(device))


def finish(network: Network) -> Network:
    """Once the weights are there: as the passes want them."""
    for module in network.modules():
        if isinstance(module, Linear) and module.weight.is_cuda:
            module.widen()
    network.join()
    return network


def to_fp8(network: Network, path: str) -> None:
    """The weight at `path`, if it is one of those that FP8 is for: experts and linears."""
    module, _, name = path.rpartition(".")
    owner = network.get_submodule(module)
    if name == "weight" and isinstance(owner, Linear) and not isinstance(owner, Embedding) and "router" not in path:
        owner.to_fp8()


def load_weights(
    network: Network, config: ModelConfig, tensors: Mapping[str, Stored], device: torch.device, *, fp8: bool
) -> None:
    """Fill `network`, whose `dtype` is that of its floats, with this rank's share. Mistake names tensor and file."""
    stored = match(network, tensors)
    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(file, "pt") as opened:
            for path, tensor in stored.items():
                if tensor.file == file:
                    array = opened.get_slice(tensor.name)[parallel.share(config, path, tensor.shape)].contiguous()
                    place(network, path, array, network.dtype, device)
                    if fp8:
                        to_fp8(network, path)
    finish(network)


def fingerprint(network: Network, config: ModelConfig) -> str:
    """Tells apart models whose caches must not be mixed, from the config and the small weights of every layer."""
    about = {**asdict(config), "cached": str(network.dtype), "rank": (parallel.rank(), parallel.ranks())}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for path, array in network.named_buffers():
        if array.numel() <= 4096 and not path.endswith(("scales", "biases", "fp8_scale")):
            digest.update(path.encode() + array.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def first_damaged(network: Network) -> str:
    """For a message: the first weight that is not finite."""
    for path, array in network.named_buffers():
        if array.is_floating_point() and not torch.isfinite(array.float()).all():
            return f"weight {path} holds NaN or Inf; fetch or convert the checkpoint again"
    return f"every weight is finite, so a pass overflowed {network.dtype}; try --dtype float32"
