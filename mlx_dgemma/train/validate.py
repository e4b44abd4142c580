"""What a model can do at a moment of a run: losses with fixed noise, and answers that it writes, in both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..seam.learning import Learner
from ..seam.model import DiffusionModel, Text
from ..writing.answer import Answer
from ..writing.ask import Ask
from ..writing.batch import run
from ..writing.diffuse import begin
from ..writing.sampling import Sampling
from .data import Encoder, Examples
from .loss import Example, Recipe, loss_of, noised

AT_ONCE = 8  # answers
SEED = 999  # of noise that is the same at every validation


@dataclass(frozen=True)
class Skill:
    """Shares of answers that are right to the token, and how many passes they took."""

    solved: float
    passes: float  # a block
    capped: float  # share of blocks that took all passes they may: they did not settle
    left_to_right: float

    def __str__(self) -> str:
        return (
            f"{self.solved:.0%} solved in {self.passes:.1f} passes a block"
            + (f" ({self.capped:.0%} of blocks never settled)" if self.capped else "")
            + f", {self.left_to_right:.0%} left to right"
        )


def skill(model: DiffusionModel, encoder: Encoder, examples: Sequence[Example], sampling: Sampling) -> Skill:
    """The prompts of `examples`, answered. Example i is written with seed i."""
    longest = max(len(example.answer) for example in examples)
    ask = Ask(sampling=sampling, max_tokens=longest + model.facts.canvas_length)
    written = _write(model, encoder, examples, ask)
    steps = [count for answer in written for count in answer.steps_per_block]
    pairs = zip(written, examples, strict=True)
    return Skill(
        float(np.mean([answer.tokens == example.answer.tolist() for answer, example in pairs])),
        float(np.mean(steps)),
        float(np.mean([count >= sampling.max_denoising_steps for count in steps])),
        float(np.mean([_in_order(model, example) for example in examples])),
    )


def _in_order(model: DiffusionModel, example: Example) -> bool:
    """Whether the answer is what the causal pass would write: each of its tokens is the likeliest. One pass tells."""
    text = Text(np.concatenate([example.prompt, example.answer]))
    [next_token] = model.encode([text], [model.new_cache(len(text))], score=True)
    return bool((next_token.argmax[len(example.prompt) - 1 : -1] == example.answer).all())


def _write(model: DiffusionModel, encoder: Encoder, examples: Sequence[Example], ask: Ask) -> list[Answer]:
    answers = [Answer(model.facts, encoder.tokenizer, ask.max_tokens) for _ in examples]
    texts = (begin(model, Text(example.prompt), replace(ask, seed=i), request=i) for i, example in enumerate(examples))
    for step in run(model, texts, AT_ONCE):
        answers[step.request].add(step)
    return answers


def losses(learner: Learner, encoder: Encoder, data: Examples, recipe: Recipe, size: int, most: int) -> list[float]:
    """Means of the three parts over at most `most` batches; -1: all."""
    parts = []
    for number, first in enumerate(range(0, len(data), size)):
        if number == most:
            break
        rng = np.random.default_rng([SEED, number])
        drawn = noised(data.examples[first : first + size], encoder.facts, encoder.fill, recipe, rng)
        parts.append(learner.losses(loss_of(drawn, encoder.facts, recipe)))
    return np.mean(parts, axis=0).tolist()
