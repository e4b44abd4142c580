"""Encoded beginnings of prompts, kept for the next request that begins alike.

There are a few snapshots, limited by bytes: at the end of a prompt, of an answer, and of what many prompts begin with
(the system turn and tools, the text before a gap), and every EVERY tokens of a long prompt. That is encoded in pieces
between the passes of others, each as large as takes no longer than a pass.
Snapshots are of the one model that this process runs, and die with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..seam.model import Cache, DiffusionModel, Text
from ..writing.batch import PIECE
from ..writing.task import Task

LEAST = 64  # tokens that a beginning has at least
EVERY = 4096  # tokens of a long prompt from one snapshot to the next
SHORTEST = 16  # tokens of a piece


@dataclass(frozen=True, eq=False)
class Snapshot:
    tokens: np.ndarray  # [n] int32
    cache: Cache
    nbytes: int
    shared: bool  # other prompts will begin so, too: it is forked, never moved


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many tokens two texts share from the beginning on."""
    length = min(len(first), len(second))
    differs = np.asarray(first[:length]) != np.asarray(second[:length])
    return int(differs.argmax()) if differs.any() else length


class Prefixes:
    """Snapshots, the least lately used first. For the thread of the model alone."""

    def __init__(self, limit: int):
        self.limit = limit  # bytes
        self.pass_seconds: float | None = None  # of the others' last pass; None: nobody else waits
        self._token_seconds: float | None = None  # of the last piece
        self.snapshots: list[Snapshot] = []

    @property
    def nbytes(self) -> int:
        return sum(snapshot.nbytes for snapshot in self.snapshots)

    def keep(self, tokens: Sequence[int], cache: Cache, *, shared: bool = False, spare: bool = False) -> None:
        """Keep `cache`, which holds `tokens` and is the store's from now on. One that is `spare` goes first."""
        if len(tokens) < LEAST:
            return
        tokens = np.array(tokens, np.int32)
        self.snapshots = [old for old in self.snapshots if not np.array_equal(old.tokens, tokens)]
        self.snapshots.insert(0 if spare else len(self.snapshots), Snapshot(tokens, cache, cache.nbytes, shared))
        self.shrink(self.limit)

    def shrink(self, limit: int) -> None:
        """Let go of snapshots until they take at most `limit` bytes."""
        while self.snapshots and self.nbytes > limit:
            self.snapshots.pop(0)

    def take(self, model: DiffusionModel, tokens: Sequence[int]) -> Cache:
        """Returns a cache of the longest beginning of `tokens` that was kept, but never of all of them: the model must
        go on from something. A snapshot that `tokens` extend is moved, another is forked."""
        shares = [(common(snapshot.tokens, tokens[:-1]), snapshot) for snapshot in reversed(self.snapshots)]
        for same, snapshot in sorted(shares, key=lambda pair: -pair[0]):
            if same < LEAST:
                break
            moved = same == len(snapshot.tokens) and not snapshot.shared
            cache = snapshot.cache if moved else snapshot.cache.copy()
            try:
                cache.trim(cache.length - same)
            except ValueError:  # further back than the sliding layers remember
                continue
            self.snapshots.remove(snapshot)
            if not moved:
                self.snapshots.append(snapshot)
            return cache
        return model.new_cache(len(tokens))

    def read(
        self, model: DiffusionModel, tokens: Sequence[int], mark: int = 0, rest: int | None = None
    ) -> Task[tuple[Cache, int]]:
        """Encode `tokens`, apart from the last `rest` at most (None: a piece) -> their cache, which the caller owns,
        and how many of them a snapshot held. A snapshot is kept at `mark` tokens, if the part up to there is long."""
        cache = self.take(model, tokens)
        known = cache.length
        mark = mark if mark >= PIECE else 0
        while len(tokens) - cache.length > (self.piece(model) if rest is None else rest) or cache.length < mark:
            yield []
            milestone = (cache.length // EVERY + 1) * EVERY
            ends = [cache.length + self.piece(model), milestone, len(tokens), *([mark] if cache.length < mark else ())]
            self._encode(model, tokens[cache.length : min(ends)], cache)
            if cache.length in (mark, milestone):
                self.keep(tokens[: cache.length], cache.copy(), shared=True, spare=cache.length != mark)
        return cache, known

    def piece(self, model: DiffusionModel) -> int:
        """Returns how many tokens to encode before the next pass: what takes no longer than it, if others wait."""
        if self.pass_seconds is None:
            return PIECE
        if self._token_seconds is None:
            return min(model.facts.canvas_length, PIECE)
        return int(min(max(self.pass_seconds / self._token_seconds, SHORTEST), PIECE))

    def _encode(self, model: DiffusionModel, tokens: Sequence[int], cache: Cache) -> None:
        start = model.now()
        model.encode([Text(tokens)], [cache])
        self._token_seconds = max(model.now() - start, 1e-9) / len(tokens)
