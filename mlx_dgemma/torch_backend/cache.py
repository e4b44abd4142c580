"""The encoded text of many sequences: slots of one pool, K and V of every layer.

The pool has as many slots as caches were alive at once, and each has room for the longest text so far. Full layers keep
everything; sliding layers the last `sliding_window - 1` tokens, which is what a canvas or a next token sees of them, a
canvas more, so that a committed block can be taken back, and what one pass may write: rings, position p at p % room.
Behind each slot's room is one place more, where padding is written to. Buffers stay where they are until the pool has
to grow, so that what was captured with their addresses stays good.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.config import LayerConfig, ModelConfig
from ..checkpoint.folder import gigabytes
from . import device as devices

LEAST = {"cpu": 64, "cuda": 4096}  # tokens of a slot's room, and of a context that passes are captured for


class Pool:
    def __init__(
        self, config: ModelConfig, layers: list[LayerConfig], dtype: torch.dtype, device: torch.device, chunk: int
    ):
        self.config, self.kinds, self.dtype, self.device = config, layers, dtype, device
        self.kept = config.sliding_window - 1 + config.canvas_length
        self.ring = self.kept + max(chunk, config.canvas_length)
        self.slots = self.capacity = 0
        self.free: list[int] = []
        self.caches: weakref.WeakSet[TorchCache] = weakref.WeakSet()
        self.layers: list[tuple[Tensor, Tensor]] = []  # of each: keys and values [slots, room + 1, G, D]
        self.moved: Callable[[], None] = lambda: None  # called before buffers are elsewhere

    def room(self, kind: LayerConfig, capacity: int) -> int:
        return min(capacity, self.ring) if kind.sliding else capacity

    def take(self, owner: TorchCache) -> int:
        """A slot, the owner's while it lives."""
        if not self.free:
            self._resize(max(1, 2 * self.slots), self.capacity)
        slot = self.free.pop()
        self.caches.add(owner)
        weakref.finalize(owner, self.free.append, slot)
        return slot

    def require(self, tokens: int) -> None:
        """Room for texts of so many tokens."""
        if tokens > self.capacity:
            room = max(tokens, self.capacity + self.capacity // 2, LEAST[self.device.type])
            self._resize(self.slots, -(-room // 64) * 64)

    def nbytes(self, slots: int, capacity: int) -> int:
        per = (2 * k.num_key_value_heads * k.head_dim * (self.room(k, capacity) + 1) for k in self.kinds)
        return slots * sum(per) * self.dtype.itemsize

    def _resize(self, slots: int, capacity: int) -> None:
        self.moved()
        needed = gigabytes(self.nbytes(slots, capacity))
        with devices.enough(self.device, f"{slots} caches of {capacity} tokens ({needed})"):
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
    """Implements `interface.Cache`."""

    def __init__(self, pool: Pool, fingerprint: str, capacity: int = 0):
        self.pool = pool
        self.fingerprint = fingerprint  # of the model; a cache is only good for the weights that made it
        self.length = 0
        self.first = 0  # of the tokens that sliding layers still have
        self.hidden: Tensor | None = None  # [n, D] of the last tokens: what the head says comes next
        pool.require(capacity + pool.config.canvas_length)
        self.slot = pool.take(self)

    def places(self, index: int, room: int) -> Tensor:
        """Of the tokens that layer `index` retains, in a slot with `room`."""
        first = self.first if self.pool.kinds[index].sliding else 0
        return torch.arange(first, self.length, device=self.pool.device) % room

    def text(self, index: int) -> Iterator[Tensor]:
        """Keys and values [n, G, D] that layer `index` retains."""
        for buffer in self.pool.layers[index]:
            yield buffer[self.slot, self.places(index, buffer.shape[1] - 1)]

    @property
    def nbytes(self) -> int:
        """Of the text; the slot has room for more."""
        tokens = ((self.length - self.first if k.sliding else self.length, k) for k in self.pool.kinds)
        numbers = sum(2 * n * k.num_key_value_heads * k.head_dim for n, k in tokens)
        return numbers * self.pool.dtype.itemsize + (0 if self.hidden is None else self.hidden.nbytes)

    def advance(self, hidden: Tensor) -> None:
        """After a pass wrote the tokens of `hidden` [n, D], their last hidden states."""
        self.length += len(hidden)
        self.first = max(self.first, self.length - self.pool.kept)
        hidden = hidden if self.hidden is None else torch.cat((self.hidden, hidden))
        self.hidden = hidden[-(self.pool.config.canvas_length + 1) :].clone()

    def copy(self) -> TorchCache:
        fork = TorchCache(self.pool, self.fingerprint)
        fork.length, fork.first, fork.hidden = self.length, self.first, self.hidden
        for index, buffers in enumerate(self.pool.layers):
            places = self.places(index, buffers[0].shape[1] - 1)
            for buffer in buffers:
                buffer[fork.slot, places] = buffer[self.slot, places]
        return fork

    def trim(self, tokens: int) -> None:
        if not 0 <= tokens <= self.length:
            raise ValueError(f"cannot forget {tokens} of {self.length} tokens")
        left, retained = self.length - tokens, self.length - self.first
        needed = min(self.pool.config.sliding_window - 1, left)
        if retained - tokens < needed:
            raise ValueError(
                f"cannot forget {tokens} tokens: the sliding layers keep {retained}, "
                f"and a text of {left} needs {needed} of them; encode it anew"
            )
        self.length = left
        if self.hidden is not None and tokens:
            self.hidden = self.hidden[:-tokens] if tokens < len(self.hidden) else None

    def save(self, path: str | Path) -> None:
        path = Path(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.safetensors")
        arrays = {} if self.hidden is None else {"hidden": self.hidden.contiguous()}
        for index in range(len(self.pool.kinds)):
            arrays |= {f"{index}.{kind}": own for kind, own in zip(("keys", "values"), self.text(index), strict=True)}
        try:
            save_file(arrays, part, {"length": str(self.length), "first": str(self.first), "model": self.fingerprint})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def load(self, path: str | Path) -> None:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} is missing: no such saved cache")
        try:
            with safe_open(path, "pt", device=str(self.pool.device)) as file:
                metadata = file.metadata()
                length, first, model = int(metadata["length"]), int(metadata["first"]), metadata["model"]
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is no saved cache, or damaged: {error}") from None
        if model != self.fingerprint:
            raise ValueError(f"{path} was made by another model: its text must be encoded anew")
        self.pool.require(length + self.pool.config.canvas_length)
        self.length, self.first, self.hidden = length, first, arrays.get("hidden")
        for index, buffers in enumerate(self.pool.layers):
            for kind, buffer in zip(("keys", "values"), buffers, strict=True):
                buffer[self.slot, self.places(index, buffer.shape[1] - 1)] = arrays[f"{index}.{kind}"]
