"""A model that learns: the same network under autograd.

A pass has keys and values of its own, no slots of the pool.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.utils.checkpoint as torch_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint.adapter import Start
from ..checkpoint.whole_file import whole_file
from ..errors import Mistake
from ..seam.learning import Canvases, Loss, Optimizer, losses_of
from . import device as devices
from .layers import Embedding
from .lora import attach, shapes, weights
from .model import TorchModel
from .sweep import SweepInputs, capped, sweep
from .tokens import Tokens

WIDTH = 4096  # tokens of the vocabulary whose logits are made at a time
# Texts that are padded to the longest of them, neighbours of about a length: a GPU waits for launches, not for padding.
TOGETHER = {"cpu": 4, "cuda": 32}


class LogSumExp(torch.autograd.Function):
    """[T] float32, of the capped logits of hidden states [T, D]; both directions go through the table in slices."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, table: Embedding, cap: float) -> Tensor:
        total = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        for part in _slices(table):
            total = torch.logaddexp(total, capped(hidden @ table.rows(part, hidden.dtype).T, cap).logsumexp(dim=-1))
        ctx.save_for_backward(hidden, weight, total)
        ctx.table, ctx.cap = table, cap
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        hidden, weight, total = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in _slices(ctx.table):
            rows = ctx.table.rows(part, hidden.dtype)
            logits = capped(hidden @ rows.T, ctx.cap)
            slope = (logits - total[:, None]).exp() * gradient[:, None] * (1 - (logits / ctx.cap) ** 2)
            slope = slope.to(hidden.dtype)
            to_hidden += slope @ rows
            if to_weight is not None:
                to_weight[part] = slope.T @ hidden
        return to_hidden.to(hidden.dtype), to_weight, None, None


class MeanEmbedding(torch.autograd.Function):
    """[T, D]: `sweep`'s soft embedding of hidden states, with a gradient for the table alone."""

    @staticmethod
    def forward(ctx, weight: Tensor, hidden: Tensor, table: Embedding, cap: float) -> Tensor:
        ones = hidden.new_ones(len(hidden), dtype=torch.float32)
        with torch.compiler.set_stance("default"):  # uncompiled, a sweep keeps float32 logits
            result = sweep(table, SweepInputs(hidden, ones, torch.zeros_like(ones)), cap)
        ctx.save_for_backward(weight, hidden, result.normaliser)
        ctx.table, ctx.cap = table, cap
        return result.soft

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight, hidden, normaliser = ctx.saved_tensors
        to_weight, scaled = torch.zeros_like(weight), ctx.table.scaled(gradient)
        for part in _slices(ctx.table):
            logits = capped(hidden @ ctx.table.rows(part, hidden.dtype).T, ctx.cap)
            to_weight[part] = (logits - normaliser[:, None]).exp().to(hidden.dtype).T @ scaled
        return to_weight, None, None, None


def _slices(table: Embedding) -> Iterator[slice]:
    for first in range(0, table.vocab_size, WIDTH):
        yield slice(first, min(first + WIDTH, table.vocab_size))


def _padded(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[N, longest] int64: token ids; and bool: which are a text's."""
    lengths = np.array([len(text) for text in texts])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    ids[real] = np.concatenate(texts)
    return ids, real


class TorchPasses:
    """Implements `seam.learning.Passes`."""

    def __init__(self, model: TorchModel):
        self.network, self.device, self.cap = model.network, model.device, model.cap

    def array(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)

    def hidden(self, canvases: Canvases, soft: Tensor | None, which: np.ndarray) -> tuple[Tensor, Tensor]:
        count, length = canvases.tokens.shape
        lengths, slots = np.array([len(text) for text in canvases.texts], np.int32), np.arange(count, dtype=np.int32)
        blocks, places, longest = [], [], int(lengths.max())
        size = TOGETHER[self.device.type]
        for first in range(0, count, size):
            part = slice(first, first + size)
            ids, real = _padded(canvases.texts[part])
            arrays = ids, np.zeros_like(slots[part]), lengths[part], slots[part]
            blocks.append(Tokens(*map(self.array, arrays), causal=True, context=ids.shape[1]))
            places.append(real.ravel())
        arrays = canvases.tokens.astype(np.int64), canvases.starts, np.full_like(lengths, length), slots
        blocks.append(Tokens(*map(self.array, arrays), causal=False, context=longest))
        certain, real = torch.full((count * length,), -1, device=self.device), np.concatenate(places)
        hidden = self.network(blocks, (self._laid(soft, which, length), certain), self._caches(count, longest))
        return hidden.index_select(0, self.array(np.flatnonzero(real))), hidden[len(real) :]

    def _laid(self, soft: Tensor | None, which: np.ndarray, length: int) -> Tensor:
        """[B * L, D]: `soft` where it is known, zeros elsewhere."""
        zeros = torch.zeros((1, length, self.network.config.hidden_size), dtype=self.network.dtype, device=self.device)
        known = zeros[:0] if soft is None else soft.unflatten(0, (-1, length))
        places = np.where(which, np.cumsum(which) - 1, len(known))
        return torch.cat((known, zeros)).index_select(0, self.array(places)).flatten(0, 1)

    def _caches(self, count: int, room: int) -> Iterator[tuple[Tensor, Tensor]]:
        for kind in self.network.kinds:
            shape = count, room + 1, kind.num_key_value_heads, kind.head_dim
            keys, values = (torch.zeros(shape, dtype=self.network.dtype, device=self.device) for _ in range(2))
            yield keys, values

    def soft(self, canvases: Canvases) -> Tensor:
        with torch.no_grad():
            _, hidden = self.hidden(canvases, None, np.zeros(len(canvases.starts), bool))
        return MeanEmbedding.apply(self.network.table.weight, hidden, self.network.table, self.cap)

    def logsumexp(self, hidden: Tensor) -> Tensor:
        return LogSumExp.apply(hidden, self.network.table.weight, self.network.table, self.cap)

    def logits_at(self, hidden: Tensor, ids: np.ndarray) -> Tensor:
        rows = self.network.table.rows(self.array(ids).long(), hidden.dtype)
        return capped((hidden.float() * rows.float()).sum(dim=-1), self.cap)

    def logaddexp(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.logaddexp(a, b)


class TorchLearner:
    """Implements `seam.learning.Learner`. Each rank that torchrun started has the whole model."""

    def __init__(self, model: TorchModel, start: Start | None, optimizer: Optimizer, *, checkpoint: bool):
        """`start` makes the adapter that is learnt, from the shapes of all linears; None: all weights are."""
        self.model, self.max_norm = model, optimizer.max_norm
        self.rank, self.ranks = _met(model.device)
        self.lead = self.rank == 0
        if start:
            added = attach(model.network, start(shapes(model.network)))
            self.places = {name: (array, slice(None)) for name, array in added.items()}
        else:
            self.places = weights(model.network)
        self.learnt = list({id(array): array for array, _ in self.places.values()}.values())
        if checkpoint:
            model.network.run = partial(torch_checkpoint.checkpoint, use_reentrant=False)
        self.optimizer = _optimizer(self.learnt, optimizer)

    @property
    def count(self) -> int:
        return sum(array.numel() for array in self.learnt)

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Only inside do weights have gradients: what the model writes between two steps needs none. Passes without one
        are not compiled either: a short run would spend its time in the compiler."""
        for array in self.learnt:
            array.requires_grad_()
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for array in self.learnt:
                array.requires_grad_(False)

    def step(self, losses: Sequence[Loss], learning_rate: float) -> tuple[list[float], float]:
        mine = losses_of(losses, self.rank, self.ranks)
        parts = torch.zeros(3, device=self.model.device)
        self.optimizer.zero_grad()
        with self._learning(), devices.memory_for(self.model.device, "a step"):
            for loss in mine:
                values = loss(TorchPasses(self.model))
                (values[0] / len(losses)).backward()
                parts += torch.stack(values).detach() / len(losses)
            for array in (parts, *(array.grad for array in self.learnt if array.grad is not None)):
                _sum_over_ranks(array)
            norm = torch.nn.utils.clip_grad_norm_(self.learnt, self.max_norm).item()
        if np.isfinite(norm):
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        return parts.tolist(), norm

    def losses(self, loss: Loss) -> list[float]:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return [value.item() for value in loss(TorchPasses(self.model))]

    def save(self, path: Path, about: dict[str, str]) -> None:
        arrays = {f"learnt.{i}": array for i, array in enumerate(self.learnt)}
        for i, array in enumerate(self.learnt):
            arrays |= {f"optimizer.{i}.{name}": state for name, state in self.optimizer.state[array].items()}
        _write(path, arrays, about)

    def resume(self, path: Path) -> None:
        for name, stored in load_file(path, device=str(self.model.device)).items():
            kind, number, *rest = name.split(".")
            array = self.learnt[int(number)]
            if kind == "learnt":
                array.copy_(stored)
            else:
                on_host = rest[0] == "step" and not self.optimizer.defaults.get("fused")
                self.optimizer.state[array][rest[0]] = stored.cpu() if on_host else stored

    def export(self, path: Path) -> None:
        _write(path, {name: array[rows] for name, (array, rows) in self.places.items()}, {"format": "mlx"})


def _met(device: torch.device) -> tuple[int, int]:
    """This process's rank among those that torchrun started, and how many there are."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    _sum_over_ranks(torch.zeros(1, device=device))  # all are here before the first writes a file
    return dist.get_rank(), dist.get_world_size()


def _sum_over_ranks(array: Tensor) -> None:
    """In place."""
    if not dist.is_initialized():
        return
    try:
        dist.all_reduce(array)
    except RuntimeError as error:
        raise Mistake(f"another rank stopped, its own message says why ({str(error).partition('. ')[0]})") from error


def _optimizer(arrays: list[Tensor], options: Optimizer) -> torch.optim.Optimizer:
    if options.name == "adafactor":
        return torch.optim.Adafactor(arrays, 0.0, weight_decay=options.weight_decay)
    fused = all(array.is_cuda for array in arrays)  # all arrays in a few launches
    return torch.optim.AdamW(arrays, 0.0, options.betas, weight_decay=options.weight_decay, fused=fused or None)


def _write(path: Path, arrays: dict[str, Tensor], about: dict[str, str]) -> None:
    with whole_file(path) as part:
        save_file({name: array.contiguous() for name, array in arrays.items()}, part, about)
