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
from .group import Group


@dataclass(eq=False)
class Kept:
    """What a pass left on every rank: rank 0's, and the number that the others have it under."""

    number: int
    local: Any


class LeadingModel:
    def __init__(self, local: DiffusionModel, group: Group, free: int):
        """`free`: the least bytes that another rank's caches may take."""
        self.local, self.group, self.free = local, group, free
        self.facts = local.facts
        self._numbers, self._gone = count(), deque()
        self._sets: weakref.WeakKeyDictionary[TokenSet, int] = weakref.WeakKeyDictionary()

    def numbered(self, kept: Any) -> int:
        """Returns a number for `kept`, which the others forget when it is gone here."""
        number = next(self._numbers)
        weakref.finalize(kept, self._gone.append, number)
        return number

    def together(self, name: str, **arguments: Any):
        """Returns a context in which the others do what this rank does."""
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        return self.group.together({"do": name, "with": arguments, "forget": gone})

    def new_cache(self, capacity: int | None = None) -> LeadingCache:
        cache = LeadingCache(self, self.local.new_cache(capacity))
        with self.together("new_cache", number=cache.number, capacity=capacity):
            return cache

    def token_set(self, ids: Sequence[int]) -> TokenSet:
        return self.local.token_set(ids)

    def encode(
        self, texts: Sequence[Text], caches: Sequence[LeadingCache], *, score: bool = False
    ) -> list[NextToken] | None:
        tokens, numbers = [text.tokens for text in texts], [cache.number for cache in caches]
        with self.together("encode", texts=tokens, caches=numbers, score=score):
            return self.local.encode(texts, [cache.local for cache in caches], score=score)

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        kept = [Kept(0, None) for _ in rows]
        for left in kept:
            left.number = self.numbered(left)
        fields, numbers = [self._fields(row) for row in rows], [left.number for left in kept]
        with self.together("denoise", rows=fields, numbers=numbers):
            predictions = self.local.denoise([_local(row) for row in rows])
        for left, prediction in zip(kept, predictions, strict=True):
            left.local = prediction.self_conditioning
        return [replace(p, self_conditioning=left) for p, left in zip(predictions, kept, strict=True)]

    def logits(self, row: Row) -> np.ndarray:
        with self.together("logits", row=self._fields(row)):
            return self.local.logits(_local(row))

    def autoregress(self, continuations: Sequence[Continuation], draw: Draw) -> Iterator[list[int]]:
        local = [replace(text, cache=text.cache.local) for text in continuations]
        fields = [
            {"cache": text.cache.number, "pending": text.pending.tokens, "uniforms": np.asarray(text.uniforms)}
            | {"allowed": text.allowed and self._set(text.allowed)}
            for text in continuations
        ]
        stream, number = self.local.autoregress(local, draw), next(self._numbers)
        with self.together("autoregress", number=number, continuations=fields, draw=vars(draw)):
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
        return self.local.now()

    def peak_memory(self) -> int:
        return self.local.peak_memory()

    def free_memory(self) -> int:
        return min(self.local.free_memory(), self.free)

    def cache_bytes(self, tokens: int) -> int:
        return self.local.cache_bytes(tokens)

    def _set(self, tokens: TokenSet) -> int:
        """Returns the number of a set, which the others have from its first use on."""
        if tokens not in self._sets:
            self._sets[tokens] = number = self.numbered(tokens)
            with self.together("token_set", number=number, ids=tokens.ids):
                pass
        return self._sets[tokens]

    def _fields(self, row: Row) -> dict[str, Any]:
        """Returns the fields of a row as another rank takes them."""
        fields = {"canvas": np.asarray(row.canvas, np.int32), "cache": row.cache.number, "temperature": row.temperature}
        fields |= {"uniforms": np.asarray(row.uniforms, np.float32), "pending": row.pending.tokens}
        fields["kept"] = row.self_conditioning and row.self_conditioning.number
        for name, kind in (("hint", np.int32), ("fixed", bool), ("allowed", np.int32)):
            value = getattr(row, name)
            fields[name] = None if value is None else np.asarray(value, kind)
        used = [] if row.allowed is None else np.unique(fields["allowed"]).tolist()
        inside = [number for number in used if 0 <= number < len(row.token_sets)]
        fields["sets"] = [(number, self._set(row.token_sets[number])) for number in inside]
        return fields | {"of_sets": len(row.token_sets)}


def _local(row: Row) -> Row:
    kept = row.self_conditioning
    return replace(row, cache=row.cache.local, self_conditioning=kept and kept.local)


class LeadingCache:
    """Implements `seam.model.Cache`: rank 0's share, and the number that the others have theirs under."""

    def __init__(self, model: LeadingModel, local: Cache):
        self.model, self.local, self.number = model, local, model.numbered(self)

    @property
    def length(self) -> int:
        return self.local.length

    @property
    def nbytes(self) -> int:
        return self.local.nbytes

    def copy(self) -> LeadingCache:
        fork = LeadingCache(self.model, self.local.copy())
        with self.model.together("copy", cache=self.number, number=fork.number):
            return fork

    def trim(self, tokens: int) -> None:
        with self.model.together("trim", cache=self.number, tokens=tokens):
            self.local.trim(tokens)

    def save(self, path: str | Path) -> None:
        """Saves all shares here, the others' beside rank 0's."""
        group = self.model.group
        call = group.send({"do": "saved", "with": {"cache": self.number}, "answer": True})
        for rank, answer in group.answers_to(call).items():
            target = beside(path, rank)
            part = target.with_name(f"{target.name}.{os.getpid()}")
            try:
                part.write_bytes(answer["value"])
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        self.local.save(path)

    def load(self, path: str | Path) -> None:
        group = self.model.group
        files = {rank: beside(path, rank) for rank in group.wires}
        if missing := [file for file in files.values() if not file.exists()]:
            raise FileNotFoundError(f"{missing[0]} is missing: no such saved cache of {group.ranks} ranks")
        self.local.load(path)
        shares = {rank: np.frombuffer(file.read_bytes(), np.uint8) for rank, file in files.items()}
        message = {"do": "loaded", "answer": True}
        call = group.send(lambda rank: message | {"with": {"cache": self.number, "data": shares[rank]}})
        group.answers_to(call)


def beside(path: str | Path, rank: int) -> Path:
    """Returns where a rank's share of a saved cache lies."""
    return Path(path).with_name(f"{Path(path).name}.rank{rank}")
