"""Runs in mlx-vlm's own environment, for test_convert_mlx_vlm.py: `convert SRC DST MODE BITS`, `logits FOLDER FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_vlm.utils import load_config, load_model


class Processor:
    """Stands in for the real one, which wants the published tokenizer."""

    def save_pretrained(self, folder) -> None:
        pass


def convert(source: str, made: str, mode: str, bits: str) -> None:
    import importlib

    theirs = importlib.import_module("mlx_vlm.convert")  # the package has a function of that name
    theirs.fetch_from_hub = lambda path, **_: (load_model(path, lazy=True), load_config(path), Processor())
    theirs.create_model_card = lambda *_: None
    theirs.convert(source, made, quantize=mode != "none", q_group_size=None, q_bits=int(bits), q_mode=mode)


def logits(folder: str, file: str) -> None:
    """Of the first step of tests/support/conversions.py: `logits`."""
    model = load_model(Path(folder))
    cache = model.diffusion_prefill_cache(mx.array([[3, 4, 5]]))
    cache = cache[1] if isinstance(cache, tuple) else cache
    canvas = mx.arange(model.config.canvas_length)[None]
    np.save(file, np.array(model.diffusion_decoder_logits(canvas, cache=cache)[0].astype(mx.float32)))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    {"convert": convert, "logits": logits}[sys.argv[1]](*sys.argv[2:])
