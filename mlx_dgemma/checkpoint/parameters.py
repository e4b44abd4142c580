"""A checkpoint's tensors against a network's parameters: none missing, none left over, none of another shape.

Both backends' networks carry the checkpoint's names, so this knows no framework.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import Mistake
from .config import ModelConfig, Quantization
from .folder import Tensor
from .names import parameter_name, published_name

FLOATS = ("F32", "BF16", "F16")  # in the words of safetensors


def stored_quantization(
    linears: Collection[str], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Quantization]:
    """Of `linears`, those that have scales in the checkpoint -> how they are stored, as the config says of their
    path."""
    named = {path: q for path, q in (config.quantized_paths or {}).items() if q is not None}
    for path, quantization in named.items():
        if path in linears and f"{path}.scales" not in tensors:
            raise Mistake(
                f"tensor {path}.scales is missing: config.json says that {path} is quantized ({quantization})"
            )
    found = {}
    for path in linears:
        scales = tensors.get(f"{path}.scales")
        if scales is None:
            continue
        quantization = (config.quantized_paths or {}).get(path, config.quantization)
        if quantization is None:
            raise Mistake(f"tensor {path}.scales in {scales.file.name}: config.json has no quantization for {path}")
        found[path] = quantization
    return found


def match(
    expected: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[str, Tensor]]:
    """Parameter path -> the checkpoint's name for it, and where it lies: one to one. Mistake names tensor and file.

    Args:
        expected: path -> shape, and the dtypes that it may have in the file.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, where = parameter_name(name), f"tensor {name} in {tensor.file.name}"
        if path in found:
            raise Mistake(f"{where} and {found[path][0]} are the same parameter")
        if path not in expected:
            raise Mistake(f"{where} is not part of this model")
        shape, kinds = expected[path]
        if tensor.shape != shape:
            raise Mistake(f"{where} has shape {list(tensor.shape)}, need {list(shape)}")
        if tensor.dtype not in kinds:
            raise Mistake(f"{where} has dtype {tensor.dtype}, need {', '.join(kinds)}")
        found[path] = (name, tensor)
    for path in expected:
        if path not in found:
            raise Mistake(f"tensor {published_name(path)} is missing from the checkpoint")
    return found
