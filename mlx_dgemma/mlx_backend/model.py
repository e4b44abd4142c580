"""The MLX implementation of `interface.DiffusionModel`: Metal, and MLX's own CPU and CUDA builds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..checkpoint import memory
from ..checkpoint.config import ModelConfig
from ..errors import Mistake
from ..seam.model import NextToken, Prediction, Row
from ..seam.token_sets import TokenSets
from ..writing.sampling import Sampling
from . import arithmetic
from .arithmetic import bring
from .cache import MLXCache
from .draw import next_token
from .network import Network, Segment
from .sweep import Slices
from .vocabulary import Look, conditioning_of, head, soft_embedding
from .weights import first_damaged

PREFILL_CHUNK = 512  # tokens of one text encoded in one pass: scores stay small, Ctrl-C is heard between passes


@dataclass
class MLXModel:
    network: Network
    config: ModelConfig
    dtype: mx.Dtype
    fingerprint: str

    def __post_init__(self) -> None:
        self.table = self.network.model.decoder.embed_tokens
        self.slices = Slices(self.table)
        self.cap = self.config.final_logit_softcapping
        self.sets = TokenSets(self.config.vocab_size)

    def new_cache(self, capacity: int | None = None) -> MLXCache:
        return MLXCache(self.config, self.fingerprint, capacity)

    def token_set(self, ids: Sequence[int]) -> int:
        return self.sets.add(ids)

    def encode(
        self, tokens: Sequence[Sequence[int]], caches: Sequence[MLXCache], *, score: bool = False
    ) -> list[NextToken] | None:
        texts = [self._ids(text) for text in tokens]
        if len(texts) != len(caches) or len({id(cache) for cache in caches}) != len(caches):
            raise ValueError(f"need one cache of its own for each of {len(texts)} texts")
        scores: list[list] = [[] for _ in texts]
        for start in range(0, max(map(len, texts), default=0), PREFILL_CHUNK):
            parts = [(i, text[start : start + PREFILL_CHUNK]) for i, text in enumerate(texts) if len(text) > start]
            before = {i: caches[i].hidden for i, _ in parts}
            hidden = self._forward([(part, caches[i]) for i, part in parts], [])
            if score:
                for (i, part), own in zip(parts, hidden, strict=True):
                    scores[i].append(self._score(part, own, before[i]))
            # Each chunk is computed before the next is begun: memory stays bounded by one.
            mx.eval([caches[i].arrays for i, _ in parts], scores)
        if not score:
            return None
        return [self._next_token(parts) for parts in scores]

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        look = Look(rows, self._canvas_hidden(rows), self.slices, self.sets, self.cap)
        # The one synchronisation of a step: the vectors come up, and the caches hold what was pending.
        mx.eval(look.arrays, [row.cache.arrays for row in rows])
        predictions = look.predictions()
        for prediction in predictions:
            if not np.isfinite(prediction.entropy).all():
                raise Mistake(f"the predictions are not finite: {first_damaged(self.network, self.dtype)}")
        return predictions

    def peak_memory(self) -> int:
        return mx.get_peak_memory() if arithmetic.namespace() is mx else memory.peak()

    def logits(self, row: Row) -> np.ndarray:
        return np.array(head(self.table, self._canvas_hidden([row])[0], self.cap))

    def autoregress(self, rows: Sequence[Row], sampling: Sampling) -> Iterator[list[int]]:
        caches = [row.cache for row in rows]
        waiting = [row for row in rows if len(row.pending)]
        self.encode([row.pending for row in waiting], [row.cache for row in waiting])
        if any(cache.hidden is None for cache in caches):
            raise ValueError("nothing to go on from: give at least one pending token")
        steps = min((self.config.max_position_embeddings - cache.length for cache in caches), default=0)
        if sampling.temp:
            steps = min(steps, *(len(row.uniforms) for row in rows))
        uniforms = mx.array(np.array([row.uniforms[:steps] if sampling.temp else [] for row in rows], np.float32))
        hidden = mx.concatenate([cache.hidden[-1:] for cache in caches])
        for step in range(steps):
            # Every token is read when the pass behind it is on its way already.
            with arithmetic.few():
                tokens = next_token(self.table, hidden, self.cap, sampling, uniforms[:, step : step + 1])
                hidden = self._append(tokens, caches)
            mx.async_eval(tokens, hidden)
            yield tokens.tolist()

    def _ids(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.config.vocab_size):
            raise ValueError(f"token ids must be in [0, {self.config.vocab_size}), got {ids.min()} to {ids.max()}")
        return ids.astype(np.int32)

    def _canvas_hidden(self, rows: Sequence[Row]) -> list[mx.array]:
        """Encode what is pending and look at each canvas, in one pass -> [L, D] a row, for the head. Lazy."""
        texts: dict[int, tuple[np.ndarray, MLXCache]] = {}
        for row in rows:
            text = self._ids(row.pending)
            known = texts.setdefault(id(row.cache), (text, row.cache))[0]
            if not np.array_equal(known, text):
                raise ValueError("rows that share a cache must have the same pending tokens")
        pending = [(text, cache) for text, cache in texts.values() if len(text)]
        # All but the last chunk of a long text goes first, in passes of its own.
        early = [(len(text) - 1) // PREFILL_CHUNK * PREFILL_CHUNK for text, _ in pending]
        long = [(text[:n], cache) for (text, cache), n in zip(pending, early, strict=True) if n]
        self.encode([text for text, _ in long], [cache for _, cache in long])
        rest = [(text[n:], cache) for (text, cache), n in zip(pending, early, strict=True)]
        return self._forward(rest, rows)[len(rest) :]

    def _forward(self, texts: list[tuple[np.ndarray, MLXCache]], rows: Sequence[Row]) -> list[mx.array]:
        """One pass over texts to be encoded and canvases behind them -> [n, D] of each, the texts' first. Lazy, but the
        caches of `texts` are longer when it returns."""
        inputs = [bring(self.table(mx.array(text))) for text, _ in texts]
        lengths = {id(cache): cache.length + len(text) for text, cache in texts}
        owners = [(cache, cache.length, True) for _, cache in texts]
        for row in rows:
            told = conditioning_of(row)
            soft = None if told is None else bring(soft_embedding(told, self.table, self.slices, self.cap))
            embedded = bring(self.table(mx.array(self._ids(row.canvas))))
            inputs.append(self.network.model.decoder.self_conditioning(embedded, soft))
            owners.append((row.cache, lengths.get(id(row.cache), row.cache.length), False))
        ends = np.cumsum([len(x) for x in inputs]).tolist()
        segments = [
            Segment(end - len(x), end, cache, offset, causal)
            for x, end, (cache, offset, causal) in zip(inputs, ends, owners, strict=True)
        ]
        hidden = mx.split(self.network(arithmetic.namespace().concatenate(inputs), segments), ends[:-1])
        for (_, cache), own in zip(texts, hidden, strict=False):
            cache.advance(own)
        return hidden

    def _append(self, tokens: mx.array, caches: Sequence[MLXCache]) -> mx.array:
        """One token [B] to each cache -> [B, D]. Lazy, and nothing is waited for."""
        segments = [Segment(i, i + 1, cache, cache.length, causal=True) for i, cache in enumerate(caches)]
        hidden = self.network(self.table(tokens), segments)
        for i, cache in enumerate(caches):
            cache.advance(hidden[i : i + 1])
        return hidden

    def _score(self, text: np.ndarray, hidden: mx.array, before: mx.array | None) -> tuple[mx.array, mx.array]:
        """argmax [n], and the log-probability [n] of each token of `text` from the hidden state before it."""
        previous = mx.zeros_like(hidden[:1]) if before is None else before[-1:]
        logits = head(self.table, mx.concatenate([previous, hidden]), self.cap)
        logprobs = logits[:-1] - mx.logsumexp(logits[:-1], axis=-1, keepdims=True)
        found = mx.take_along_axis(logprobs, mx.array(text)[:, None], axis=-1)[:, 0]
        if before is None:
            found = mx.where(mx.arange(len(text)) == 0, mx.nan, found)
        return logits[1:].argmax(axis=-1).astype(mx.int32), found

    def _next_token(self, parts: list[tuple[mx.array, mx.array]]) -> NextToken:
        if not parts:
            return NextToken(np.zeros(0, np.int32), np.zeros(0, np.float32))
        return NextToken(*(np.concatenate([np.array(part[i]) for part in parts]) for i in (0, 1)))
