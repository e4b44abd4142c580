"""Texts by denoising, with DiffusionGemma: `load` a checkpoint, `stream_generate` an answer, as an `Ask` says.

No name here is a command's, and nothing heavy is imported before it is used.
"""

import importlib

from . import early as early  # before what takes long
from .load import load  # at once, or the module of the same name would stand in its place
from .version import __version__ as __version__

__all__ = ["Ask", "Conversation", "Row", "Sampling", "load", "stream_generate"]

_HOME = {
    "Ask": "writing.ask",
    "Conversation": "writing.conversation",
    "Row": "seam.model",
    "Sampling": "writing.sampling",
    "stream_generate": "writing.answer",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
