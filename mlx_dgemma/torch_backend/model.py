"""The torch implementation of `seam.model.DiffusionModel`: CUDA, and the CPU.

The texts and rows of a call go through the network together. On a GPU they are padded to shapes of which there are
few, so that each shape's pass is a CUDA graph. On a CPU each has its own shape, and its numbers do not depend on its
company; where BLAS sums a row in company otherwise than alone, each goes alone.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.config import ModelConfig
from ..errors import Mistake
from ..seam import token_sets
from ..seam.model import Continuation, Draw, NextToken, Prediction, Row, Text, TokenSet
from ..seam.shared import begin_autoregress, check_caches, checked, join_scores, pending_texts
from . import device as devices
from . import weights
from .cache import MIN_ROOM, Pool, TorchCache
from .draw import next_token, restrict
from .graphs import Graphs, Inputs
from .layers import sums_alike
from .network import Network
from .shapes import Pending, Shapes
from .sweep import SweepInputs, SweepResult, head, sweep
from .vocabulary import Readout, to_numpy

PREFILL_CHUNK = 1024  # tokens of one text encoded in one pass: memory stays bounded, Ctrl-C is heard between passes
AT_ONCE = 16  # texts encoded together
SCORED = 256  # tokens whose logits are whole in memory at a time, when a text is scored


class TorchModel:
    def __init__(self, network: Network, config: ModelConfig, device: torch.device):
        self.network, self.config, self.device = network, config, device
        self.facts, self.cap = config, config.final_logit_softcapping
        self.graphs = Graphs(device)
        self.pool = Pool(config, network.kinds, network.dtype, device, PREFILL_CHUNK)
        self.pool.moved = lambda: self.graphs.clear()
        self.fingerprint = functools.cache(lambda: weights.fingerprint(network, config))  # reads every weight
        self.padded = device.type == "cuda"

    @property
    def together(self) -> bool:
        """Whether texts and rows of a call go through the network together."""
        return self.padded or sums_alike(self.network.dtype, self.config.hidden_size)

    def new_cache(self, capacity: int | None = None) -> TorchCache:
        return TorchCache(self.pool, self.fingerprint, capacity or 0)

    def token_set(self, ids: Sequence[int]) -> TokenSet:
        return token_sets.token_set(ids, self.facts.vocab_size)

    def encode(
        self, texts: Sequence[Text], caches: Sequence[TorchCache], *, score: bool = False
    ) -> list[NextToken] | None:
        texts = [checked(text, self.facts.vocab_size) for text in texts]
        check_caches(texts, caches)
        scores: list[list] = [[] for _ in texts]
        for start in range(0, max(map(len, texts), default=0), PREFILL_CHUNK):
            parts = [(i, text[start : start + PREFILL_CHUNK]) for i, text in enumerate(texts) if len(text) > start]
            before = {i: caches[i].hidden for i, _ in parts}
            for group in self.groups(parts, AT_ONCE):
                hidden, _, _ = self.forward([(part, caches[i]) for i, part in group], [])
                if score:
                    for (i, part), states in zip(group, hidden, strict=True):
                        scores[i].append(self._score(part, states, before[i]))
        return [join_scores(parts) for parts in scores] if score else None

    def denoise(self, rows: Sequence[Row]) -> list[Prediction]:
        pending, predictions = self._encode_pending(rows), []
        for group in self.groups(rows, max(1, len(rows))):
            _, hidden, starts = self.forward(pending, group)
            predictions += self._read_out(group, hidden, starts)
        if not all(np.isfinite(prediction.entropy).all() for prediction in predictions):
            raise Mistake(f"the predictions are not finite: {weights.first_damaged(self.network)}")
        return predictions

    def now(self) -> float:
        return time.perf_counter()

    def peak_memory(self) -> int:
        return devices.peak(self.device)

    def free_memory(self) -> int:
        return devices.free(self.device)

    def cache_bytes(self, tokens: int) -> int:
        return self.config.cache_numbers(tokens) * self.network.dtype.itemsize

    def logits(self, row: Row) -> np.ndarray:
        _, hidden, _ = self.forward(self._encode_pending([row]), [row])
        return head(self.network.table, hidden[: len(row.canvas)], self.cap).cpu().numpy()

    def autoregress(self, continuations: Sequence[Continuation], draw: Draw) -> Iterator[list[int]]:
        steps, uniforms = begin_autoregress(self, continuations, draw)
        uniforms = torch.from_numpy(uniforms).to(self.device)
        caches = [text.cache for text in continuations]
        for step in range(steps):
            logits = head(self.network.table, torch.cat([cache.hidden[-1:] for cache in caches]), self.cap)
            if step == 0:
                logits = restrict(logits, [text.allowed for text in continuations])
            tokens = next_token(logits, draw, uniforms[:, step : step + 1])
            # Every token is read when the pass behind it is on its way already.
            arrived = devices.to_host(tokens)
            self._append(tokens, caches)
            yield arrived().tolist()

    def _append(self, tokens: Tensor, caches: Sequence[TorchCache]) -> None:
        """Encode one token [B] into each cache. Nothing is waited for."""
        unknown = Text(np.zeros(1, np.int32))
        for group in self.groups(range(len(caches)), AT_ONCE):
            self.forward([(unknown, caches[i]) for i in group], [], tokens=tokens[group[0] : group[-1] + 1])

    def _encode_pending(self, rows: Sequence[Row]) -> list[Pending]:
        """Encode what is pending -> what is left of it for the pass over the canvases: the last tokens of each text,
        where texts and canvases go together."""
        pending = pending_texts(rows, self.facts.vocab_size)
        left = [self._left(len(text)) if self.together else 0 for text, _ in pending]
        parts = [(text, len(text) - n, cache) for (text, cache), n in zip(pending, left, strict=True)]
        early = [(text[:end], cache) for text, end, cache in parts if end]
        self.encode([text for text, _ in early], [cache for _, cache in early])
        return [(text[end:], cache) for text, end, cache in parts if end < len(text)]

    def _left(self, tokens: int) -> int:
        """How many of a text's tokens go with the canvases. On a CPU pieces are those of a text that is encoded alone:
        by the length of a piece its attention is summed."""
        return min(tokens, PREFILL_CHUNK, self.facts.canvas_length) if self.padded else tokens % PREFILL_CHUNK

    def groups(self, items: Sequence, most: int) -> list[Sequence]:
        """Split `items` into those that go through the network together."""
        size = most if self.together else 1
        return [items[i : i + size] for i in range(0, len(items), size)]

    def forward(
        self, texts: list[Pending], rows: Sequence[Row], *, tokens: Tensor | None = None, eager: bool = False
    ) -> tuple[list[Tensor], Tensor, list[int]]:
        """Encode `texts` and look at the canvases behind them. The caches of `texts` are longer when it returns.

        Args:
            tokens: [B], the texts, of one token each, where only the device knows them yet.
            eager: run without a CUDA graph.

        Returns:
            The last hidden states of each text [n, D] and of the canvases [T, D], good until the next pass; and where
            in T each canvas begins, padding included, behind them T.
        """
        caches = [cache for _, cache in texts] + [row.cache for row in rows]
        lengths = [cache.length + len(text) for text, cache in texts]
        self.pool.reserve(caches, max([*lengths, *(cache.capacity for cache in caches)]))
        shapes = self._shapes(texts, rows)
        inputs = shapes.inputs(texts, rows, self.config.hidden_size, self.network.model.decoder.norm.weight)
        if tokens is not None:
            counts = [block.count for block in shapes.blocks]
            parts = torch.nn.functional.pad(tokens, (0, sum(counts) - len(tokens))).split(counts)
            inputs |= {f"ids {i}": part[:, None] for i, part in enumerate(parts)}

        def run(inputs: Inputs) -> Tensor:
            conditioning = (inputs["soft"], inputs["certain"]) if "soft" in inputs else None
            return self.network(shapes.tokens(inputs), conditioning, self.pool.layers)

        # A long piece of a prompt keeps the GPU busy for longer than its launches take; it needs no graph.
        short = all(block.length <= self.facts.canvas_length for block in shapes.blocks if block.causal)
        hidden = self._run(("pass", shapes), run, inputs, captured=short and not eager)
        *starts, count = shapes.starts(causal=True)
        states = [hidden[start : start + len(text)] for start, (text, _) in zip(starts, texts, strict=False)]
        for part, (_, cache) in zip(states, texts, strict=True):
            cache.advance(part)
        return states, hidden[count:], shapes.starts(causal=False)

    def _shapes(self, texts: list[Pending], rows: Sequence[Row]) -> Shapes:
        if not self.padded:
            return Shapes.exact(texts, rows)
        lengths = sorted({1, self.facts.canvas_length, PREFILL_CHUNK})
        return Shapes.rounded(texts, rows, lengths, MIN_ROOM[self.device.type])

    def _run(self, key: tuple, function: Callable[[Inputs], Any], inputs: Inputs, *, captured: bool = True) -> Any:
        with devices.memory_for(self.device, f"a pass ({key[0]})"):
            return self.graphs.run(key, function, inputs) if captured else self.graphs.call(function, inputs)

    def _read_out(self, rows: Sequence[Row], hidden: Tensor, starts: list[int]) -> list[Prediction]:
        readout = Readout(rows, starts)
        hidden = hidden.clone()  # read behind the sweep, too, which is a run of its own
        inputs = {"hidden": hidden, **readout.inputs(self.facts.vocab_size)}
        key = ("sweep", *((name, tensor.shape) for name, tensor in inputs.items()))

        def run(inputs: Inputs) -> SweepResult:
            return sweep(self.network.table, SweepInputs(**inputs), self.cap)

        result = self._run(key, run, inputs)
        logprobs = readout.logprobs(hidden, result, self.network.table, self.cap)
        return readout.predictions(result, logprobs)

    def _score(self, text: Text, hidden: Tensor, before: Tensor | None) -> tuple[np.ndarray, ...]:
        """Score each token of `text` by the hidden state before it -> the fields of `NextToken`."""
        previous = torch.zeros_like(hidden[:1]) if before is None else before[-1:]
        tokens = torch.from_numpy(text.tokens).to(self.device).long()
        argmax, logprob, top = [], [], []
        for first in range(0, len(text), SCORED):
            part = slice(first, first + SCORED)
            logprobs = head(self.network.table, torch.cat((previous, hidden[part])), self.cap).log_softmax(dim=-1)
            argmax.append(logprobs[1:].argmax(dim=-1).int())
            logprob.append(logprobs[:-1].gather(1, tokens[part, None])[:, 0])
            top.append(logprobs[1:].amax(dim=-1))
            previous = hidden[part][-1:]
        if before is None:
            logprob[0][0] = torch.nan
        parts = {"argmax": argmax, "logprob": logprob, "top": top}
        return tuple(to_numpy({name: torch.cat(each) for name, each in parts.items()}).values())
