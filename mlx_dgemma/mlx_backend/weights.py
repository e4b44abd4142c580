"""A checkpoint's tensors into the network's parameters: nothing missing, nothing left over, nothing of another shape."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoint import Tensor
from ..config import ModelConfig, Quantization
from ..mistake import Mistake
from ..convert.names import parameter_name
from .layers import Linear
from .network import Network

_FLOATS = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}


def _quantize_where_stored(network: Network, config: ModelConfig, stored: dict[str, tuple[str, Tensor]]) -> None:
    """Layers with scales in the checkpoint become quantized ones, as the config says of their path."""
    linears = {path: module for path, module in network.named_modules() if isinstance(module, Linear)}
    named = {path: q for path, q in (config.quantized_paths or {}).items() if q is not None}
    for path, quantization in named.items():
        if path in linears and f"{path}.scales" not in stored:
            raise Mistake(f"tensor {path}.scales is missing: config.json says that {path} is quantized ({quantization})")
    for path, module in linears.items():
        if f"{path}.scales" not in stored:
            continue
        name, tensor = stored[f"{path}.scales"]
        quantization: Quantization | None = (config.quantized_paths or {}).get(path, config.quantization)
        if quantization is None:
            raise Mistake(f"tensor {name} in {tensor.file.name}: config.json has no quantization for {path}")
        try:
            module.quantize(quantization)
        except ValueError as error:
            raise Mistake(f"config.json: quantization of {path}: {error}") from None


def _check(name: str, tensor: Tensor, expected: mx.array) -> None:
    where = f"tensor {name} in {tensor.file.name}"
    if tensor.shape != expected.shape:
        raise Mistake(f"{where} has shape {list(tensor.shape)}, need {list(expected.shape)}")
    integer = {mx.uint32: "U32", mx.uint8: "U8"}.get(expected.dtype)
    if tensor.dtype not in ({integer} if integer else _FLOATS):
        raise Mistake(f"{where} has dtype {tensor.dtype}, need {integer or ', '.join(_FLOATS)}")


def load_weights(network: Network, config: ModelConfig, tensors: dict[str, Tensor], dtype: mx.Dtype) -> None:
    """Fill `network` from the text tensors of a checkpoint, floats cast to `dtype`. ValueError names tensor and file."""
    stored: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stored[parameter_name(name)] = (name, tensor)
    _quantize_where_stored(network, config, stored)
    expected = dict(tree_flatten(network.parameters()))
    for path in expected:
        if path not in stored:
            raise Mistake(f"tensor {path} is missing from the checkpoint")
    for path, (name, tensor) in stored.items():
        if path not in expected:
            raise Mistake(f"tensor {name} in {tensor.file.name} is not part of this model")
        _check(name, tensor, expected[path])
    weights = []
    for file in sorted({tensor.file for _, tensor in stored.values()}):
        arrays = mx.load(str(file), format="safetensors")  # lazy: bytes are read when used
        for path, (name, tensor) in stored.items():
            if tensor.file == file:
                array = arrays[name]
                weights.append((path, array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array))
    network.load_weights(weights, strict=True)
    set_dtype(network, dtype)
    mx.eval(network.parameters())


def set_dtype(network: Network, dtype: mx.Dtype) -> None:
    """The activations' dtype starts at the embedding."""
    network.model.decoder.embed_tokens.dtype = dtype


def fingerprint(network: Network, config: ModelConfig) -> str:
    """Tells apart models whose caches must not be mixed, from the config and the small weights of every layer."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True, default=str).encode())
    for path, array in tree_flatten(network.parameters()):
        if array.size <= 4096 and not path.endswith(("scales", "biases")):
            digest.update(path.encode() + np.array(array.astype(mx.float32)).tobytes())
    return digest.hexdigest()


def first_damaged(network: Network, dtype: mx.Dtype) -> str:
    """For a message: the first weight that is not finite."""
    for path, array in tree_flatten(network.parameters()):
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            return f"weight {path} holds NaN or Inf; fetch or convert the checkpoint again"
    return f"every weight is finite, so a pass overflowed {dtype}; try --dtype float32"
