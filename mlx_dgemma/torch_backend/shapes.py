"""The shapes of a pass: as they are on a CPU; on a GPU rounded up, so that few are captured as graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..seam.model import Row, Text
from .cache import TorchCache
from .graphs import Inputs
from .tokens import Tokens
from .vocabulary import conditioning_of

Pending = tuple[Text, TorchCache]  # tokens, and the cache that they are to be encoded into


def power_of_two(n: int) -> int:
    """The smallest that is at least n; 0 for 0."""
    return 1 << (n - 1).bit_length() if n else 0


@dataclass(frozen=True)
class Shapes:
    texts: int
    text: int  # tokens of each
    canvases: int
    canvas: int
    context: int  # tokens of text that any of them sees, at most

    @classmethod
    def of(cls, texts: Sequence[Pending], rows: Sequence[Row], rounded: Sequence[int] | None, least: int) -> Shapes:
        """`rounded`: the lengths that texts may be padded to, ascending; None: nothing is padded. `least`: tokens of a
        rounded context, at least."""
        lengths = {id(cache): cache.length + len(text) for text, cache in texts}
        seen = max([*lengths.values(), *(row.cache.length for row in rows)])
        text = max((len(text) for text, _ in texts), default=0)
        canvas = max((len(row.canvas) for row in rows), default=0)
        if rounded is None:
            return cls(len(texts), text, len(rows), canvas, seen)
        text = next(n for n in (0, *rounded) if n >= text)
        many = [power_of_two(n) for n in (len(texts), len(rows), canvas, max(seen, least))]
        return cls(many[0], text, *many[1:])

    def inputs(self, texts: Sequence[Pending], rows: Sequence[Row], hidden_size: int, like: torch.Tensor) -> Inputs:
        """Make the tensors that `blocks` and `Network.forward` read. Padding is token 0 of no text; canvases of padding
        see themselves. Soft embeddings have the dtype and device of `like`."""
        inputs: Inputs = {}
        if self.texts:
            ids = np.zeros((self.texts, self.text), np.int64)
            where = np.zeros((3, self.texts), np.int32)
            for i, (text, cache) in enumerate(texts):
                ids[i, : len(text)] = text.tokens
                where[:, i] = cache.length, len(text), cache.slot
            inputs |= {"text ids": torch.from_numpy(ids), "text where": torch.from_numpy(where)}
        if self.canvases:
            lengths = {id(cache): cache.length + len(text) for text, cache in texts}
            ids = np.zeros((self.canvases, self.canvas), np.int64)
            certain = np.full_like(ids, -1)
            where = np.tile(np.array([[0], [self.canvas], [0]], np.int32), (1, self.canvases))
            soft = like.new_zeros((self.canvases, self.canvas, hidden_size))
            for i, row in enumerate(rows):
                length, conditioning = len(row.canvas), conditioning_of(row)
                ids[i, :length] = row.canvas
                where[:, i] = lengths.get(id(row.cache), row.cache.length), length, row.cache.slot
                if conditioning.soft is not None:
                    soft[i, :length] = conditioning.soft
                if conditioning.certain is not None:
                    certain[i, :length] = conditioning.certain
            inputs |= {"canvas ids": torch.from_numpy(ids), "canvas where": torch.from_numpy(where)}
            inputs |= {"soft": soft.flatten(0, 1), "certain": torch.from_numpy(certain.ravel())}
        return inputs

    def blocks(self, inputs: Inputs) -> list[Tokens]:
        return [
            Tokens(inputs[f"{name} ids"], *inputs[f"{name} where"], causal=name == "text", context=self.context)
            for name in ("text", "canvas")
            if f"{name} ids" in inputs
        ]
