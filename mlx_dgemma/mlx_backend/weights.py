"""A checkpoint's tensors into the network's parameters: none missing, none left over, none of another shape."""

import hashlib
import json
from dataclasses import asdict

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoint import parameters
from ..checkpoint.config import ModelConfig
from ..checkpoint.folder import Tensor
from ..checkpoint.names import GLOBAL_SCALE
from ..checkpoint.parameters import FLOATS, quantize_where_stored
from . import parallel
from .layers import Linear
from .network import Network

STORED = {  # safetensors' name -> as NumPy reads it, and what it is
    "F32": (np.float32, mx.float32), "F16": (np.float16, mx.float16), "BF16": (np.uint16, mx.bfloat16),
    "U32": (np.uint32, mx.uint32), "U8": (np.uint8, mx.uint8),
}  # fmt: skip
CHECKED = 1 << 24  # words whose checksum is taken at a time: 128 MB as 64-bit numbers


def linears(network: Network) -> dict[str, Linear]:
    """Return the layers that can be quantized, by path."""
    return {path: module for path, module in network.named_modules() if isinstance(module, Linear)}


def match(network: Network, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each parameter's tensor in the checkpoint, one to one. Mistake names tensor and file."""
    kinds = {mx.uint32: ("U32",), mx.uint8: ("U8",)}
    expected = {path: (a.shape, kinds.get(a.dtype, FLOATS)) for path, a in tree_flatten(network.parameters())}
    return parameters.match(expected, tensors)


def load_weights(network: Network, config: ModelConfig, tensors: dict[str, Tensor], dtype: mx.Dtype) -> None:
    """Fill `network` from the text tensors of a checkpoint, or from this rank's share of them, floats cast to `dtype`.
    Mistake names tensor and file."""
    quantize_where_stored(linears(network), config, tensors)
    stored = match(network, tensors)
    weights = []
    for file in sorted({tensor.file for tensor in stored.values()}):
        arrays = mx.load(str(file), format="safetensors")  # lazy: bytes are read when used
        for path, tensor in stored.items():
            if tensor.file == file:
                part = parallel.mine.of(config, path, tensor.shape)
                divided = any(size != slice(None) for size in part)
                array = _read(tensor, part) if divided else arrays[tensor.name]
                cast = mx.issubdtype(array.dtype, mx.floating) and not path.endswith(GLOBAL_SCALE)
                weights.append((path, array.astype(dtype) if cast else array))
    network.load_weights(weights, strict=False)  # `match` was strict, and shares are of other shapes
    network.model.decoder.embed_tokens.dtype = dtype  # the activations take theirs from it
    mx.eval(network.parameters())


def _read(tensor: Tensor, part: tuple[slice, ...]) -> mx.array:
    """Read a part of a tensor, and no other byte of whole experts, rows and heads."""
    kind, dtype = STORED[tensor.dtype]
    stored = np.memmap(tensor.file, kind, "r", tensor.start, tensor.shape)
    return mx.array(np.ascontiguousarray(stored[part])).view(dtype)


def checksum(array: mx.array) -> int:
    """Return the sum of word * (2 * index + 1) over the array's bytes as 32-bit words, modulo 2^64.

    It changes with any single word, and where any two that differ are swapped: neither (a - b) nor 2 * (i - j) has so
    many factors of two that their product could be 0 modulo 2^64.
    """
    flat = array.reshape(-1)
    if spare := -flat.nbytes % 4:
        flat = mx.pad(flat, (0, spare // flat.itemsize))
    words = flat.view(mx.uint32)
    total = mx.array(0, dtype=mx.uint64)
    for first in range(0, words.size, CHECKED):
        part = words[first : first + CHECKED].astype(mx.uint64)
        total = total + (part * (2 * mx.arange(first, first + part.size, dtype=mx.uint64) + 1)).sum()
        mx.eval(total)  # a part at a time
    return total.item()


def fingerprint(network: Network, config: ModelConfig, dtype: mx.Dtype) -> str:
    """Tell apart models whose caches must not be mixed: by config, dtype, and every byte of every weight."""
    digest = hashlib.sha256(
        json.dumps([asdict(config), str(dtype), asdict(parallel.mine)], sort_keys=True, default=str).encode()
    )
    for path, array in tree_flatten(network.parameters()):
        digest.update(f"{path} {array.dtype} {array.shape} {checksum(array)}\n".encode())
    return digest.hexdigest()


def first_damaged(network: Network, dtype: mx.Dtype) -> str:
    """Name the first weight that is not finite, for a message."""
    for path, array in tree_flatten(network.parameters()):
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            return f"weight {path} holds NaN or Inf; fetch or convert the checkpoint again"
    return f"every weight is finite, so a pass overflowed {dtype}; try --dtype float32"
