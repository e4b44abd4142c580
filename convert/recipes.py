"""How each layer is stored: functions from its path (`model.decoder.layers.0.mlp.up_proj`) to a Quantization or None.

A recipe sees names only. Whether a group divides a layer's rows is for `stream` to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from ..config import Quantization

Recipe = Callable[[str], Quantization | None]
BITS = (2, 3, 4, 5, 6, 8)  # of affine
GROUP_SIZES = (32, 64, 128)
_DENSE = (".embed_tokens", ".mlp.gate_proj", ".mlp.up_proj", ".mlp.down_proj")


def plain(path: str) -> None:
    """No layer is quantized."""


def _mlx_community(path: str, *, bits: int, group_size: int) -> Quantization:
    often_read = path.endswith(_DENSE) or ".self_attn." in path or ".router." in path
    return Quantization(bits=8 if often_read else bits, group_size=group_size)


def mlx_community(bits: int = 4, group_size: int = 64) -> Recipe:
    """As mlx-community's conversions: `bits` for experts and self-conditioning, 8 for what every token reads.

    Their groups of the 8-bit layers are always 64; here `group_size` holds for all.
    """
    return partial(_mlx_community, bits=bits, group_size=group_size)


def entries(default: Quantization, layers: Mapping[str, Quantization | None]) -> dict[str, Any]:
    """`quantization` of config.json: the default, and every layer that is stored otherwise; False is not quantized."""
    own = {path: asdict(q) if q else False for path, q in layers.items() if q != default}
    return {**asdict(default), **own}
