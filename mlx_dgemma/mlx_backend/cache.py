"""The encoded text of one sequence: K and V of every layer.

Full layers keep everything; sliding layers the last `sliding_window - 1` tokens, which is what a canvas or a next token
sees of them (transformers: DynamicSlidingWindowLayer), and a canvas more, so that a committed block can be taken back.
They lie in buffers with room behind them: new tokens are written there, a canvas too, which the next pass overwrites.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint.config import ModelConfig
from ..checkpoint.whole_file import whole_file
from ..seam.shared import check_saved, check_trim, checksum


class LayerCache:
    """One layer's buffers, [1, H, room, D] or None while empty; tokens [first, end) of them are the text.

    MLX writes in place where nobody else holds the buffer, and into a copy of it otherwise: so a fork shares buffers
    until one of the two writes.
    """

    def __init__(self, canvas: int, seen: int | None, kept: int | None, capacity: int = 0):
        self.canvas = canvas  # tokens of a canvas, at most
        self.seen = seen  # past tokens that a canvas or a next token sees; None: all
        self.kept = kept  # past tokens that are kept, at least; None: all
        self.capacity = capacity  # tokens that the first buffer has room for
        self.first = self.end = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def retained(self) -> int:
        return self.end - self.first

    def text(self) -> dict[str, mx.array]:
        """`keys` and `values` of the retained tokens."""
        if self.retained == 0:
            return {}
        kept = slice(self.first, self.end)
        return {"keys": self.keys[:, :, kept], "values": self.values[:, :, kept]}

    def write(self, keys: mx.array, values: mx.array, *, text: bool) -> slice:
        """Write new tokens behind the text: more `text`, or a canvas. Return the span of the past that they see and of
        themselves: its `view` is right to the end of the pass, even when a canvas is written behind it."""
        count = keys.shape[2]
        self._make_room(keys, values, count, count + self.canvas if text else count)
        start, stop = self.first if self.seen is None else max(self.first, self.end - self.seen), self.end + count
        # New handles: a fork has other handles of the same buffers.
        self.keys, self.values = self.keys[...], self.values[...]
        self.keys[:, :, self.end : stop] = keys
        self.values[:, :, self.end : stop] = values
        if text:
            self.end = stop
            self.first = self.first if self.kept is None else max(self.first, stop - self.kept)
        return slice(start, stop)

    def view(self, span: slice) -> tuple[mx.array, mx.array]:
        """Keys and values [1, H, past + n, D] of a span that `write` gave."""
        return self.keys[:, :, span], self.values[:, :, span]

    def _make_room(self, keys: mx.array, values: mx.array, count: int, needed: int) -> None:
        """`needed`: the `count` tokens and those that this pass may write behind them. Buffers must not move within a
        pass."""
        room = 0 if self.keys is None else self.keys.shape[2]
        if self.end + needed <= room:
            return
        if self.kept is None:
            room = max(self.end + needed, self.capacity, room + room // 2)
        else:  # twice the new tokens: then the text is moved to the front in every other pass at most
            room = min(self.kept, self.retained) + 2 * max(count, self.canvas)
        text, like = self.text(), {"keys": keys, "values": values}
        self.keys, self.values = (_buffer(array, room, text.get(kind)) for kind, array in like.items())
        self.first, self.end = 0, self.retained

    def trim(self, tokens: int) -> None:
        self.end = max(self.first, self.end - tokens)

    def fill(self, arrays: dict[str, mx.array]) -> None:
        """Replace the buffers by the arrays that `text` gave."""
        self.keys, self.values, self.first = arrays.get("keys"), arrays.get("values"), 0
        self.end = 0 if self.keys is None else self.keys.shape[2]


def _buffer(like: mx.array, room: int, text: mx.array | None) -> mx.array:
    """Zeros [1, H, room, D] in the shape and dtype of `like`, with `text` in front."""
    buffer = mx.zeros((*like.shape[:2], room, like.shape[3]), dtype=like.dtype)
    if text is not None:
        buffer[:, :, : text.shape[2]] = text
    return buffer


class MLXCache:
    """Implements `seam.model.Cache`."""

    def __init__(self, config: ModelConfig, fingerprint: Callable[[], str], capacity: int | None = None):
        """`fingerprint` names the weights that make this cache, which serves no others. It is called when the cache is
        saved or loaded."""
        self.config = config
        self.fingerprint = fingerprint
        self.length = 0
        seen, canvas = config.sliding_window - 1, config.canvas_length
        full, sliding = (
            LayerCache(canvas, None, None, (capacity or 0) + canvas),
            LayerCache(canvas, seen, seen + canvas),
        )
        self.layers = [copy(sliding if layer.sliding else full) for layer in config.layers]
        self.hidden: mx.array | None = None  # [n, D], the last of them: of a canvas and one more token at most

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays that a pass over this cache computes."""
        buffers = [buffer for layer in self.layers for buffer in (layer.keys, layer.values)]
        return [array for array in (*buffers, self.hidden) if array is not None]

    def _text(self) -> dict[str, mx.array]:
        named = {f"{i}.{kind}": array for i, layer in enumerate(self.layers) for kind, array in layer.text().items()}
        return named if self.hidden is None else {**named, "hidden": self.hidden}

    @property
    def nbytes(self) -> int:
        """Bytes of the text; the buffers have room for more."""
        return sum(array.nbytes for array in self._text().values())

    def advance(self, hidden: mx.array) -> None:
        """Count n tokens that the layers have appended; `hidden` [n, D] are their last hidden states, from which the
        head predicts the next token."""
        self.length += hidden.shape[0]
        states = hidden if self.hidden is None else mx.concatenate([self.hidden, hidden])
        self.hidden = states[-(self.config.canvas_length + 1) :]

    def copy(self) -> MLXCache:
        fork = copy(self)
        fork.layers = [copy(layer) for layer in self.layers]
        return fork

    def trim(self, tokens: int) -> None:
        for layer in self.layers:
            check_trim(tokens, self.length, layer.retained, self.length if layer.seen is None else layer.seen)
        for layer in self.layers:
            layer.trim(tokens)
        self.length -= tokens
        if self.hidden is not None and tokens:
            self.hidden = self.hidden[:-tokens] if tokens < self.hidden.shape[0] else None

    def save(self, path: str | Path) -> None:
        arrays, about = self._text(), {"length": str(self.length), "model": self.fingerprint()}
        try:
            with whole_file(Path(path), ".safetensors") as part:
                mx.save_safetensors(str(part), arrays, about | {"checksum": checksum(about, _bytes(arrays))})
        except RuntimeError as error:  # MLX's, where the disk takes no more
            raise OSError(f"{path} cannot be written: {error}") from None

    def load(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing: no such saved cache")
        try:
            arrays, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
            length = int(metadata["length"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no saved cache, or damaged: {error}") from None
        check_saved(path, metadata, self.fingerprint(), _bytes(arrays))
        self.length, self.hidden = length, arrays.get("hidden")
        for i, layer in enumerate(self.layers):
            layer.fill({kind: arrays[f"{i}.{kind}"] for kind in ("keys", "values") if f"{i}.{kind}" in arrays})


def _bytes(arrays: dict[str, mx.array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(mx.contiguous(array).view(mx.uint8)) for name, array in arrays.items()}
