"""A model without weights: it predicts what a script says, and keeps a record of what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlx_dgemma.seam.model import Continuation, Draw, Facts, NextToken, Prediction, Row, Text, TokenSet
from mlx_dgemma.seam.token_sets import token_set

FACTS = Facts(vocab_size=50, canvas_length=8, max_position_embeddings=1000, stop_ids=(1,), pad_id=0)


def facts(**changes) -> Facts:
    return replace(FACTS, **changes)


@dataclass
class FakeCache:
    tokens: list[int] = field(default_factory=list)
    passes: int = 0
    nbytes: int = 0

    @property
    def length(self) -> int:
        return len(self.tokens)

    def copy(self) -> FakeCache:
        return FakeCache(list(self.tokens), self.passes)

    def trim(self, tokens: int) -> None:
        del self.tokens[len(self.tokens) - tokens :]


@dataclass
class FakeModel:
    """Pass n over a cache answers with the n-th line of `script`: an argmax [L], sure everywhere but at `unsure`
    positions. Left to right it counts up from the last token. The causal pass expects each token to be the one it is,
    and is sure of it."""

    script: list[tuple[list[int], list[int]]]
    facts: Facts = FACTS
    clock: Callable[[], float] = lambda: 0.0
    rows: list[Row] = field(default_factory=list)
    caches: list[FakeCache] = field(default_factory=list)
    encoded: list[list[list[int]]] = field(default_factory=list)  # the texts of each call of `encode`
    calls: list[int] = field(default_factory=list)  # rows of each call of `denoise`
    bytes_a_token: int = 0  # of a cache

    def new_cache(self, capacity: int | None = None) -> FakeCache:
        self.caches.append(FakeCache())
        return self.caches[-1]

    def token_set(self, ids: Sequence[int]) -> TokenSet:
        return token_set(ids, self.facts.vocab_size)

    def now(self) -> float:
        return self.clock()

    def free_memory(self) -> int:
        return 10**9

    def cache_bytes(self, tokens: int) -> int:
        return self.bytes_a_token * tokens

    def encode(
        self, texts: Sequence[Text], caches: Sequence[FakeCache], *, score: bool = False
    ) -> list[NextToken] | None:
        self.encoded.append([text.tokens.tolist() for text in texts])
        for text, cache in zip(texts, caches, strict=True):
            cache.tokens += text.tokens.tolist()
        if not score:
            return None
        sure = [np.zeros(len(text), np.float32) for text in texts]
        return [NextToken(np.append(text.tokens[1:], 0), s, s) for text, s in zip(texts, sure, strict=True)]

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        """Whoever else is in the call, each cache has its own place in the script."""
        self.calls.append(len(rows))
        return [self._predict(row) for row in rows]

    def _predict(self, row: Row) -> Prediction:
        passes = row.cache.passes
        argmax, unsure = self.script[min(passes, len(self.script) - 1)]
        self.rows.append(row)
        row.cache.tokens += row.pending.tokens.tolist()
        row.cache.passes += 1
        entropy = np.zeros(len(row.canvas), dtype=np.float32)
        entropy[unsure] = 2.0
        argmax, likely = np.array(argmax, dtype=np.int32), np.exp(-entropy)
        conditioning = f"after pass {passes + 1}"
        return Prediction(argmax, argmax, entropy, likely, likely, self_conditioning=conditioning)

    def autoregress(self, continuations: Sequence[Continuation], draw: Draw) -> Iterator[list[int]]:
        for text in continuations:
            text.cache.tokens += text.pending.tokens.tolist()
        for _ in range(min(len(text.uniforms) for text in continuations)):
            tokens = [(text.cache.tokens[-1] + 1) % self.facts.vocab_size for text in continuations]
            for text, token in zip(continuations, tokens, strict=True):
                text.cache.tokens.append(token)
            yield tokens
