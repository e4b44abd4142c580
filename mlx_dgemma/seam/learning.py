"""The seam where a model learns: what a loss needs of its passes, and what a training run needs of a model.

Arrays of a framework go through a loss as they are: it only adds, multiplies and takes means of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import need

Array = Any  # of the framework


@dataclass(frozen=True)
class Canvases:
    """B texts, and a canvas somewhere in each: it stands at `starts[b]`, and sees what is before that."""

    texts: Sequence[np.ndarray]  # B of [n] int32
    starts: np.ndarray  # [B] int32, at least 1 and at most the text's length
    tokens: np.ndarray  # [B, L] int32, as they stand

    def conditioning(self, which: np.ndarray) -> Canvases:
        """Select by `which` [B] bool; each text is cut where its canvas begins."""
        texts = [text[:start] for text, start, chosen in zip(self.texts, self.starts, which, strict=True) if chosen]
        return Canvases(texts, self.starts[which], self.tokens[which])


class Passes(Protocol):
    """The passes of a model, as a loss sees them. Gradients flow through all but `soft`'s predictions."""

    def array(self, values: np.ndarray) -> Array:
        """Copy to the device."""

    def hidden(self, canvases: Canvases, soft: Array | None, which: np.ndarray) -> tuple[Array, Array]:
        """Both passes at once -> last hidden states of all texts one after another [sum n, D], and of all canvases
        [B * L, D]. `soft` is that of the canvases that `which` [B] bool selects; that of the others is zero."""

    def soft(self, canvases: Canvases) -> Array:
        """[B * L, D]: the mean embedding that a first pass over each canvas predicts. No gradient flows into that pass,
        but one flows into the embedding."""

    def logsumexp(self, hidden: Array) -> Array:
        """[T] float32, of the logits of [T, D]. They are never whole: gradients make them again, slice by slice."""

    def logits_at(self, hidden: Array, ids: np.ndarray) -> Array:
        """[T] float32: of each of [T, D], the logit of one token."""

    def logaddexp(self, a: Array, b: Array) -> Array:
        """log(exp(a) + exp(b))."""


Loss = Callable[[Passes], tuple[Array, Array, Array]]  # -> all of it, the canvases' part, the texts' part


def losses_of(losses: Sequence[Loss], rank: int, ranks: int) -> Sequence[Loss]:
    """Return the losses of process `rank`. Mistake where the processes of a run do not divide them."""
    got = f"{len(losses)}, which {ranks} processes divide among them"
    need(len(losses) % ranks == 0, f"--grad-accumulation-steps to be a multiple of {ranks}", got)
    return losses[rank::ranks]


@dataclass(frozen=True)
class Optimizer:
    """How weights follow their gradients. The words are mlx-lm's."""

    name: str = "adamw"  # or adafactor
    betas: tuple[float, float] = (0.95, 0.99)
    weight_decay: float = 1e-4
    max_norm: float = 1.0  # gradients are clipped to this norm


class Learner(Protocol):
    """A model whose weights, or whose adapter, are learnt. The model itself writes with what is learnt so far."""

    count: int
    """Numbers that are learnt."""
    lead: bool
    """False in all processes of a run but the first: that one writes and speaks."""

    def step(self, losses: Sequence[Loss], learning_rate: float) -> tuple[list[float], float]:
        """One step by the mean of the losses' gradients, which the processes of a run divide among them -> the means of
        the three parts, and the gradient's norm before it was clipped. Where that is not finite nothing is changed."""

    def losses(self, loss: Loss) -> list[float]:
        """The three parts, without a step."""

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Write what is learnt and the optimizer's state, a whole file or none."""

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote."""

    def export(self, path: Path) -> None:
        """Write what is learnt by the names that mlx-lm gives it, a whole file or none."""
