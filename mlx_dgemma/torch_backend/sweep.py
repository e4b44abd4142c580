"""What the vocabulary says of T positions: head, softcap, temperature, argmax, entropy, draw, and the mean embedding
that the next pass hears.

The raw logits are kept in the activations' dtype, some positions at a time. What is made of them in float32 is made
slice by slice of the vocabulary and never stored: on a GPU one compiled kernel reads them and writes a few numbers a
slice, another writes the shares. The draw inverts the cumulative distribution in vocabulary order: the sums of the
slices tell in which slice each position's token lies, and that one slice a position is looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import fused
from .layers import Embedding

LOGITS = 512_000_000  # bytes of raw logits at a time, at most
WIDTH = 4096  # of a slice
BARRED = -1e31  # the logit of a token that is not allowed


@dataclass
class Asked:
    """What is asked of T positions."""

    hidden: Tensor  # [T, D], normed
    temperature: Tensor  # [T] float32
    uniforms: Tensor  # [T] float32
    allowed: Tensor | None = None  # [sets, V] bool
    index: Tensor | None = None  # [T] into `allowed`

    def part(self, which: slice) -> Asked:
        index = None if self.index is None else self.index[which]
        return Asked(self.hidden[which], self.temperature[which], self.uniforms[which], self.allowed, index)


@dataclass
class Swept:
    """What was found."""

    argmax: Tensor  # [T] int32
    sample: Tensor  # [T] int32
    entropy: Tensor  # [T] float32, nats
    confidence: Tensor  # [T] float32
    normaliser: Tensor  # [T] float32: logsumexp of the processed logits
    soft: Tensor | None  # [T, D]: the mean embedding, scaled as embeddings are


def capped(raw: Tensor, cap: float) -> Tensor:
    return torch.tanh(raw.float() / cap) * cap


def head(table: Embedding, hidden: Tensor, cap: float) -> Tensor:
    """[T, D] -> [T, V] float32, softcapped."""
    return capped(table(hidden), cap)


def processed(raw: Tensor, temperature: Tensor, may: Tensor | None, cap: float) -> Tensor:
    """Raw logits [T, ...], temperature [T, ...] and what is allowed [T, ...] -> capped, tempered, barred; float32."""
    logits = capped(raw, cap) / temperature
    return logits if may is None else torch.where(may, logits, BARRED)


@fused
def look_at_slices(raw: Tensor, temperature: Tensor, may: Tensor | None, cap: float):
    """[T, S, W] -> of each slice [T, S]: the largest logit and its place, the sum of weights exp(logit - largest), and
    of weight * (logit - largest)."""
    logits = processed(raw, temperature[:, None, None], may, cap)
    top, place = logits.max(dim=-1)
    below = logits - top[..., None]
    weights = below.exp()
    return top, place, weights.sum(dim=-1), (weights * below).sum(dim=-1)


@fused
def shares(raw: Tensor, temperature: Tensor, may: Tensor | None, normaliser: Tensor, cap: float) -> Tensor:
    """[T, V] -> the probabilities, in the dtype of `raw`."""
    return (processed(raw, temperature[:, None], may, cap) - normaliser[:, None]).exp().to(raw.dtype)


def sweep(table: Embedding, asked: Asked, cap: float, *, soft: bool = True) -> Swept:
    """Over the whole vocabulary; `soft`: the mean embedding, too."""
    size = max(1, LOGITS // (table.vocab_size * asked.hidden.element_size()))
    total = len(asked.hidden)
    parts = [_sweep(table, asked.part(slice(i, i + size)), cap, soft) for i in range(0, total, size)]
    if len(parts) == 1:
        return parts[0]
    return Swept(
        *(None if x[0] is None else torch.cat(x) for x in zip(*(vars(p).values() for p in parts), strict=True))
    )


def _sweep(table: Embedding, asked: Asked, cap: float, soft: bool) -> Swept:
    width = WIDTH if table.vocab_size % WIDTH == 0 else table.vocab_size
    raw = table(asked.hidden)
    may = None if asked.allowed is None else asked.allowed[asked.index]
    sliced = raw.unflatten(-1, (-1, width)), None if may is None else may.unflatten(-1, (-1, width))
    tops, places, masses, heats = look_at_slices(sliced[0], asked.temperature, sliced[1], cap)
    top, best = tops.max(dim=-1, keepdim=True)  # the first of equals
    fade = (tops - top).exp()
    heat = ((heats + (tops - top) * masses) * fade).sum(dim=-1)
    masses = masses * fade
    ends = masses.cumsum(dim=-1)
    total = ends[:, -1]
    sample, weight = _draw(*sliced, asked, top, masses, ends, cap)
    normaliser = top[:, 0] + total.log()
    mean = table.scaled(table.mean(shares(raw, asked.temperature, may, normaliser, cap))) if soft else None
    return Swept(
        argmax=(best * width + places.gather(1, best))[:, 0].int(),
        sample=sample,
        entropy=total.log() - heat / total,
        confidence=weight / total,
        normaliser=normaliser,
        soft=mean,
    )


def _draw(raw: Tensor, may: Tensor | None, asked: Asked, top: Tensor, masses: Tensor, ends: Tensor, cap: float):
    """The sample [T], and its weight [T]: exp(logit - top). `masses` [T, S] are the sums of such weights, `ends` sums
    of those.

    The token is the first whose cumulative sum exceeds the uniform's share of the whole, which is below the whole."""
    share = asked.uniforms[:, None] * ends[:, -1:]
    chosen = (ends <= share).sum(dim=1).clamp(max=ends.shape[1] - 1)
    each, width = torch.arange(len(chosen), device=chosen.device), raw.shape[-1]
    own = None if may is None else may[each, chosen]
    weights = (processed(raw[each, chosen], asked.temperature[:, None], own, cap) - top).exp()
    before = (ends - masses).gather(1, chosen[:, None])
    sums = weights.cumsum(dim=1) + before
    # Summed in another order, the slice may end short of the share: then its last token that can be is meant.
    last = torch.where(weights > 0, torch.arange(width, device=chosen.device), 0).amax(dim=1)
    place = torch.minimum((sums <= share).sum(dim=1), last)
    return (chosen * width + place).int(), weights.gather(1, place[:, None])[:, 0]
