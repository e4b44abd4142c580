"""The loss: what DiffusionGemma's makers train on, and the variants that have a name.

One canvas an example is noised, and all its positions are to be predicted, the clean ones and the fill behind the end,
too. The causal pass learns the next token of the same text. Google's JAX code is followed, save where a field says
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import need
from ..seam.learning import Array, Canvases, Loss, Passes
from ..seam.model import Facts

VARIANTS = ("plain", "loo", "reweighted")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    variant: str = "plain"  # loo: arXiv 2605.22765; reweighted: 1 / t, as a bound on the likelihood has it
    t_min: float = 1e-4  # Google, TRL; NeMo begins at 1e-3, and Unsloth, which leaves clean canvases out, at 0.1
    t_one: float = 0.5  # share of examples at t = 1, as every canvas begins: ours, fewer passes; 0 in all recipes
    inside: float = 0.0  # share of canvases that begin anywhere in the answer, as behind a prefix; 0 in all recipes
    self_conditioned: float = 0.5  # share; the others get a zero embedding, as samplers give (Google: zero logits)
    encoder_weight: float = 1.0  # Google, NeMo, TRL; without it nothing can be written left to right
    mask_prompt: bool = True  # the causal pass learns answers only; Google and NeMo: prompts, too

    def __post_init__(self) -> None:
        need(self.variant in VARIANTS, f"objective to be one of {', '.join(VARIANTS)}", f"{self.variant!r}")
        for name in ("t_min", "t_one", "inside", "self_conditioned"):
            need(0 <= vars(self)[name] <= 1, f"{name} from 0 to 1", f"{vars(self)[name]}")


@dataclass(frozen=True)
class Example:
    """What is given, and what is to be written: the answer ends with the token that ends a turn."""

    prompt: np.ndarray  # [n] int32
    answer: np.ndarray  # [m] int32

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Noised:
    """Examples with everything drawn."""

    canvases: Canvases
    clean: np.ndarray  # [B * L] int32: what the canvases should be
    t: np.ndarray  # [B] float32: shares that were noised
    conditioned: np.ndarray  # [B] bool
    places: np.ndarray  # [P] int32, of the texts' positions one after another: those that the causal pass learns behind
    following: np.ndarray  # [P] int32: the tokens that stand there


def noised(examples: Sequence[Example], facts: Facts, fill: int, recipe: Recipe, rng: np.random.Generator) -> Noised:
    """Draw a canvas of each example, its noise, and whether it is conditioned on a first pass.

    Args:
        fill: the token behind the end of a text.
    """
    length, drawn = facts.canvas_length, []
    for example in examples:
        start = length * int(rng.integers(-(-len(example.answer) // length)))
        if recipe.inside and rng.random() < recipe.inside:
            start = int(rng.integers(len(example.answer)))
        t = 1.0 if rng.random() < recipe.t_one else rng.uniform(recipe.t_min, 1)
        clean = np.full(length, fill, np.int32)
        part = example.answer[start : start + length]
        clean[: len(part)] = part
        noise = rng.integers(facts.vocab_size, size=length)
        tokens = np.where(rng.random(length) < t, noise, clean).astype(np.int32)
        drawn.append((len(example.prompt) + start, tokens, clean, t, rng.random() < recipe.self_conditioned))
    starts, tokens, clean, t, conditioned = map(np.array, zip(*drawn, strict=True))
    texts = [np.concatenate([example.prompt, example.answer]) for example in examples]
    places, first = [], 0
    for example in examples:
        places.append(np.arange(len(example.prompt) if recipe.mask_prompt else 1, example.length) + first)
        first += example.length
    places = np.concatenate(places)
    following = np.concatenate(texts)[places]
    canvases = Canvases(texts, starts.astype(np.int32), tokens)
    return Noised(canvases, clean.ravel(), t.astype(np.float32), conditioned, places - 1, following)


def loss_of(batch: Noised, facts: Facts, recipe: Recipe) -> Loss:
    def loss(passes: Passes) -> tuple[Array, Array, Array]:
        which, soft = batch.conditioned, None
        if which.any():
            soft = passes.soft(batch.canvases.conditioning(which))
        texts, canvases = passes.hidden(batch.canvases, soft, which)
        answers = texts[passes.array(batch.places)]
        encoder = (passes.logsumexp(answers) - passes.logits_at(answers, batch.following)).mean()
        decoder = _decoder(passes, canvases, batch, facts.vocab_size, recipe.variant)
        return decoder + recipe.encoder_weight * encoder, decoder, encoder

    return loss


def _decoder(passes: Passes, hidden: Array, batch: Noised, vocab_size: int, variant: str) -> Array:
    """The mean cross-entropy of all positions of all canvases."""
    normaliser, logits = passes.logsumexp(hidden), passes.logits_at(hidden, batch.clean)
    t = np.repeat(batch.t, batch.canvases.tokens.shape[1])
    if variant == "loo":
        # log(1 + odds) is added to the logit of the token that stands there: how much likelier it is right.
        odds, present = vocab_size * (1 - t) / np.maximum(t, 1e-6), batch.canvases.tokens.ravel()
        more = passes.logits_at(hidden, present) + passes.array(np.log(np.maximum(odds, 1e-30)).astype(np.float32))
        normaliser = passes.logaddexp(normaliser, more)
        logits = logits + passes.array(np.where(present == batch.clean, np.log1p(odds), 0).astype(np.float32))
    each = normaliser - logits
    if variant == "reweighted":
        each = each * passes.array((1 / np.maximum(t, 1e-3)).astype(np.float32))
    return each.mean()
