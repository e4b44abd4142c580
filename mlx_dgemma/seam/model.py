"""The seam: what the loop above needs from a model, and what a model below promises.

Everything above is Python and NumPy. Weights, logits and caches stay below: a canvas of 256 positions over 262,144
words is 268 MB of logits, so only a few vectors of the canvas's length cross. `tests/seam/test_contract.py` holds each
implementation to what is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import need_number, need_whole


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers of a model that the loop needs."""

    vocab_size: int
    canvas_length: int  # tokens of a canvas as the model was trained on it; a narrower one is possible
    max_position_embeddings: int  # tokens of a text at most, the canvas included
    stop_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class Text:
    """Tokens that are to be encoded."""

    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [n] int32

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", np.asarray(self.tokens, np.int32).reshape(-1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Text:
        return Text(self.tokens[part])

    def __add__(self, other: Text) -> Text:
        return Text(np.concatenate([self.tokens, other.tokens]))


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Token ids that may stand at a position. Made by `DiffusionModel.token_set`; gone with its last reference."""

    ids: np.ndarray  # [n] int64, distinct


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
        """Write safetensors, with the fingerprint of the model that made it: config, dtype, every weight."""

    def load(self, path: str | Path) -> None:
        """Replace what this cache holds. ValueError if the file was made by another model, or is damaged."""


@dataclass
class Row:
    """One canvas being denoised. The rows of one call may be at different steps, lengths and texts."""

    canvas: np.ndarray  # [L] int32, the tokens as they stand
    cache: Cache  # the text already encoded
    temperature: float
    uniforms: np.ndarray  # [L] float32 in [0, 1): this pass's draw, one number a position
    pending: Text = field(default_factory=Text)  # not yet in the cache: encoded first, in the same pass
    self_conditioning: Any = None  # opaque: the `Prediction.self_conditioning` of this row's last pass
    hint: np.ndarray | None = None  # [L] int32 ids, -1 for none: a one-hot self-conditioning, over the one above
    fixed: np.ndarray | None = None  # [L] bool: positions whose token is given and does not change
    allowed: np.ndarray | None = None  # [L] int32 index into `token_sets`, -1 for all
    token_sets: Sequence[TokenSet] = ()


@dataclass(frozen=True)
class Prediction:
    """One pass predicts this at each position, by softmax(logits / temperature) over what is `allowed` there."""

    argmax: np.ndarray  # [L] int32
    sample: np.ndarray  # [L] int32: the first token by id whose cumulative probability exceeds the uniform
    entropy: np.ndarray  # [L] float32, nats; 0 at fixed positions
    confidence: np.ndarray  # [L] float32, the probability of `sample`
    top: np.ndarray  # [L] float32, the probability of `argmax`
    allowed_logprobs: Mapping[int, np.ndarray] = field(default_factory=dict)
    """position -> log-probabilities in the order of the set's ids, for sets of fewer than `LOGPROB_SET` ids"""
    self_conditioning: Any = None  # lazy: costs nothing unless the next pass uses it; one-hot at fixed positions


@dataclass(frozen=True)
class NextToken:
    """The causal pass predicts this behind each of the n tokens it was given."""

    argmax: np.ndarray  # [n] int32: the likeliest token after each of them
    logprob: np.ndarray  # [n] float32: log-probability of each, given all before it; NaN where nothing was before
    top: np.ndarray  # [n] float32: log-probability of `argmax`


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How the next token is drawn, left to right. The words are mlx-lm's."""

    temp: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # draw from the likeliest tokens that have this much of the probability
    top_k: int = 0  # draw from that many of the likeliest; 0: from all
    min_p: float = 0.0  # draw from those that are at least so likely, relative to the likeliest

    def __post_init__(self) -> None:
        need_number("temp", self.temp, 0)
        need_number("min_p", self.min_p, 0, 1)
        need_number("top_p", self.top_p, 0, 1, above=True)
        need_whole("top_k", self.top_k, 0)


@dataclass
class Continuation:
    """One text written left to right."""

    cache: Cache
    pending: Text  # not yet in the cache: encoded before the first token is drawn
    uniforms: np.ndarray  # [n] float32 in [0, 1): the draw of each token to come
    allowed: TokenSet | None = None  # of the first token; a text that is held to a form is asked for one at a time


class DiffusionModel(Protocol):
    """A DiffusionGemma on some framework. Not safe for use from two threads at once."""

    facts: Facts

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache, with room for `capacity` tokens from the start where that saves growing."""

    def token_set(self, ids: Sequence[int]) -> TokenSet:
        """A set for `Row.token_sets`. ValueError if it is empty or an id is out of the vocabulary."""

    def encode(self, texts: Sequence[Text], caches: Sequence[Cache], *, score: bool = False) -> list[NextToken] | None:
        """Causal pass: append `texts[i]` to `caches[i]`. With `score`, what it predicts, in one head product."""

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        """One bidirectional pass over each row's canvas. Appends `pending`, nothing else, to each cache; rows that
        share a cache must share their `pending`, which is appended once."""

    def autoregress(self, continuations: Sequence[Continuation], draw: Draw) -> Iterator[list[int]]:
        """Write left to right: one token of each text a pass. With `draw.temp` 0 it is the argmax, otherwise the i-th
        token is drawn by `uniforms[i]`; the writing ends with the shortest `uniforms`. On close each cache holds
        `pending` and exactly the tokens that were yielded."""

    def now(self) -> float:
        """Seconds on a clock that all ranks share, rank 0's: what is decided by time is decided alike everywhere."""

    def peak_memory(self) -> int:
        """Bytes held at most so far: of a GPU by the framework's allocator, on a CPU by the process."""

    def free_memory(self) -> int:
        """Bytes that caches may yet take, where the model is."""

    def cache_bytes(self, tokens: int) -> int:
        """Bytes that the cache of so many tokens takes."""

    def logits(self, row: Row) -> np.ndarray:
        """[L, V] float32, softcapped, before temperature; appends `pending` as `denoise` does. For tests and tools."""
