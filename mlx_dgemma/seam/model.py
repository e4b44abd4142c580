"""The seam: what the loop above needs from a model, and what a model below promises.

Everything above is Python and NumPy. Weights, logits and caches stay below: a canvas of 256 positions over 262,144
words is 268 MB of logits, so only a few vectors of the canvas's length cross. `tests/test_contract.py` holds each
implementation to what is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from ..checkpoint.config import ModelConfig
    from ..writing.sampling import Sampling


class Cache(Protocol):
    """The encoded text of one sequence: K and V of every layer, owned by the model that made it."""

    length: int
    """Tokens encoded so far."""
    nbytes: int
    """Bytes the K and V occupy."""

    def copy(self) -> Cache:
        """A fork: encoding into one leaves the other as it was."""

    def trim(self, tokens: int) -> None:
        """Forget the last `tokens`. A canvas's worth is always possible; more raises ValueError once the sliding
        layers have dropped what would be needed."""

    def save(self, path: str | Path) -> None:
        """Write safetensors, with the fingerprint of the model that made it."""

    def load(self, path: str | Path) -> None:
        """Replace what this cache holds. ValueError if the file was made by another model, or is damaged."""


@dataclass
class Row:
    """One canvas being denoised. The rows of one call may be at different steps, lengths and texts."""

    canvas: np.ndarray  # [L] int32, the tokens as they stand
    cache: Cache  # the text already encoded
    temperature: float
    uniforms: np.ndarray  # [L] float32 in [0, 1): this pass's draw, one number a position
    pending: Sequence[int] = ()  # tokens not yet in the cache: encoded first, in the same pass
    self_conditioning: Any = None  # opaque: what this row's last pass told this one
    hint: np.ndarray | None = None  # [L] int32 ids, -1 for none: a one-hot self-conditioning, over the one above
    fixed: np.ndarray | None = None  # [L] bool: positions whose token is given and does not change
    allowed: np.ndarray | None = None  # [L] int32 index into the model's token sets, -1 for all


@dataclass(frozen=True)
class Prediction:
    """What one pass says of each position, of softmax(logits / temperature), restricted where `allowed` says so."""

    argmax: np.ndarray  # [L] int32
    sample: (
        np.ndarray
    )  # [L] int32: the smallest token whose cumulative probability, in vocabulary order, exceeds the uniform
    entropy: np.ndarray  # [L] float32, nats; 0 at fixed positions
    confidence: np.ndarray  # [L] float32, the probability of `sample`
    allowed_logprobs: Mapping[int, np.ndarray] = field(default_factory=dict)
    """position -> log-probabilities in the order of the set's ids, for sets of fewer than 1,024 ids"""
    self_conditioning: Any = None  # lazy: costs nothing unless the next pass uses it; one-hot at fixed positions


@dataclass(frozen=True)
class NextToken:
    """What the causal pass says of n tokens it was given."""

    argmax: np.ndarray  # [n] int32: the likeliest token after each of them
    logprob: np.ndarray  # [n] float32: log-probability of each, given all before it; NaN where nothing was before


class DiffusionModel(Protocol):
    """A DiffusionGemma on some framework. Not safe for use from two threads at once."""

    config: ModelConfig

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache, with room for `capacity` tokens from the start where that saves growing."""

    def token_set(self, ids: Sequence[int]) -> int:
        """Register a set of token ids, once; its index is what `Row.allowed` holds."""

    def encode(
        self, tokens: Sequence[Sequence[int]], caches: Sequence[Cache], *, score: bool = False
    ) -> list[NextToken] | None:
        """Causal pass: append `tokens[i]` to `caches[i]`. With `score`, what it says of them, in one head product."""

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        """One bidirectional pass over each row's canvas. Appends `pending`, nothing else, to each cache; rows that
        share a cache must share their `pending`, which is appended once."""

    def autoregress(self, rows: Sequence[Row], sampling: Sampling) -> Iterator[list[int]]:
        """Write left to right: one token a row a pass. `sampling.temp` 0 takes the argmax, otherwise the i-th token is
        drawn by `uniforms[i]` and the writing ends with them. On close each cache holds exactly the tokens yielded
        (and `pending`). The canvas of a row is not read."""

    def peak_memory(self) -> int:
        """Bytes held at most so far: of a GPU by the framework's allocator, on a CPU by the process."""

    def logits(self, row: Row) -> np.ndarray:
        """[L, V] float32, softcapped, before temperature; appends `pending` as `denoise` does. For tests and tools."""
