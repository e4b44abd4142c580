"""A checkpoint's tensors matched with a network's parameters: none missing, none left over, none of another shape.

The networks of both backends carry the checkpoint's names, so this knows no framework.
"""

from collections.abc import Mapping
from typing import Protocol

from ..errors import Mistake
from . import folder
from .config import ModelConfig, Quantization
from .folder import Tensor
from .names import GLOBAL_SCALE, parameter_name, published_name

FLOATS = tuple(folder.FLOATS.values())  # in the words of safetensors


class Linear(Protocol):
    """A layer of either backend that may be quantized."""

    def quantize(self, quantization: Quantization) -> None:
        """Expect packed arrays. ValueError if the groups do not divide the rows."""

    def scale_globally(self, *, per_row: bool) -> None:
        """Expect `weight_scale_2`, too. Only layers of experts can."""


def quantize_where_stored(linears: Mapping[str, Linear], config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Quantize those of `linears`, by path, that have scales in the checkpoint, as the config says.

    Raises:
        Mistake: config.json names a layer that has no scales, does not name one that has, or names other groups than
            the layer can have.
    """
    named = config.quantized_paths or {}
    for path, quantization in named.items():
        if quantization and path in linears and f"{path}.scales" not in tensors:
            raise Mistake(
                f"tensor {path}.scales is missing: config.json says that {path} is quantized ({quantization})"
            )
    for path, linear in linears.items():
        scales = tensors.get(f"{path}.scales")
        if scales is None:
            continue
        quantization = named.get(path, config.quantization)
        if quantization is None:
            raise Mistake(f"{scales.where}: config.json has no quantization for {path}")
        try:
            linear.quantize(quantization)
        except ValueError as error:
            raise Mistake(f"config.json: quantization of {path}: {error}") from None
        factor = tensors.get(f"{path}.{GLOBAL_SCALE}")
        if factor is not None and ".experts." in path:
            linear.scale_globally(per_row=len(factor.shape) > 1)


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
    for name, tensor in tensors.items():
        path = parameter_name(name)
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


def parameters(config: ModelConfig) -> dict[str, int]:
    """Return how many weights there are by class. Norms and scalars, one in ten thousand, are left out."""
    hidden, layers, mlp = config.hidden_size, len(config.layers), 3 * config.hidden_size * config.intermediate_size
    queries = sum(2 * config.num_attention_heads * layer.head_dim for layer in config.layers)  # q_proj and o_proj
    keys = sum((2 if layer.sliding else 1) * layer.num_key_value_heads * layer.head_dim for layer in config.layers)
    return {
        "experts": layers * config.num_experts * 3 * hidden * config.moe_intermediate_size,
        "attention": hidden * (queries + keys),  # full layers have no v_proj
        "dense MLP": layers * mlp,
        "router": layers * (hidden * config.num_experts + hidden + config.num_experts),  # proj and two scales
        "self-conditioning": mlp,
        "embedding": config.vocab_size * hidden,
    }
