"""A checkpoint's tensors into the network's parameters, each read, cast, divided and packed on its own."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..checkpoint import parameters
from ..checkpoint.config import FP8, ModelConfig
from ..checkpoint.folder import Tensor as Stored
from ..checkpoint.names import GLOBAL_SCALE
from ..checkpoint.parameters import FLOATS, quantize_where_stored
from . import device as devices
from . import parallel
from .layers import Embedding, Linear
from .network import Network

# --dtype -> that of activations, and of weights that are neither quantized nor FP8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, FP8: torch.bfloat16}
WORDS = 1 << 22  # of 32 bits, that are summed at a time


def declare(config: ModelConfig, tensors: Mapping[str, Stored]) -> Network:
    """Make the network without its numbers. Layers with scales in the checkpoint are quantized, as the config says for
    their path."""
    with torch.device("meta"):
        network = Network(config)
        linears = {path: module for path, module in network.named_modules() if isinstance(module, Linear)}
        quantize_where_stored(linears, config, tensors)
    return network


def match(network: Network, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return each parameter's tensor in the checkpoint, one to one. Mistake names tensor and file."""
    kinds = {torch.int32: ("U32",), torch.uint8: ("U8",)}
    expected = {path: (tuple(a.shape), kinds.get(a.dtype, FLOATS)) for path, a in network.named_buffers()}
    return parameters.match(expected, tensors)


def place(network: Network, path: str, array: Tensor, device: torch.device) -> None:
    """Set the parameter at `path`. Floats are cast to the network's dtype, but global scales are not."""
    module, _, name = path.rpartition(".")
    if array.is_floating_point() and name != GLOBAL_SCALE:
        array = array.to(network.dtype)
    elif array.dtype == torch.uint32:
        array = array.view(torch.int32)
    setattr(network.get_submodule(module), name, array.to(device))


def lay_out(module: nn.Module) -> None:
    """Lay a linear out in tiles on a GPU, as soon as it has all its arrays: there is no other copy at that time."""
    arrays = list(module.buffers(recurse=False))
    if isinstance(module, Linear) and devices.by_kernel(module.weight) and not any(a.is_meta for a in arrays):
        module.tile()


def to_fp8(network: Network, path: str) -> None:
    """Convert the weight at `path` if FP8 is for it: of experts and linears."""
    parent, _, name = path.rpartition(".")
    module = network.get_submodule(parent)
    if name == "weight" and isinstance(module, Linear) and not isinstance(module, Embedding) and "router" not in path:
        module.to_fp8()


def load_weights(network: Network, tensors: Mapping[str, Stored], device: torch.device, *, fp8: bool) -> None:
    """Fill `network`, whose `dtype` is that of its floats, with this rank's share. Mistake names tensor and file."""
    stored = match(network, tensors)
    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(file, "pt") as opened:
            for path, tensor in stored.items():
                if tensor.file == file:
                    share = parallel.mine.of(network.config, path, tensor.shape)
                    place(network, path, opened.get_slice(tensor.name)[share].contiguous(), device)
                    if fp8:
                        to_fp8(network, path)
                    lay_out(network.get_submodule(path.rpartition(".")[0]))
    network.join()


def checksum(array: Tensor) -> Tensor:
    """Sum of all 32-bit words of `array`, each times 2 * place + 1, modulo 2^64 -> [] int64, on its device.

    Words are below 2^32 and places below 2^31, so a changed word, and two words that change places, change the sum."""
    octets = array.contiguous().flatten().view(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=array.device)
    for place, part in enumerate(octets.split(4 * WORDS)):
        words = torch.nn.functional.pad(part, (0, -len(part) % 4)).view(torch.int32)
        first = place * WORDS
        factors = torch.arange(2 * first + 1, 2 * (first + len(words)), 2, device=array.device)
        total += (words * factors).sum()
    return total


def fingerprint(network: Network, config: ModelConfig) -> str:
    """Tell models apart whose caches must not be mixed: by config, dtype, rank, and every number of every tensor."""
    tensors = dict(network.named_buffers())
    about = {
        "model": (asdict(config), str(network.dtype), parallel.mine.rank, parallel.mine.ranks),
        "tensors": [(path, str(array.dtype), tuple(array.shape)) for path, array in tensors.items()],
        "checksums": torch.stack([checksum(array) for array in tensors.values()]).tolist(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def first_damaged(network: Network) -> str:
    """Say which weight is the first that is not finite."""
    for path, array in network.named_buffers():
        if array.is_floating_point() and not torch.isfinite(array.float()).all():
            return f"weight {path} holds NaN or Inf; fetch or convert the checkpoint again"
    return f"every weight is finite, so a pass overflowed {network.dtype}; try --dtype float32"
