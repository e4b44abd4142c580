"""The blocks of a text, and what is known of each before its first pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..checkpoint.config import ModelConfig
from ..errors import Mistake


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is known of a block before its first pass. Arrays of its canvas's length."""

    tokens: np.ndarray  # int32: where the canvas starts from, -1 for noise
    fixed: np.ndarray | None = None  # bool: these tokens stay
    hint: np.ndarray | None = None  # int32: what the first pass hears, -1 for nothing
    allowed: np.ndarray | None = None  # int32: indices of token sets, -1 for all
    before: Sequence[int] = ()  # known text between the last block and this one: encoded, not denoised
    said: int | None = None  # how many tokens of the block before stand; 0: it is written again; None: all
    encoded: bool = False  # and those are in the cache already
    note: str | None = None  # why, for the user to know


class Layout(Protocol):
    """The blocks of a text."""

    def first(self) -> Given: ...

    def after(self, draft: np.ndarray) -> Given | str:
        """The block that follows one that says `draft`, or why none does: "stop" (the text ends) or "length"."""


class Open:
    """Nothing but noise, block after block, until a stop token or until canvases cover `max_tokens`."""

    def __init__(self, config: ModelConfig, room: int, max_tokens: int, canvas_length: int | str | None = None):
        if isinstance(canvas_length, int) and canvas_length > config.canvas_length:
            raise Mistake(f"need canvas_length <= {config.canvas_length}, the model's, got {canvas_length}")
        self.config, self.room, self.left = config, room, max_tokens
        self.canvas_length = canvas_length

    def width(self) -> int:
        """Of the next canvas: as asked; "auto": the narrowest of a quarter, a half and the whole that covers what is
        left; by default the whole, which is what the checkpoint was trained on."""
        full = self.config.canvas_length
        if self.canvas_length != "auto":
            return int(self.canvas_length or full)
        return next((n for n in (full // 4, full // 2) if n >= self.left), full)

    def first(self) -> Given:
        return Given(tokens=np.full(self.width(), -1, np.int32))

    def after(self, draft: np.ndarray) -> Given | str:
        self.left, self.room = self.left - len(draft), self.room - len(draft)
        if np.isin(draft, self.config.stop_ids).any():
            return "stop"
        return "length" if self.left <= 0 or self.room < self.width() else self.first()
