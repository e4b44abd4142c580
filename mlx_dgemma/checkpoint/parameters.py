"""A checkpoint's tensors matched with a network's parameters: none missing, none left over, none of another shape.

The networks of both backends carry the checkpoint's names, so this knows no framework.
"""

from collections.abc import Mapping
from typing import Protocol

from ..errors import Mistake
from . import folder
from .config import ModelConfig, Quantization
from .folder import Tensor
from .names import EXPERTS, GLOBAL_SCALE, parameter_name, published_name

FLOATS = tuple(folder.FLOATS.values())  # in the words of safetensors


class Linear(Protocol):
    """A layer of either backend that can be quantized."""

    def quantize(self, quantization: Quantization) -> None: ...  # ValueError if it cannot be stored so

    def scale_globally(self, *, per_row: bool) -> None: ...  # of experts alone


def quantize_where_stored(linears: Mapping[str, Linear], config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Quantize the layers, by path, that have scales in the checkpoint, as config.json says.

    Raises:
        Mistake: config.json names a layer that has no scales, lacks one that has, or gives groups that do not fit.
    """
    named = config.quantized_paths or {}
    for path, linear in linears.items():
        scales, quantization = tensors.get(f"{path}.scales"), named.get(path, config.quantization)
        if scales is None:
            if named.get(path):
                raise Mistake(
                    f"tensor {path}.scales is missing: config.json says that it is quantized ({quantization})"
                )
            continue
        if quantization is None:
            raise Mistake(f"{scales.where}: config.json has no quantization for {path}")
        try:
            linear.quantize(quantization)
        except ValueError as error:
            raise Mistake(f"config.json: quantization of {path}: {error}") from None
        factor = tensors.get(f"{path}.{GLOBAL_SCALE}")
        if factor is not None and path.endswith(EXPERTS):
            linear.scale_globally(per_row=len(factor.shape) > 1)


def match(
    expected: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Map each parameter's path to its tensor in the checkpoint. `expected` has its shape, and the dtypes it may have.

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
    for path in (path for path in expected if path not in matched):
        raise Mistake(f"tensor {published_name(path)} is missing from the checkpoint")
    return matched
