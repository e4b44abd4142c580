"""The encoded text of one sequence: K and V of every layer.

Arrays are replaced, never written into, so that a copy is a copy of references. Full layers keep everything; sliding
layers the last `sliding_window - 1` tokens, which is what a canvas or a next token sees of them (transformers:
DynamicSlidingWindowLayer), and a canvas more, so that a committed block can be taken back.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from ..config import ModelConfig


class LayerCache:
    """One layer's `keys` and `values`, [1, H, retained, D], or None while empty."""

    def __init__(self, seen: int | None, kept: int | None):
        self.seen = seen  # of the past, by whatever comes next; None: all
        self.kept = kept
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def retained(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def visible(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The past that new tokens see, and after it the new: [1, H, past + n, D]."""
        if self.keys is None or self.seen == 0:
            return keys, values
        start = 0 if self.seen is None else max(0, self.retained - self.seen)
        past = self.keys[:, :, start:], self.values[:, :, start:]
        return mx.concatenate([past[0], keys], axis=2), mx.concatenate([past[1], values], axis=2)

    def append(self, keys: mx.array, values: mx.array) -> None:
        if self.keys is not None:
            keys, values = mx.concatenate([self.keys, keys], axis=2), mx.concatenate([self.values, values], axis=2)
        start = 0 if self.kept is None else max(0, keys.shape[2] - self.kept)
        self.keys, self.values = keys[:, :, start:], values[:, :, start:]

    def trim(self, tokens: int) -> None:
        if self.keys is not None:
            end = max(0, self.retained - tokens)
            self.keys = self.keys[:, :, :end] if end else None
            self.values = self.values[:, :, :end] if end else None

    def copy(self) -> LayerCache:
        fork = LayerCache(self.seen, self.kept)
        fork.keys, fork.values = self.keys, self.values
        return fork


class MLXCache:
    """Implements `interface.Cache`."""

    def __init__(self, config: ModelConfig, fingerprint: str):
        seen, kept = config.sliding_window - 1, config.sliding_window - 1 + config.canvas_length
        self.config = config
        self.fingerprint = fingerprint  # of the model; a cache is only good for the weights that made it
        self.length = 0
        self.layers = [LayerCache(seen, kept) if layer.sliding else LayerCache(None, None) for layer in config.layers]
        self.hidden: mx.array | None = None  # [n, D] of the last tokens: what the head says comes next

    @property
    def arrays(self) -> dict[str, mx.array]:
        named = {
            f"{i}.{kind}": getattr(layer, kind) for i, layer in enumerate(self.layers) for kind in ("keys", "values")
        }
        return {name: array for name, array in {**named, "hidden": self.hidden}.items() if array is not None}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def advance(self, hidden: mx.array) -> None:
        """After the layers took in the tokens of `hidden` [n, D], their last hidden states."""
        self.length += hidden.shape[0]
        hidden = hidden if self.hidden is None else mx.concatenate([self.hidden, hidden])
        self.hidden = hidden[-(self.config.canvas_length + 1) :]

    def copy(self) -> MLXCache:
        fork = MLXCache(self.config, self.fingerprint)
        fork.length, fork.hidden = self.length, self.hidden
        fork.layers = [layer.copy() for layer in self.layers]
        return fork

    def trim(self, tokens: int) -> None:
        if not 0 <= tokens <= self.length:
            raise ValueError(f"cannot forget {tokens} of {self.length} tokens")
        left = self.length - tokens
        for layer in self.layers:
            if layer.seen is not None and layer.retained - tokens < min(layer.seen, left):
                raise ValueError(
                    f"cannot forget {tokens} tokens: the sliding layers keep {layer.retained}, "
                    f"and a text of {left} needs {min(layer.seen, left)} of them; encode it anew"
                )
        for layer in self.layers:
            layer.trim(tokens)
        self.length = left
        if self.hidden is not None:
            self.hidden = (
                self.hidden[:-tokens] if 0 < tokens < self.hidden.shape[0] else None if tokens else self.hidden
            )

    def save(self, path: str | Path) -> None:
        path = Path(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.safetensors")
        try:
            mx.save_safetensors(str(part), self.arrays, {"length": str(self.length), "model": self.fingerprint})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def load(self, path: str | Path) -> None:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} is missing: no such saved cache")
        try:
            arrays, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
            length, model = int(metadata["length"]), metadata["model"]
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no saved cache, or damaged: {error}") from None
        if model != self.fingerprint:
            raise ValueError(f"{path} was made by another model: its text must be encoded anew")
        mx.eval(arrays)
        self.length, self.hidden = length, arrays.get("hidden")
        for i, layer in enumerate(self.layers):
            layer.keys, layer.values = arrays.get(f"{i}.keys"), arrays.get(f"{i}.values")
