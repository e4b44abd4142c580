"""The encoded text of many sequences: slots of one pool, K and V of every layer.

The pool has as many slots as caches held text at once, and each has room for the longest text so far. Full layers keep
everything; sliding layers the last `sliding_window - 1` tokens, which is what a canvas or a next token sees of them, a
canvas more, so that a committed block can be taken back, and what one pass may write: rings, position p at p % room.
Behind each slot's room is one place more, where padding is written to. Buffers stay where they are until the pool has
to grow, so that what was captured with their addresses stays good.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.config import LayerConfig, ModelConfig
from ..checkpoint.memory import gigabytes
from ..checkpoint.whole_file import whole_file
from ..seam.shared import check_saved, check_trim, checksum
from . import device as devices

MIN_ROOM = {"cpu": 64, "cuda": 4096}  # tokens of a slot's room, and of a context that passes are captured for


class Pool:
    """The K and V of all caches of one model.

    Attributes:
        layers: keys and values of each layer, [slots, room + 1, G, D].
        moved: called before the buffers move.
    """

    def __init__(
        self, config: ModelConfig, layers: list[LayerConfig], dtype: torch.dtype, device: torch.device, chunk: int
    ):
        self.config, self.kinds, self.dtype, self.device = config, layers, dtype, device
        self.kept = config.sliding_window - 1 + config.canvas_length
        self.ring = self.kept + max(chunk, config.canvas_length)
        self.slots = self.capacity = 0
        self.free: list[int] = []
        self.caches: weakref.WeakSet[TorchCache] = weakref.WeakSet()  # that have a slot
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.moved: Callable[[], None] = lambda: None

    def room(self, kind: LayerConfig, capacity: int) -> int:
        return min(capacity, self.ring) if kind.sliding else capacity

    def reserve(self, caches: Sequence[TorchCache], tokens: int) -> None:
        """Give each of `caches` a slot, and all slots room for texts of so many tokens. The buffers move at most once,
        and not while a slot is free."""
        waiting = [cache for cache in dict.fromkeys(caches) if cache.slot is None]
        if self.slots and len(waiting) > len(self.free):
            gc.collect()  # a dropped cache may wait in a cycle, as after an exception
        slots, capacity = self.slots, self.capacity
        if len(waiting) > len(self.free):
            slots += max(len(waiting) - len(self.free), slots // 4)
        if tokens > capacity:
            room = max(tokens, capacity + capacity // 2, MIN_ROOM[self.device.type])
            capacity = -(-room // 64) * 64
        if (slots, capacity) != (self.slots, self.capacity):
            self._resize(slots, capacity)
        for cache in waiting:
            cache.slot = self.free.pop()
            self.caches.add(cache)
            weakref.finalize(cache, self.free.append, cache.slot)

    def nbytes(self, slots: int, capacity: int) -> int:
        per = (2 * k.num_key_value_heads * k.head_dim * (self.room(k, capacity) + 1) for k in self.kinds)
        return slots * sum(per) * self.dtype.itemsize

    def _resize(self, slots: int, capacity: int) -> None:
        self.moved()
        needed = gigabytes(self.nbytes(slots, capacity))
        with devices.memory_for(self.device, f"{slots} caches of {capacity} tokens ({needed})"):
            layers = []
            for index, kind in enumerate(self.kinds):
                shape = (slots, self.room(kind, capacity) + 1, kind.num_key_value_heads, kind.head_dim)
                pair = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
                for cache in self.caches:
                    for old, new in zip(cache.text(index), pair, strict=True):
                        new[cache.slot, cache.places(index, shape[1] - 1)] = old
                if self.layers:
                    self.layers[index] = pair  # the old ones can go
                layers.append(pair)
        self.free += range(self.slots, slots)
        self.layers, self.slots, self.capacity = layers, slots, capacity


class TorchCache:
    """Implements `seam.model.Cache`. It takes a slot of the pool when text is first written to it or a canvas first
    stands behind it: a cache that is made and not used costs nothing."""

    def __init__(self, pool: Pool, fingerprint: Callable[[], str], capacity: int = 0):
        """`fingerprint` of the model: a cache is only good for the weights that made it."""
        self.pool, self.fingerprint = pool, fingerprint
        self.capacity = capacity + pool.config.canvas_length  # tokens to make room for when it takes its slot
        self.slot: int | None = None
        self.length = 0
        self.first = 0  # of the tokens that sliding layers still have
        self.hidden: Tensor | None = None  # [n, D] of the last tokens: what the head predicts from

    def places(self, index: int, room: int) -> Tensor:
        """Places of the tokens that layer `index` retains, in a slot with `room`."""
        first = self.first if self.pool.kinds[index].sliding else 0
        return torch.arange(first, self.length, device=self.pool.device) % room

    def text(self, index: int) -> list[Tensor]:
        """Keys and values [n, G, D] that layer `index` retains."""
        return [buffer[self.slot, self.places(index, buffer.shape[1] - 1)] for buffer in self.pool.layers[index]]

    def fill(self, index: int, text: Sequence[Tensor]) -> None:
        """Write into layer `index` the keys and values that `text` returned."""
        for buffer, array in zip(self.pool.layers[index], text, strict=True):
            buffer[self.slot, self.places(index, buffer.shape[1] - 1)] = array

    @property
    def nbytes(self) -> int:
        """Bytes of the text; the slot has room for more."""
        tokens = ((self.length - self.first if k.sliding else self.length, k) for k in self.pool.kinds)
        numbers = sum(2 * n * k.num_key_value_heads * k.head_dim for n, k in tokens)
        return numbers * self.pool.dtype.itemsize + (0 if self.hidden is None else self.hidden.nbytes)

    def advance(self, hidden: Tensor) -> None:
        """Count in the tokens that a pass wrote; `hidden` [n, D] are their last hidden states."""
        self.length += len(hidden)
        self.first = max(self.first, self.length - self.pool.kept)
        hidden = hidden if self.hidden is None else torch.cat((self.hidden, hidden))
        self.hidden = hidden[-(self.pool.config.canvas_length + 1) :].clone()

    def copy(self) -> TorchCache:
        fork = TorchCache(self.pool, self.fingerprint)
        fork.capacity = self.capacity
        if self.slot is None:
            return fork
        self.pool.reserve([fork], self.length)
        fork.length, fork.first, fork.hidden = self.length, self.first, self.hidden
        for index in range(len(self.pool.layers)):
            fork.fill(index, self.text(index))
        return fork

    def trim(self, tokens: int) -> None:
        check_trim(tokens, self.length, self.length - self.first, self.pool.config.sliding_window - 1)
        self.length -= tokens
        if self.hidden is not None and tokens:
            self.hidden = self.hidden[:-tokens] if tokens < len(self.hidden) else None

    def save(self, path: str | Path) -> None:
        self.pool.reserve([self], self.length)
        arrays = {} if self.hidden is None else {"hidden": self.hidden.contiguous()}
        for index in range(len(self.pool.kinds)):
            keys, values = self.text(index)
            arrays |= {f"{index}.keys": keys, f"{index}.values": values}
        about = {"length": str(self.length), "first": str(self.first), "model": self.fingerprint()}
        about["checksum"] = checksum(about, _bytes(arrays))
        try:
            with whole_file(Path(path)) as part:
                save_file(arrays, part, about)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from None

    def load(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing: no such saved cache")
        try:
            with safe_open(path, "pt", device=str(self.pool.device)) as file:
                metadata = file.metadata()
                length, first = int(metadata["length"]), int(metadata["first"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is no saved cache, or damaged: {error}") from None
        check_saved(path, metadata, self.fingerprint(), _bytes(arrays))
        self.pool.reserve([self], max(self.capacity, length + self.pool.config.canvas_length))
        self.length, self.first, self.hidden = length, first, arrays.get("hidden")
        for index in range(len(self.pool.layers)):
            self.fill(index, (arrays[f"{index}.keys"], arrays[f"{index}.values"]))


def _bytes(arrays: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: array.contiguous().view(torch.uint8).cpu().numpy() for name, array in arrays.items()}
