"""One sweep over the vocabulary for T positions: head, softcap, temperature, argmax, entropy, draw, mean embedding.

The raw logits are kept in the activations' dtype, some positions at a time. Their float32 values are made slice by
slice of the vocabulary and never stored: on a GPU one compiled kernel reads the logits and writes a few numbers a
slice, another writes the probabilities. The draw inverts the cumulative distribution in vocabulary order: the sums of
the slices tell in which slice each position's token lies, and only that slice is summed token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import parallel
from .fused import fused
from .layers import Embedding

LOGITS = 512_000_000  # bytes of raw logits at a time, at most
WIDTH = 4096  # of a slice
BARRED = -1e31  # the logit of a token that is not allowed


@dataclass
class SweepInputs:
    """T positions: their hidden states, and how their tokens are drawn."""

    hidden: Tensor  # [T, D], normed
    temperature: Tensor  # [T] float32
    uniforms: Tensor  # [T] float32
    allowed: Tensor | None = None  # [sets, V] bool
    allowed_index: Tensor | None = None  # [T] into `allowed`

    def part(self, which: slice) -> SweepInputs:
        index = None if self.allowed_index is None else self.allowed_index[which]
        return SweepInputs(self.hidden[which], self.temperature[which], self.uniforms[which], self.allowed, index)


@dataclass
class SweepResult:
    """The first five are those of `seam.model.Prediction`."""

    argmax: Tensor  # [T] int32
    sample: Tensor  # [T] int32
    entropy: Tensor  # [T] float32, nats
    confidence: Tensor  # [T] float32
    top: Tensor  # [T] float32
    normaliser: Tensor  # [T] float32: logsumexp of the processed logits
    soft: Tensor | None  # [T, D]: the mean embedding, scaled as embeddings are


def capped(raw: Tensor, cap: float) -> Tensor:
    return torch.tanh(raw.float() / cap) * cap


def head(table: Embedding, hidden: Tensor, cap: float) -> Tensor:
    """[T, D] -> [T, V] float32, softcapped: cap * tanh(x / cap)."""
    return capped(parallel.gathered(table(hidden)), cap)


def processed(raw: Tensor, temperature: Tensor, allowed: Tensor | None, cap: float) -> Tensor:
    """Cap raw logits [T, ...], divide them by temperature [T, ...], bar what is not `allowed` [T, ...]; float32."""
    logits = capped(raw, cap) / temperature
    return logits if allowed is None else torch.where(allowed, logits, BARRED)


@fused
def reduce_slices(raw: Tensor, temperature: Tensor, allowed: Tensor | None, cap: float):
    """Reduce [T, S, W] to four [T, S], for each slice: its largest logit, the place of that, the sum of the weights
    exp(logit - largest), and the sum of weight * (logit - largest)."""
    logits = processed(raw, temperature[:, None, None], allowed, cap)
    top, place = logits.max(dim=-1)
    below = logits - top[..., None]
    weights = below.exp()
    return top, place, weights.sum(dim=-1), (weights * below).sum(dim=-1)


@fused
def probabilities(raw: Tensor, temperature: Tensor, allowed: Tensor | None, normaliser: Tensor, cap: float) -> Tensor:
    """[T, V] raw logits -> probabilities, in the dtype of `raw`."""
    return (processed(raw, temperature[:, None], allowed, cap) - normaliser[:, None]).exp().to(raw.dtype)


def sweep(table: Embedding, inputs: SweepInputs, cap: float, *, soft: bool = True) -> SweepResult:
    """Sweep the whole vocabulary; the mean embedding is made only where `soft`."""
    total = len(inputs.hidden)
    most = max(1, LOGITS // (table.vocab_size * inputs.hidden.element_size()))
    size = -(-total // -(-total // most))  # parts of a length: a product of few rows costs as one of many
    parts = [_sweep(table, inputs.part(slice(i, i + size)), cap, soft) for i in range(0, total, size)]
    if len(parts) == 1:
        return parts[0]
    fields = zip(*(vars(part).values() for part in parts), strict=True)
    return SweepResult(*(None if field[0] is None else torch.cat(field) for field in fields))


def _sweep(table: Embedding, inputs: SweepInputs, cap: float, soft: bool) -> SweepResult:
    width = WIDTH if table.vocab_size % WIDTH == 0 else table.vocab_size
    raw = table(inputs.hidden)
    allowed = None if inputs.allowed is None else inputs.allowed[:, table.here][inputs.allowed_index]
    sliced = raw.unflatten(-1, (-1, width)), None if allowed is None else allowed.unflatten(-1, (-1, width))
    tops, places, masses, heats = map(
        parallel.gathered, reduce_slices(sliced[0], inputs.temperature, sliced[1], cap)
    )  # of all ranks' slices
    top, best = tops.max(dim=-1, keepdim=True)  # the first of equals
    fade = (tops - top).exp()
    heat = ((heats + (tops - top) * masses) * fade).sum(dim=-1)
    masses = masses * fade
    ends = masses.cumsum(dim=-1)
    total = ends[:, -1]
    sample, weight = _draw(*sliced, inputs, top, masses, ends, cap)
    normaliser = top[:, 0] + total.log()
    mean = None
    if soft:
        mean = table.mean(probabilities(raw, inputs.temperature, allowed, normaliser, cap))
        mean = table.scaled(parallel.sum_up(mean))
    return SweepResult(
        argmax=(best * width + places.gather(1, best))[:, 0].int(),
        sample=sample,
        entropy=total.log() - heat / total,
        confidence=weight / total,
        top=1 / total,
        normaliser=normaliser,
        soft=mean,
    )


def _draw(
    raw: Tensor, allowed: Tensor | None, inputs: SweepInputs, top: Tensor, masses: Tensor, ends: Tensor, cap: float
):
    """Draw a token [T] for each position, and return it with its weight exp(logit - top) [T]. `masses` [T, S] are the
    sums of such weights by slice, `ends` their running sums.

    The token is the first whose cumulative sum exceeds the uniform's share of the whole, which is below the whole."""
    share = inputs.uniforms[:, None] * ends[:, -1:]
    chosen = (ends <= share).sum(dim=1).clamp(max=ends.shape[1] - 1)
    each, (slices, width) = torch.arange(len(chosen), device=chosen.device), raw.shape[-2:]
    here = chosen // slices == parallel.mine.rank
    local = chosen % slices
    allowed = None if allowed is None else allowed[each, local]
    weights = (processed(raw[each, local], inputs.temperature[:, None], allowed, cap) - top).exp()
    before = (ends - masses).gather(1, chosen[:, None])
    sums = weights.cumsum(dim=1) + before
    # Summed in another order, the slice may end short of the share: then its last token with any weight is drawn.
    last = torch.where(weights > 0, torch.arange(width, device=chosen.device), 0).amax(dim=1)
    place = torch.minimum((sums <= share).sum(dim=1), last)
    sample, weight = (chosen * width + place).int(), weights.gather(1, place[:, None])[:, 0]
    return parallel.placed(sample, here), parallel.placed(weight, here)
