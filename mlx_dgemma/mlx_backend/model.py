"""The MLX implementation of `seam.model.DiffusionModel`: Metal, and MLX's own CPU and CUDA builds."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import mlx.core as mx
import numpy as np

from ..checkpoint import memory
from ..checkpoint.config import ModelConfig
from ..errors import Mistake
from ..seam.model import Continuation, Draw, NextToken, Prediction, Row, Text, TokenSet
from ..seam.shared import begin_autoregress, check_caches, checked, join_scores, pending_texts
from ..seam.token_sets import token_set
from . import family, fused, threads, weights
from .cache import MLXCache
from .draw import next_token
from .network import Network, Segment
from .sweep import Slices
from .vocabulary import Readout, conditioning_of, head, soft_of

PREFILL_CHUNK = 512  # tokens of one text encoded in one pass: scores stay small, Ctrl-C is heard between passes
SCORED = 64  # tokens whose logits are whole at a time: 67 MB as float32


@dataclass
class MLXModel:
    network: Network
    config: ModelConfig
    dtype: mx.Dtype

    def __post_init__(self) -> None:
        self.facts = self.config
        self.table = self.network.model.decoder.embed_tokens
        self.slices = Slices(self.table)
        self.cap = self.config.final_logit_softcapping
        self.ahead = family.current().ahead

    @cached_property
    def fingerprint(self) -> str:
        """Names the config, the dtype and all weights. It is computed when a cache is first saved or loaded."""
        return weights.fingerprint(self.network, self.config, self.dtype)

    def new_cache(self, capacity: int | None = None) -> MLXCache:
        return MLXCache(self.config, lambda: self.fingerprint, capacity)

    def token_set(self, ids: Sequence[int]) -> TokenSet:
        return token_set(ids, self.facts.vocab_size)

    def now(self) -> float:
        return time.perf_counter()

    def peak_memory(self) -> int:
        return memory.peak() if mx.default_device() == mx.cpu else mx.get_peak_memory()

    def free_memory(self) -> int:
        """What caches may take: of a GPU, what Metal recommends; of `--max-memory`, what is left."""
        most = min(mx.get_memory_limit(), family.working_set() or mx.get_memory_limit())
        return min(memory.available(), most - mx.get_active_memory())

    def cache_bytes(self, tokens: int) -> int:
        return self.config.cache_numbers(tokens) * self.dtype.size

    def encode(
        self, texts: Sequence[Text], caches: Sequence[MLXCache], *, score: bool = False
    ) -> list[NextToken] | None:
        check_caches(texts, caches)
        texts = [checked(text, self.facts.vocab_size) for text in texts]
        scores: list[list[tuple[mx.array, ...]]] = [[] for _ in texts]
        for start in range(0, max(map(len, texts), default=0), PREFILL_CHUNK):
            parts = [(i, text[start : start + PREFILL_CHUNK]) for i, text in enumerate(texts) if len(text) > start]
            before = {i: caches[i].hidden for i, _ in parts}
            hidden = self._forward([(part, caches[i]) for i, part in parts], [])
            if score:
                for (i, part), states in zip(parts, hidden, strict=True):
                    scores[i].append(self._score(part, states, before[i]))
            # Each chunk is computed before the next is begun: memory stays bounded by one.
            mx.eval([caches[i].arrays for i, _ in parts], scores)
        return [join_scores([tuple(map(np.array, part)) for part in parts]) for parts in scores] if score else None

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        parts = threads.spread(rows, threads.count())
        if len(parts) > 1:
            # What threads share is evaluated before, views and constants of a new model, too; and twice: MLX notes that
            # an array is there when it is asked for again, and no two threads may do that at once.
            shared = [self.network, self.slices.parts, self.slices.blocks]
            shared += [[row.cache.arrays, soft_of(row)] for row in rows]
            mx.eval(shared)
            mx.eval(shared)
        readouts = threads.run(self._read_out, [[rows[i] for i in part] for part in parts])
        predictions = [prediction for readout in readouts for prediction in readout.predictions()]
        predictions = [predictions[i] for i in np.argsort([i for part in parts for i in part])]
        for prediction in predictions:
            if not np.isfinite(prediction.entropy).all():
                raise Mistake(f"the predictions are not finite: {weights.first_damaged(self.network, self.dtype)}")
        return predictions

    def _read_out(self, rows: Sequence[Row]) -> Readout:
        readout = Readout(rows, self.canvas_hidden(rows), self.slices, self.cap)
        # The one synchronisation of a step: the vectors come up, and the caches hold what was pending.
        mx.eval(readout.arrays, [row.cache.arrays for row in rows])
        return readout

    def logits(self, row: Row) -> np.ndarray:
        return np.array(head(self.table, self.canvas_hidden([row])[0], self.cap))

    def autoregress(self, continuations: Sequence[Continuation], draw: Draw) -> Iterator[list[int]]:
        steps, draws = begin_autoregress(self, continuations, draw)
        caches, uniforms = [text.cache for text in continuations], mx.array(draws)
        allowed = self._allowed_first(continuations)
        hidden = mx.concatenate([cache.hidden[-1:] for cache in caches])
        for step in range(steps):
            tokens = next_token(self.table, hidden, self.cap, draw, uniforms[:, step : step + 1], allowed)
            hidden, allowed = self._append(tokens, caches), None
            # Every token is read when the pass behind it is on its way already.
            mx.async_eval(tokens, hidden, [cache.hidden for cache in caches])
            yield tokens.tolist()

    def _allowed_first(self, continuations: Sequence[Continuation]) -> mx.array | None:
        """[B, V] bool of the tokens that may come first; None: all."""
        sets = [text.allowed for text in continuations]
        table = np.array([[token_set is None] for token_set in sets]).repeat(self.facts.vocab_size, axis=1)
        for row, allowed in zip(table, sets, strict=True):
            if allowed is not None:
                row[allowed.ids] = True
        return mx.array(table) if any(sets) else None

    def canvas_hidden(self, rows: Sequence[Row]) -> list[mx.array]:
        """Encode what is pending and denoise each canvas, in one pass -> [L, D] a row, for the head. Lazy."""
        pending = pending_texts(rows, self.facts.vocab_size)
        # All but the last chunk of a long text goes first, in passes of its own.
        early = [(len(text) - 1) // PREFILL_CHUNK * PREFILL_CHUNK for text, _ in pending]
        long = [(text[:n], cache) for (text, cache), n in zip(pending, early, strict=True) if n]
        self.encode([text for text, _ in long], [cache for _, cache in long])
        rest = [(text[n:], cache) for (text, cache), n in zip(pending, early, strict=True)]
        return self._forward(rest, rows)[len(rest) :]

    def _forward(self, texts: list[tuple[Text, MLXCache]], rows: Sequence[Row]) -> list[mx.array]:
        """One pass over texts to be encoded and canvases behind them -> [n, D] of each, the texts' first. Lazy, but the
        caches of `texts` are longer when it returns."""
        inputs = [self.table(mx.array(text.tokens)) for text, _ in texts]
        lengths = {id(cache): cache.length + len(text) for text, cache in texts}
        places = [(cache, cache.length, True) for _, cache in texts]
        for row in rows:
            conditioning = conditioning_of(row)
            soft = None if conditioning is None else conditioning.embedding(self.slices, self.cap)
            embedded = self.table(mx.array(checked(Text(row.canvas), self.facts.vocab_size).tokens))
            inputs.append(self.network.model.decoder.self_conditioning(embedded, soft))
            places.append((row.cache, lengths.get(id(row.cache), row.cache.length), False))
        ends = np.cumsum([len(x) for x in inputs]).tolist()
        segments = [
            Segment(end - len(x), end, cache, offset, causal)
            for x, end, (cache, offset, causal) in zip(inputs, ends, places, strict=True)
        ]
        hidden = mx.split(self._hidden(mx.concatenate(inputs), segments, self.ahead), ends[:-1])
        for (_, cache), states in zip(texts, hidden, strict=False):
            cache.advance(states)
        return hidden

    def _hidden(self, x: mx.array, segments: list[Segment], ahead: int = 0) -> mx.array:
        """The network's pass, by our kernels where these are right and faster."""
        forward = partial(fused.forward, self.network) if fused.fits(self.network, self.dtype) else self.network
        return forward(x, segments, ahead)

    def _append(self, tokens: mx.array, caches: Sequence[MLXCache]) -> mx.array:
        """One token [B] to each cache -> [B, D]. Lazy, and nothing is waited for."""
        segments = [Segment(i, i + 1, cache, cache.length, causal=True) for i, cache in enumerate(caches)]
        hidden = self._hidden(self.table(tokens), segments)
        for i, cache in enumerate(caches):
            cache.advance(hidden[i : i + 1])
        return hidden

    def _score(self, text: Text, hidden: mx.array, before: mx.array | None) -> tuple[mx.array, ...]:
        """What `NextToken` has of `text`: each token by the hidden state before it."""
        states = hidden if before is None else mx.concatenate([before[-1:], hidden])
        behind = mx.array(np.append(text.tokens[len(text) - len(states) + 1 :], 0))  # each state; nothing, the last
        argmax, scored, top = [], [mx.full((1,), mx.nan)], []
        for first in range(0, len(states), SCORED):
            part = slice(first, first + SCORED)
            logits = head(self.table, states[part], self.cap)
            chosen = mx.take_along_axis(logits, behind[part, None], axis=-1)
            whole = mx.logsumexp(logits, axis=-1, keepdims=True)
            argmax.append(logits.argmax(axis=-1).astype(mx.int32))
            scored.append((chosen - whole)[:, 0])
            top.append(logits.max(axis=-1) - whole[:, 0])
            states = mx.depends([states], [argmax[-1], scored[-1], top[-1]])[0]  # a part at a time
        last = slice(-len(text), None)
        return mx.concatenate(argmax)[last], mx.concatenate(scored)[-len(text) - 1 : -1], mx.concatenate(top)[last]
