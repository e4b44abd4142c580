"""The torch implementation of `interface.DiffusionModel`: CUDA, and the CPU.

On a GPU the rows of a call go through the network together, padded to shapes of which there are few, so that each
shape's pass is a CUDA graph. On a CPU each text and each row goes alone in its own shape, through the same functions:
nothing is gained by company there, and so a row's numbers do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.config import ModelConfig
from ..errors import Mistake
from ..seam.model import NextToken, Prediction, Row
from ..seam.token_sets import TokenSets
from ..writing.sampling import Sampling
from . import device as devices
from . import parallel
from .cache import LEAST, Pool, TorchCache
from .draw import next_token
from .graphs import Graphs, Inputs
from .network import Network
from .shapes import Shapes, Text
from .sweep import Asked, Swept, head, sweep
from .vocabulary import Question, bring, predictions
from .weights import first_damaged

PREFILL_CHUNK = 1024  # tokens of one text encoded in one pass: memory stays bounded, Ctrl-C is heard between passes
AT_ONCE = 16  # texts encoded together
SCORED = 256  # tokens whose logits are whole in memory at a time, when a text is scored


class TorchModel:
    def __init__(self, network: Network, config: ModelConfig, device: torch.device, fingerprint: str):
        self.network, self.config, self.device, self.fingerprint = network, config, device, fingerprint
        self.cap = config.final_logit_softcapping
        self.sets = TokenSets(config.vocab_size)
        self.graphs = Graphs(device)
        self.pool = Pool(config, network.kinds, network.dtype, device, PREFILL_CHUNK)
        self.pool.moved = lambda: self.graphs.clear()
        self.together = device.type == "cuda"

    def new_cache(self, capacity: int | None = None) -> TorchCache:
        return TorchCache(self.pool, self.fingerprint, capacity or 0)

    def token_set(self, ids: Sequence[int]) -> int:
        return self.sets.add(ids)

    def encode(
        self, tokens: Sequence[Sequence[int]], caches: Sequence[TorchCache], *, score: bool = False
    ) -> list[NextToken] | None:
        texts = [self._ids(text) for text in tokens]
        if len(texts) != len(caches) or len({id(cache) for cache in caches}) != len(caches):
            raise ValueError(f"need one cache of its own for each of {len(texts)} texts")
        scores: list[list] = [[] for _ in texts]
        for start in range(0, max(map(len, texts), default=0), PREFILL_CHUNK):
            parts = [(i, text[start : start + PREFILL_CHUNK]) for i, text in enumerate(texts) if len(text) > start]
            before = {i: caches[i].hidden for i, _ in parts}
            for group in self._groups(parts, AT_ONCE):
                hidden, _, _ = self._pass([(part, caches[i]) for i, part in group], [])
                if score:
                    for (i, part), own in zip(group, hidden, strict=True):
                        scores[i].append(self._score(part, own, before[i]))
        return [self._next_token(parts) for parts in scores] if score else None

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        texts, found = self._pending(rows), []
        for group in self._groups(rows, max(1, len(rows))):
            _, hidden, shapes = self._pass(texts, group)
            found += self._look(group, hidden, shapes)
        if not all(np.isfinite(prediction.entropy).all() for prediction in found):
            raise Mistake(f"the predictions are not finite: {first_damaged(self.network)}")
        return found

    def peak_memory(self) -> int:
        return devices.peak(self.device)

    def logits(self, row: Row) -> np.ndarray:
        _, hidden, _ = self._pass(self._pending([row]), [row])
        return head(self.network.table, hidden[: len(row.canvas)], self.cap).cpu().numpy()

    def autoregress(self, rows: Sequence[Row], sampling: Sampling) -> Iterator[list[int]]:
        caches = [row.cache for row in rows]
        waiting = [row for row in rows if len(row.pending)]
        self.encode([row.pending for row in waiting], [row.cache for row in waiting])
        if any(cache.hidden is None for cache in caches):
            raise ValueError("nothing to go on from: give at least one pending token")
        steps = min((self.config.max_position_embeddings - cache.length for cache in caches), default=0)
        if sampling.temp:
            steps = min(steps, *(len(row.uniforms) for row in rows))
        uniforms = np.array([row.uniforms[:steps] if sampling.temp else [] for row in rows], np.float32)
        uniforms = torch.from_numpy(uniforms).to(self.device)
        for step in range(steps):
            hidden = torch.cat([cache.hidden[-1:] for cache in caches])
            logits = head(self.network.table, hidden, self.cap)
            tokens = parallel.from_first(next_token(logits, sampling, uniforms[:, step : step + 1]))
            # Every token is read when the pass behind it is on its way already.
            arrived = devices.to_host(tokens)
            self._append(tokens, caches)
            yield arrived().tolist()

    def _append(self, tokens: Tensor, caches: Sequence[TorchCache]) -> None:
        """One token [B] to each cache. Nothing is waited for."""
        unknown = np.zeros(1, np.int64)
        for group in self._groups(range(len(caches)), AT_ONCE):
            own = tokens[group[0] : group[-1] + 1]
            self._pass([(unknown, caches[i]) for i in group], [], own)

    def _ids(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.config.vocab_size):
            raise ValueError(f"token ids must be in [0, {self.config.vocab_size}), got {ids.min()} to {ids.max()}")
        return ids

    def _pending(self, rows: Sequence[Row]) -> list[Text]:
        """What is to be encoded in the pass that looks at the canvases, if they go together. All else is encoded when
        this returns."""
        texts: dict[int, Text] = {}
        for row in rows:
            text = self._ids(row.pending)
            known = texts.setdefault(id(row.cache), (text, row.cache))[0]
            if not np.array_equal(known, text):
                raise ValueError("rows that share a cache must have the same pending tokens")
        most = min(PREFILL_CHUNK, self.config.canvas_length) if self.together else 0
        late = [(text[max(0, len(text) - most) :], cache) for text, cache in texts.values()] if most else []
        early = [(text[: max(0, len(text) - most)], cache) for text, cache in texts.values()]
        early = [(text, cache) for text, cache in early if len(text)]
        self.encode([text for text, _ in early], [cache for _, cache in early])
        return [(text, cache) for text, cache in late if len(text)]

    def _groups(self, items: Sequence, most: int) -> list[Sequence]:
        """What goes through the network together."""
        size = most if self.together else 1
        return [items[i : i + size] for i in range(0, len(items), size)]

    def _pass(
        self, texts: list[Text], rows: Sequence[Row], tokens: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Shapes]:
        """Encode `texts` and look at canvases behind them -> the last hidden states of each text [n, D], and of the
        canvases [B * L, D]. The caches of `texts` are longer when it returns; what it gives is good until the next.
        `tokens` [B] are the texts, of one token each, where only the device knows them yet."""
        for text, cache in texts:
            self.pool.require(cache.length + len(text))
        rounded = sorted({1, self.config.canvas_length, PREFILL_CHUNK}) if self.together else None
        shapes = Shapes.of(texts, rows, rounded, LEAST[self.device.type])
        inputs = shapes.inputs(texts, rows, self.config.hidden_size, self.network.model.decoder.norm.weight)
        if tokens is not None:
            inputs["text ids"] = torch.nn.functional.pad(tokens, (0, shapes.texts - len(tokens)))[:, None]

        def run(given: Inputs) -> Tensor:
            told = (given["soft"], given["certain"]) if "soft" in given else None
            return self.network(shapes.blocks(given), told, self.pool.layers)

        # A long piece of a prompt keeps the GPU busy for longer than its launches take; it needs no graph.
        hidden = self._run(("pass", shapes), run, inputs, captured=shapes.text <= self.config.canvas_length)
        count = shapes.texts * shapes.text
        padded = hidden[:count].split(shapes.text or 1)
        found = [own[: len(text)] for own, (text, _) in zip(padded, texts, strict=False)]
        for own, (_, cache) in zip(found, texts, strict=True):
            cache.advance(own)
        return found, hidden[count:], shapes

    def _run(self, key: tuple, function: Callable, inputs: Inputs, *, captured: bool = True) -> Any:
        with devices.enough(self.device, f"a pass ({key[0]})"):
            return self.graphs.run(key, function, inputs) if captured else self.graphs.call(function, inputs)

    def _sweep(self, inputs: Inputs, *, soft: bool) -> Swept:
        """`inputs` by the names of `sweep.Asked`."""
        key = ("sweep", soft, *((name, tensor.shape) for name, tensor in inputs.items()))
        return self._run(key, lambda given: sweep(self.network.table, Asked(**given), self.cap, soft=soft), inputs)

    def _look(self, rows: Sequence[Row], hidden: Tensor, shapes: Shapes) -> list[Prediction]:
        question = Question(rows, shapes.canvases, shapes.canvas, self.sets)
        swept = self._sweep({"hidden": hidden, **question.inputs()}, soft=True)
        logprobs = question.logprobs(hidden, swept, self.network.table, self.cap)
        return predictions(question, swept, logprobs)

    def _score(self, text: np.ndarray, hidden: Tensor, before: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """argmax [n], and the log-probability [n] of each token of `text` from the hidden state before it."""
        previous = torch.zeros_like(hidden[:1]) if before is None else before[-1:]
        given = torch.from_numpy(text).to(self.device)
        argmax, logprob = [], []
        for first in range(0, len(text), SCORED):
            part = slice(first, first + SCORED)
            logits = head(self.network.table, torch.cat((previous, hidden[part])), self.cap)
            argmax.append(logits[1:].argmax(dim=-1).int())
            logprob.append(logits[:-1].log_softmax(dim=-1).gather(1, given[part, None])[:, 0])
            previous = hidden[part][-1:]
        host = bring({"argmax": torch.cat(argmax), "logprob": torch.cat(logprob)})
        if before is None:
            host["logprob"][0] = np.nan
        return host["argmax"], host["logprob"]

    def _next_token(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> NextToken:
        if not parts:
            return NextToken(np.zeros(0, np.int32), np.zeros(0, np.float32))
        return NextToken(*(np.concatenate(part) for part in zip(*parts, strict=True)))
