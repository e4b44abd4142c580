"""A model that learns: the same network under `mx.value_and_grad`, with keys and values that last one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.optimizers import clip_grad_norm
from mlx.utils import tree_flatten, tree_map_with_path

from ..checkpoint.adapter import Start
from ..checkpoint.config import LayerConfig
from ..checkpoint.whole_file import whole_file
from ..seam.learning import Canvases, Loss, Optimizer, losses_of
from .layers import Embedding
from .lora import LoRALinear, attach, shapes
from .model import MLXModel
from .network import Layer, Segment
from .sweep import Slices, Sweep, SweepInputs

WIDTH = 4096  # tokens of the vocabulary whose logits are made at a time


class TextKV:
    """One layer's keys and values of a whole text, with the methods of a cache that a `Segment` needs."""

    def __init__(self):
        self.pair: tuple[mx.array, mx.array] | None = None

    def write(self, keys: mx.array, values: mx.array, *, text: bool) -> slice:
        self.pair = keys, values
        return slice(None)

    def view(self, span: slice) -> tuple[mx.array, mx.array]:
        return self.pair


class CanvasKV(TextKV):
    """The keys and values that a canvas sees: all text before it, on sliding layers the end of that, and its own."""

    def __init__(self, text: TextKV, start: int, seen: int | None):
        super().__init__()
        self.text, self.part = text, slice(0 if seen is None else max(0, start - seen), start)

    def view(self, span: slice) -> tuple[mx.array, mx.array]:
        pairs = zip(self.text.pair, self.pair, strict=True)
        return tuple(mx.concatenate([before[:, :, self.part], new], axis=2) for before, new in pairs)


@dataclass
class PassCache:
    layers: list[TextKV]

    @classmethod
    def pair(cls, kinds: tuple[LayerConfig, ...], window: int, start: int) -> tuple[PassCache, PassCache]:
        """Make those of a text, and of a canvas at `start` in it."""
        text = [TextKV() for _ in kinds]
        seen = [window - 1 if kind.sliding else None for kind in kinds]
        return cls(text), cls([CanvasKV(layer, start, n) for layer, n in zip(text, seen, strict=True)])


def _slices(table: Embedding) -> Iterator[slice]:
    vocab_size = table.weight.shape[0]
    for first in range(0, vocab_size, WIDTH):
        yield slice(first, min(first + WIDTH, vocab_size))


def _rows(table: Embedding, weight: mx.array, part: slice, dtype: mx.Dtype) -> mx.array:
    """A slice of `weight`, the table's, which may be traced; a quantized table does not learn."""
    return weight[part] if table.quantization is None else table.rows(part, dtype)


def _capped(raw: mx.array, cap: float) -> mx.array:
    return mx.tanh(raw.astype(mx.float32) / cap) * cap


def log_sum_exp(table: Embedding, cap: float):
    """Make a function (hidden [T, D], the table's weight) -> [T] float32, of the capped logits; both directions go
    through the table in slices."""

    @mx.custom_function
    def function(hidden: mx.array, weight: mx.array) -> mx.array:
        total = mx.full((len(hidden),), -mx.inf)
        for part in _slices(table):
            logits = _capped(hidden @ _rows(table, weight, part, hidden.dtype).T, cap)
            total = mx.logaddexp(total, mx.logsumexp(logits, axis=-1))
            hidden = mx.depends(hidden, total)  # or all slices would be made first
        return total

    @function.vjp
    def backward(primals, gradient, total):
        hidden, weight = primals
        to_hidden, to_weight = mx.zeros(hidden.shape), []
        for part in _slices(table):
            rows = _rows(table, weight, part, hidden.dtype)
            logits = _capped(hidden @ rows.T, cap)
            slope = mx.exp(logits - total[:, None]) * gradient[:, None] * (1 - mx.square(logits / cap))
            slope = slope.astype(hidden.dtype)
            to_hidden = to_hidden + slope @ rows
            if table.quantization is None:  # lazy: computed only if the table learns
                to_weight.append(slope.T @ hidden)
            hidden = mx.depends(hidden, to_hidden)
        whole = mx.concatenate(to_weight) if to_weight else mx.zeros_like(weight)
        return to_hidden.astype(hidden.dtype), whole

    return function


def mean_embedding(table: Embedding, hidden: mx.array, cap: float):
    """Make a function (the table's weight) -> [T, D]: the soft embedding that `hidden` predicts, scaled as embeddings
    are, with a gradient for the table alone."""
    ones = mx.ones(len(hidden))
    result = Sweep(Slices(table), SweepInputs(hidden, ones, 0 * ones, np.ones(len(hidden), bool)), cap).run()
    soft = mx.stop_gradient(result.soft.astype(table.dtype) * table.width**0.5)
    normaliser = mx.stop_gradient(result.normaliser)

    @mx.custom_function
    def function(weight: mx.array) -> mx.array:
        return soft

    @function.vjp
    def backward(weight, gradient, _):
        if table.quantization is not None:
            return mx.zeros_like(weight)
        scaled, parts = gradient * table.width**0.5, []
        for part in _slices(table):
            logits = _capped(hidden @ weight[part].T, cap)
            parts.append(mx.exp(logits - normaliser[:, None]).astype(hidden.dtype).T @ scaled)
        return mx.concatenate(parts)

    return function


class MLXPasses:
    """Implements `seam.learning.Passes`."""

    def __init__(self, model: MLXModel):
        self.model, self.table, self.cap = model, model.table, model.cap

    def array(self, values: np.ndarray) -> mx.array:
        return mx.array(values)

    def hidden(self, canvases: Canvases, soft: mx.array | None, which: np.ndarray) -> tuple[mx.array, mx.array]:
        config, length = self.model.config, canvases.tokens.shape[1]
        pairs = [PassCache.pair(config.layers, config.sliding_window, int(start)) for start in canvases.starts]
        segments, first = [], 0
        for text, (cache, _) in zip(canvases.texts, pairs, strict=True):
            segments.append(Segment(first, first := first + len(text), cache, 0, causal=True))
        texts = first
        for start, (_, cache) in zip(canvases.starts.tolist(), pairs, strict=True):
            segments.append(Segment(first, first := first + length, cache, start, causal=False))
        embedded = self.table(mx.array(np.concatenate([*canvases.texts, *canvases.tokens])))
        condition = self.model.network.model.decoder.self_conditioning
        conditioned = condition(embedded[texts:], None if soft is None else self._laid(soft, which, length))
        hidden = self.model.network(mx.concatenate([embedded[:texts], conditioned]), segments)
        return hidden[:texts], hidden[texts:]

    def _laid(self, soft: mx.array, which: np.ndarray, length: int) -> mx.array:
        """[B * L, D]: `soft` where it is known, zeros elsewhere."""
        known = soft.reshape(-1, length, soft.shape[-1])
        places = np.where(which, np.cumsum(which) - 1, len(known))
        laid = mx.concatenate([known, mx.zeros_like(known[:1])])[mx.array(places)]
        return laid.reshape(-1, soft.shape[-1])

    def soft(self, canvases: Canvases) -> mx.array:
        _, hidden = self.hidden(canvases, None, np.zeros(len(canvases.starts), bool))
        return mean_embedding(self.table, mx.stop_gradient(hidden), self.cap)(self.table.weight)

    def logsumexp(self, hidden: mx.array) -> mx.array:
        return log_sum_exp(self.table, self.cap)(hidden, self.table.weight)

    def logits_at(self, hidden: mx.array, ids: np.ndarray) -> mx.array:
        rows = self.table.rows(mx.array(ids), hidden.dtype)
        return _capped((hidden.astype(mx.float32) * rows.astype(mx.float32)).sum(axis=-1), self.cap)

    def logaddexp(self, a: mx.array, b: mx.array) -> mx.array:
        return mx.logaddexp(a, b)


def checkpointed(layer: Layer, x: mx.array, segments: list[Segment], index: int, scalar: mx.array) -> mx.array:
    """Run a layer whose activations are made again when its gradient is."""

    def call(parameters: dict, x: mx.array, scalar: mx.array) -> mx.array:
        layer.update(parameters)
        return layer(x, segments, index, scalar)

    return mx.checkpoint(call)(layer.trainable_parameters(), x, scalar)


class MLXLearner:
    """Implements `seam.learning.Learner`."""

    def __init__(self, model: MLXModel, start: Start | None, optimizer: Optimizer, *, checkpoint: bool):
        """`start` makes the adapter that is learnt, from the shapes of all linears; None: all weights are."""
        self.model, self.network, self.max_norm = model, model.network, optimizer.max_norm
        self.group = mx.distributed.init()  # of one process, unless mlx.launch started more
        self.lead = self.group.rank() == 0
        mx.eval(mx.distributed.all_sum(mx.array(1.0)))  # all are here before the first writes a file
        if start:
            attach(self.network, start(shapes(self.network)))
            self.network.freeze()
            self.network.apply_to_modules(_unfreeze)
        if checkpoint:
            self.network.run = checkpointed
        self.optimizer = _optimizer(optimizer)
        self.optimizer.init(self.learnt)

    @property
    def learnt(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.network.trainable_parameters()))

    @property
    def count(self) -> int:
        return sum(array.size for array in self.learnt.values())

    def _put(self, arrays: dict[str, mx.array]) -> None:
        self.network.load_weights(list(arrays.items()), strict=False)

    def step(self, losses: Sequence[Loss], learning_rate: float) -> tuple[list[float], float]:
        mine, learnt = losses_of(losses, self.group.rank(), self.group.size()), self.learnt
        gradients, parts = dict.fromkeys(learnt, 0.0), np.zeros(3, np.float32)
        for loss in mine:

            def function(arrays: dict[str, mx.array], loss: Loss = loss) -> tuple[mx.array, ...]:
                self._put(arrays)
                return loss(MLXPasses(self.model))

            values, more = mx.value_and_grad(function)(learnt)
            gradients = {name: gradients[name] + array / len(losses) for name, array in more.items()}
            mx.eval(values, gradients)
            parts += np.array([value.item() for value in values], np.float32) / len(losses)
        gradients = {name: mx.distributed.all_sum(array) for name, array in gradients.items()}
        parts = mx.distributed.all_sum(mx.array(parts))
        gradients, norm = clip_grad_norm(gradients, self.max_norm)
        if np.isfinite(norm.item()):
            self.optimizer.learning_rate = learning_rate
            learnt = self.optimizer.apply_gradients(gradients, learnt)
        self._put(learnt)
        mx.eval(learnt, self.optimizer.state)
        self.model.slices = Slices(self.model.table)  # views of the table as it is now
        return parts.tolist(), norm.item()

    def losses(self, loss: Loss) -> list[float]:
        values = loss(MLXPasses(self.model))
        mx.eval(values)
        return [value.item() for value in values]

    def save(self, path: Path, about: dict[str, str]) -> None:
        state = {f"optimizer.{name}": array for name, array in tree_flatten(self.optimizer.state)}
        _write(path, state | {f"learnt.{name}": array for name, array in self.learnt.items()}, about)

    def resume(self, path: Path) -> None:
        arrays = mx.load(str(path), format="safetensors")
        stored = {kind: {} for kind in ("optimizer", "learnt")}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            stored[kind][rest] = array
        self._put(stored["learnt"])
        self.optimizer.state = tree_map_with_path(lambda name, _: stored["optimizer"][name], self.optimizer.state)
        self.model.slices = Slices(self.model.table)

    def export(self, path: Path) -> None:
        _write(path, self.learnt, {"format": "mlx"})


def _unfreeze(_: str, module: nn.Module) -> None:
    if isinstance(module, LoRALinear):
        module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)


def _optimizer(options: Optimizer) -> optim.Optimizer:
    if options.name == "adafactor":
        return optim.Adafactor(0.0, weight_decay=options.weight_decay, relative_step=False, scale_parameter=False)
    return optim.AdamW(0.0, list(options.betas), weight_decay=options.weight_decay, bias_correction=True)


def _write(path: Path, arrays: dict[str, mx.array], about: dict[str, str]) -> None:
    with whole_file(path, ".safetensors") as part:
        mx.save_safetensors(str(part), arrays, about)
