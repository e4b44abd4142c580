"""PEFT's adapters, as TRL, Unsloth and NeMo leave them: adapter_model.safetensors.

transformers holds the weights that encoder and decoder share twice, so PEFT makes two pairs of each. Here there is one:
it is written twice, and read where both are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Mistake
from .adapter import CONFIG, Adapter, read_floats

FILE = "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<path>model\..+)\.lora_(?P<side>[AB])\.weight")
_ENCODER, _DECODER = "model.encoder.language_model.", "model.decoder."
_MUST_BE = {"use_dora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False}


def read(folder: Path, about: Mapping[str, Any]) -> Adapter:
    """Read a folder whose adapter_config.json is `about`. Mistake names what is not supported."""
    where = folder / CONFIG
    for name, expected in _MUST_BE.items():
        if about.get(name) not in (None, expected):
            raise Mistake(f"{where}: {name} = {about[name]!r} is not supported, only {expected!r}")
    try:
        rank, alpha = int(about["r"]), float(about["lora_alpha"])
    except (KeyError, TypeError, ValueError):
        raise Mistake(f"{where}: need numbers r and lora_alpha") from None
    views: dict[str, dict[str, np.ndarray]] = {_ENCODER: {}, _DECODER: {}}
    for name, array in read_floats(folder / FILE).items():
        match = _NAME.fullmatch(name)
        view = next((view for view in views if match and match["path"].startswith(view)), None)
        if view is None:
            raise Mistake(
                f"{folder / FILE}: {name} is of no linear of the text model: tune attention and the dense MLP"
            )
        path = match["path"].removeprefix(view)
        views[view][f"{_DECODER}{path}.lora_{match['side'].lower()}"] = np.ascontiguousarray(array.T)
    _check_views(folder, views[_ENCODER], views[_DECODER])
    scale = alpha / (rank**0.5 if about.get("use_rslora") else rank)
    return Adapter(views[_DECODER], scale, True, str(folder / FILE))


def _check_views(folder: Path, encoder: dict[str, np.ndarray], decoder: dict[str, np.ndarray]) -> None:
    """Mistake unless both halves have the same pairs, but for self-conditioning, which one of them has."""
    shared = {name for name in decoder if ".layers." in name}
    if not encoder and shared:
        raise Mistake(
            f"{folder} is of the decoder alone: NeMo means both halves, PEFT the decoder; if it is NeMo's, write its "
            f"pairs a second time, as base_model.model.{_ENCODER}layers"
        )
    other = shared ^ set(encoder) or {name for name in shared if not np.array_equal(decoder[name], encoder[name])}
    if other:
        raise Mistake(
            f"{folder}: encoder and decoder were tuned apart ({min(other)} differs), and here they are one: train "
            "again with python -m mlx_dgemma.train"
        )


def write(adapter: Adapter, folder: Path, base: str) -> None:
    """Write `adapter` for a model that PEFT knows as `base`. Mistake: PEFT has no such pairs."""
    from safetensors.numpy import save_file

    if not adapter.low_rank or any(array.ndim != 2 for array in adapter.tensors.values()):
        raise Mistake("PEFT's format has no experts and no whole weights: tune attention and the dense MLP for it")
    arrays, paths = {}, set()
    for name, array in adapter.tensors.items():
        path, _, side = name.rpartition(".lora_")
        paths.add(path)
        views = [path, path.replace(_DECODER, _ENCODER)] if ".layers." in path else [path]
        for view in views:
            arrays[f"base_model.model.{view}.lora_{side.upper()}.weight"] = np.ascontiguousarray(array.T)
    rank = next(array.shape[1] for name, array in adapter.tensors.items() if name.endswith("lora_a"))
    tails = "|".join(sorted({re.escape(path.removeprefix(_DECODER)) for path in paths}))
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": adapter.scale * rank, "lora_dropout": 0.0, "bias": "none"}
    about |= {"target_modules": rf".*\.(decoder|encoder\.language_model)\.({tails})", "base_model_name_or_path": base}
    folder.mkdir(parents=True)
    save_file(arrays, folder / FILE, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(about | {"inference_mode": True}, indent=2) + "\n", encoding="utf-8")
