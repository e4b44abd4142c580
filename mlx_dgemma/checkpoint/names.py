"""Names of tensors: the checkpoint's -> the network's, and which class of weights a parameter belongs to.

The network's names are the published ones with one exception, which mlx-community's conversions make too: the fused
experts are layers with a `.weight`, so that scales can stand beside it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

# For image input. Converted folders keep these tensors; the text model leaves them out and never reads them.
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
# A factor for each expert and projection in NVIDIA's checkpoint. Where packed values are kept, mlx-vlm keeps its name.
GLOBAL_SCALE = "weight_scale_2"
MODELOPT_EXPERT = re.compile(
    r"(?P<experts>.+\.experts)\.(?P<expert>\d+)\.(?P<projection>gate|up|down)_proj\.(?P<kind>weight|weight_scale|weight_scale_2)"
)
# Left out of every output: scales of activations and of the K/V cache, which stay in the model's dtype here, and tables
# that are computed.
DROPPED = (".input_scale", ".k_scale", ".v_scale", ".rotary_emb.inv_freq")
_CLASSES = {
    "experts": ".experts.",
    "attention": ".self_attn.",
    "dense MLP": ".mlp.",
    "router": ".router.",
    "self-conditioning": ".self_conditioning.",
    "embedding": ".embed_tokens.",
}
CLASSES = (*_CLASSES, "norms and scalars", "vision")


def is_vision(name: str) -> bool:
    """Return whether the tensor belongs to image input."""
    return name.startswith(VISION)


def parameter_name(name: str) -> str:
    """Return the network's name of a tensor in a checkpoint."""
    return f"{name}.weight" if name.endswith(EXPERTS) else name


def published_name(path: str) -> str:
    """Return the published checkpoint's name of a parameter."""
    return path.removesuffix(".weight") if path.removesuffix(".weight").endswith(EXPERTS) else path


def weight_class(path: str) -> str:
    """Return which of CLASSES a parameter belongs to."""
    if is_vision(path):
        return "vision"
    if "norm." in path:
        return "norms and scalars"
    return next((name for name, part in _CLASSES.items() if part in path), "norms and scalars")


def by_class(numbers: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sum up numbers of parameters, each with the parameter's path -> class of weights -> sum."""
    sums: dict[str, int] = defaultdict(int)
    for path, number in numbers:
        sums[weight_class(path)] += number
    return dict(sums)
