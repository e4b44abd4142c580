"""A checkpoint's tensor names -> ours, and which class of weights a parameter belongs to.

Ours are the published ones, with one exception that mlx-community's conversions make too: the fused experts are layers
with a `.weight`, so that scales can stand beside it.
"""

from __future__ import annotations

import re

# Kept in converted folders, for image input; the text model skips them here and nowhere else, and never reads them.
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
# Of each expert and projection in NVIDIA's checkpoint; mlx-vlm, too, keeps the name where the packed values are kept.
GLOBAL_SCALE = "weight_scale_2"
MODELOPT_EXPERT = re.compile(
    r"(?P<experts>.+\.experts)\.(?P<expert>\d+)\.(?P<projection>gate|up|down)_proj\.(?P<kind>weight|weight_scale|weight_scale_2)"
)
# Left out of every output, on purpose: scales of activations and of the K/V cache, which stay in the model's dtype
# here, and tables that are computed.
_DROPPED = (".input_scale", ".k_scale", ".v_scale", ".rotary_emb.inv_freq")
_CLASSES = (
    ("experts", ".experts."),
    ("attention", ".self_attn."),
    ("dense MLP", ".mlp."),
    ("router", ".router."),
    ("self-conditioning", ".self_conditioning."),
    ("embedding", ".embed_tokens."),
)
CLASSES = (*(name for name, _ in _CLASSES), "norms and scalars", "vision")


def is_vision(name: str) -> bool:
    return name.startswith(VISION)


def is_dropped(name: str) -> bool:
    return name.endswith(_DROPPED)


def parameter_name(name: str) -> str:
    return f"{name}.weight" if name.endswith(EXPERTS) else name


def published_name(path: str) -> str:
    """The other way round."""
    return path.removesuffix(".weight") if path.removesuffix(".weight").endswith(EXPERTS) else path


def weight_class(path: str) -> str:
    """One of CLASSES."""
    if is_vision(path):
        return "vision"
    if "norm." in path:
        return "norms and scalars"
    return next((name for name, part in _CLASSES if part in path), "norms and scalars")
