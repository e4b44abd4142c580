"""A checkpoint's tensors matched with a network's parameters: none missing, none left over, none of another shape.

The networks of both backends carry the checkpoint's names, so this knows no framework.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import Mistake
from . import folder
from .config import ModelConfig, Quantization
from .folder import Tensor
from .names import parameter_name, published_name

FLOATS = tuple(folder.FLOATS.values())  # in the words of safetensors


def stored_quantization(
    linears: Collection[str], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Quantization]:
    """Return how each quantized layer is stored: those of `linears` that have scales, as the config says.

    Raises:
        Mistake: config.json names a layer that has no scales, or does not name one that has.
    """
    named = config.quantized_paths or {}
    for path, quantization in named.items():
        if quantization and path in linears and f"{path}.scales" not in tensors:
            raise Mistake(
                f"tensor {path}.scales is missing: config.json says that {path} is quantized ({quantization})"
            )
    stored = {}
    for path in linears:
        scales = tensors.get(f"{path}.scales")
        if scales is None:
            continue
        quantization = named.get(path, config.quantization)
        if quantization is None:
            raise Mistake(f"{scales.where}: config.json has no quantization for {path}")
        stored[path] = quantization
    return stored


def match(
    expected: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Map each parameter's path to its tensor in the checkpoint, one to one.

    Args:
        expected: path -> shape, and the dtypes that the tensor may have in the file.

    Raises:
        Mistake: a tensor is missing, left over, or of another shape or dtype; the message names it and its file.
    """
    matched: dict[str, Tensor] = {}
    for tensor in tensors.values():
        path = parameter_name(tensor.name)
        if path in matched:
            raise Mistake(f"{tensor.where} and {matched[path].name} are the same parameter")
        if path not in expected:
            raise Mistake(f"{tensor.where} is not part of this model")
        shape, dtypes = expected[path]
        if tensor.shape != shape:
            raise Mistake(f"{tensor.where} has shape {list(tensor.shape)}, need {list(shape)}")
        if tensor.dtype not in dtypes:
            raise Mistake(f"{tensor.where} has dtype {tensor.dtype}, need {', '.join(dtypes)}")
        matched[path] = tensor
    for path in expected:
        if path not in matched:
            raise Mistake(f"tensor {published_name(path)} is missing from the checkpoint")
    return matched
