"""The shapes of a pass. On a CPU each text and each canvas is as long as it is; on a GPU they are padded to shapes of
which there are few, so that few are captured as graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

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
class Block:
    """Sequences of one length: texts if `causal`, else canvases."""

    causal: bool
    count: int
    length: int
    context: int  # tokens of text that any of them sees, at most


def _seen(texts: Sequence[Pending], rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Tokens of text that each of `texts` and of `rows` sees, those that this pass encodes included."""
    lengths = {id(cache): cache.length + len(text) for text, cache in texts}
    return [*lengths.values()], [lengths.get(id(row.cache), row.cache.length) for row in rows]


@dataclass(frozen=True)
class Shapes:
    blocks: tuple[Block, ...]  # texts first: a canvas of the same pass attends to its text

    @classmethod
    def exact(cls, texts: Sequence[Pending], rows: Sequence[Row]) -> Shapes:
        """Each text and each canvas is a block."""
        encoded, seen = _seen(texts, rows)
        blocks = [Block(True, 1, len(text), n) for (text, _), n in zip(texts, encoded, strict=True)]
        return cls((*blocks, *(Block(False, 1, len(row.canvas), n) for row, n in zip(rows, seen, strict=True))))

    @classmethod
    def rounded(cls, texts: Sequence[Pending], rows: Sequence[Row], lengths: Sequence[int], least: int) -> Shapes:
        """All texts are a block, and all canvases are one. `lengths`, ascending: those that texts are padded to.
        `least`: tokens of a context, at least."""
        context = power_of_two(max(least, *chain(*_seen(texts, rows))))
        blocks = []
        if texts:
            longest = max(len(text) for text, _ in texts)
            length = next(n for n in lengths if n >= longest)
            blocks.append(Block(True, power_of_two(len(texts)), length, context))
        if rows:
            length = power_of_two(max(len(row.canvas) for row in rows))
            blocks.append(Block(False, power_of_two(len(rows)), length, context))
        return cls(tuple(blocks))

    def starts(self, *, causal: bool) -> list[int]:
        """Where each text, or each canvas, begins among all tokens of such; behind them how many there are."""
        lengths = chain(*([block.length] * block.count for block in self.blocks if block.causal == causal))
        return [*accumulate(lengths, initial=0)]

    def inputs(self, texts: Sequence[Pending], rows: Sequence[Row], hidden_size: int, like: torch.Tensor) -> Inputs:
        """Make the tensors that `tokens` and `Network.forward` read. Padding is token 0 of no text; canvases of padding
        see themselves. Soft embeddings have the dtype and device of `like`."""
        inputs: Inputs = {}
        given = {True: [(text.tokens, cache.length, cache.slot) for text, cache in texts]}
        seen = zip(rows, _seen(texts, rows)[1], strict=True)
        given[False] = [(row.canvas, start, row.cache.slot) for row, start in seen]
        waiting = {causal: iter(sequences) for causal, sequences in given.items()}
        for number, block in enumerate(self.blocks):
            ids = np.zeros((block.count, block.length), np.int64)
            where = np.zeros((3, block.count), np.int32)
            where[1] = 0 if block.causal else block.length
            for i, (tokens, start, slot) in zip(range(block.count), waiting[block.causal], strict=False):
                ids[i, : len(tokens)] = tokens
                where[:, i] = start, len(tokens), slot
            inputs |= {f"ids {number}": torch.from_numpy(ids), f"where {number}": torch.from_numpy(where)}
        if rows:
            *starts, total = self.starts(causal=False)
            certain, soft = np.full(total, -1), like.new_zeros((total, hidden_size))
            for start, row in zip(starts, rows, strict=False):
                canvas, conditioning = slice(start, start + len(row.canvas)), conditioning_of(row)
                if conditioning.soft is not None:
                    soft[canvas] = conditioning.soft
                if conditioning.certain is not None:
                    certain[canvas] = conditioning.certain
            inputs |= {"soft": soft, "certain": torch.from_numpy(certain)}
        return inputs

    def tokens(self, inputs: Inputs) -> list[Tokens]:
        return [
            Tokens(inputs[f"ids {i}"], *inputs[f"where {i}"], causal=block.causal, context=block.context)
            for i, block in enumerate(self.blocks)
        ]
