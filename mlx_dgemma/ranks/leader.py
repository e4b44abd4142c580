"""A model that is divided over several ranks, as rank 0 sees it: what is asked of it, all ranks do.

It implements `seam.model.DiffusionModel` around the backend's own model, whose sums go over all ranks. Results are rank
0's, so nothing above can part. What the others must keep has a number, which is forgotten with its last reference here.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..seam.model import Cache, Continuation, DiffusionModel, Draw, NextToken, Prediction, Row, Text, TokenSet
from .party import Party


@dataclass(eq=False)
class Kept:
    """What a pass left on every rank: rank 0's, and the number that the others have it under."""

    number: int
    mine: Any


class LeadingModel:
    def __init__(self, mine: DiffusionModel, party: Party, free: int):
        """`free`: the least bytes that another rank's caches may take."""
        self.mine, self.party, self.free = mine, party, free
        self.facts = mine.facts
        self._numbers, self._gone = count(), deque()
        self._sets: weakref.WeakKeyDictionary[TokenSet, int] = weakref.WeakKeyDictionary()

    def named(self, thing: Any) -> int:
        """A number for `thing`, which the others forget when it is gone here."""
        number = next(self._numbers)
        weakref.finalize(thing, self._gone.append, number)
        return number

    def together(self, name: str, **arguments: Any):
        """A context in which this rank does what the others are told."""
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        return self.party.together({"do": name, "with": arguments, "forget": gone})

    def new_cache(self, capacity: int | None = None) -> LeadingCache:
        cache = LeadingCache(self, self.mine.new_cache(capacity))
        with self.together("new_cache", number=cache.number, capacity=capacity):
            return cache

    def token_set(self, ids: Sequence[int]) -> TokenSet:
        return self.mine.token_set(ids)

    def encode(
        self, texts: Sequence[Text], caches: Sequence[LeadingCache], *, score: bool = False
    ) -> list[NextToken] | None:
        tokens, numbers = [text.tokens for text in texts], [cache.number for cache in caches]
        with self.together("encode", texts=tokens, caches=numbers, score=score):
            return self.mine.encode(texts, [cache.mine for cache in caches], score=score)

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        told, kept = [self._told(row) for row in rows], [Kept(0, None) for _ in rows]
        for each in kept:
            each.number = self.named(each)
        with self.together("denoise", rows=told, numbers=[each.number for each in kept]):
            predictions = self.mine.denoise([_mine(row) for row in rows])
        for each, prediction in zip(kept, predictions, strict=True):
            each.mine = prediction.self_conditioning
        return [replace(p, self_conditioning=each) for p, each in zip(predictions, kept, strict=True)]

    def logits(self, row: Row) -> np.ndarray:
        with self.together("logits", row=self._told(row)):
            return self.mine.logits(_mine(row))

    def autoregress(self, continuations: Sequence[Continuation], draw: Draw) -> Iterator[list[int]]:
        mine = [replace(text, cache=text.cache.mine) for text in continuations]
        told = [
            {"cache": text.cache.number, "pending": text.pending.tokens, "uniforms": np.asarray(text.uniforms)}
            | {"allowed": text.allowed and self._set(text.allowed)}
            for text in continuations
        ]
        stream, number = self.mine.autoregress(mine, draw), next(self._numbers)
        with self.together("autoregress", number=number, continuations=told, draw=vars(draw)):
            pass
        try:
            while True:
                with self.together("next", stream=number):
                    tokens = next(stream, None)
                if tokens is None:
                    return
                yield tokens
        finally:
            with self.together("close", stream=number):
                stream.close()

    def now(self) -> float:
        return self.mine.now()

    def peak_memory(self) -> int:
        return self.mine.peak_memory()

    def free_memory(self) -> int:
        return min(self.mine.free_memory(), self.free)

    def cache_bytes(self, tokens: int) -> int:
        return self.mine.cache_bytes(tokens)

    def _set(self, given: TokenSet) -> int:
        """The number of a set, which the others have from its first use on."""
        if given not in self._sets:
            self._sets[given] = number = self.named(given)
            with self.together("token_set", number=number, ids=given.ids):
                pass
        return self._sets[given]

    def _told(self, row: Row) -> dict[str, Any]:
        """What another rank must know of a row."""
        told = {"canvas": np.asarray(row.canvas, np.int32), "cache": row.cache.number, "temperature": row.temperature}
        told |= {"uniforms": np.asarray(row.uniforms, np.float32), "pending": row.pending.tokens}
        told["kept"] = row.self_conditioning and row.self_conditioning.number
        for name, kind in (("hint", np.int32), ("fixed", bool), ("allowed", np.int32)):
            value = getattr(row, name)
            told[name] = None if value is None else np.asarray(value, kind)
        used = [] if row.allowed is None else np.unique(told["allowed"]).tolist()
        inside = [number for number in used if 0 <= number < len(row.token_sets)]
        told["sets"] = [(number, self._set(row.token_sets[number])) for number in inside]
        return told | {"of_sets": len(row.token_sets)}


def _mine(row: Row) -> Row:
    kept = row.self_conditioning
    return replace(row, cache=row.cache.mine, self_conditioning=kept and kept.mine)


class LeadingCache:
    """Implements `seam.model.Cache`: rank 0's share, and the number that the others have theirs under."""

    def __init__(self, model: LeadingModel, mine: Cache):
        self.model, self.mine, self.number = model, mine, model.named(self)

    @property
    def length(self) -> int:
        return self.mine.length

    @property
    def nbytes(self) -> int:
        return self.mine.nbytes

    def copy(self) -> LeadingCache:
        fork = LeadingCache(self.model, self.mine.copy())
        with self.model.together("copy", cache=self.number, number=fork.number):
            return fork

    def trim(self, tokens: int) -> None:
        with self.model.together("trim", cache=self.number, tokens=tokens):
            self.mine.trim(tokens)

    def save(self, path: str | Path) -> None:
        """All shares are saved here, the others' beside rank 0's."""
        party = self.model.party
        call = party.tell({"do": "saved", "with": {"cache": self.number}, "forget": [], "answer": True})
        for rank, answer in party.heard(call).items():
            target = beside(path, rank)
            part = target.with_name(f"{target.name}.{os.getpid()}")
            try:
                part.write_bytes(answer["value"])
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        self.mine.save(path)

    def load(self, path: str | Path) -> None:
        party = self.model.party
        files = {rank: beside(path, rank) for rank in party.wires}
        if missing := [file for file in files.values() if not file.exists()]:
            raise FileNotFoundError(f"{missing[0]} is missing: no such saved cache of {party.ranks} ranks")
        self.mine.load(path)
        shares = {rank: np.frombuffer(file.read_bytes(), np.uint8) for rank, file in files.items()}
        message = {"do": "loaded", "forget": [], "answer": True}
        call = party.tell(lambda rank: message | {"with": {"cache": self.number, "data": shares[rank]}})
        party.heard(call)


def beside(path: str | Path, rank: int) -> Path:
    """Where a rank's share of a saved cache lies."""
    return Path(path).with_name(f"{Path(path).name}.rank{rank}")
