"""A checkpoint's tensor names -> ours.

Ours are the published ones, with one exception that mlx-community's conversions make too: the fused experts are layers
with a `.weight`, so that scales can stand beside it.
"""

from __future__ import annotations

# Kept in converted folders, for image input; the text model skips them here and nowhere else, and never reads them.
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")


def is_vision(name: str) -> bool:
    return name.startswith(VISION)


def parameter_name(name: str) -> str:
    return f"{name}.weight" if name.endswith(EXPERTS) else name


def published_name(path: str) -> str:
    """The other way round."""
    return path.removesuffix(".weight") if path.removesuffix(".weight").endswith(EXPERTS) else path
