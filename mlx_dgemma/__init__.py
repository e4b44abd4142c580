"""DiffusionGemma, written by denoising: `load` a checkpoint, `stream_generate` from it.

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib

from .load import load  # at once, or the module of the same name would stand in its place

__version__ = "0.1.0"
__all__ = ["Conversation", "Row", "Sampling", "load", "stream_generate"]

_HOME = {
    "Conversation": "writing.conversation",
    "Row": "seam.model",
    "Sampling": "writing.sampling",
    "stream_generate": "writing.answer",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
