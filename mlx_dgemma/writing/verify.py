"""Check and repair: the causal pass that commits a block also scores every token of it, and what it doubts is written
again.

A canvas settles on tokens that suit each other; the causal pass tells how likely each is after those before it: another
opinion of the same weights, for one head product. The first token that it doubts gives way to the one that it expects
there, and what follows is denoised again behind that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..seam.model import DiffusionModel, NextToken, Prediction
from . import writing as diffusion
from .blocks import Given
from .writing import Writing

FLOOR = np.log(0.05)  # log-probability after what is before it, below which a token is doubtful
UNSURE = 0.7  # nats of its own entropy from which it is: two that are equally likely
TIMES = 3  # that a block is written again, at most; in half the passes, as much of it is known


class Checked(Writing):
    """A Writing whose block is committed when nothing in it is doubtful, or when it was written again `TIMES` times. An
    answer that ends before it began is tried on half the canvas."""

    def __init__(self, model: DiffusionModel, tokens: Sequence[int], **options: Any):
        self.model, self.checks, self.repairs, self.times = model, 0, 0, 0
        super().__init__(model, tokens, **options)
        self.asked = self.sampling

    def _following(self, prediction: Prediction) -> Given | str:
        draft = prediction.argmax
        stops = np.flatnonzero(np.isin(draft, self.config.stop_ids))
        said = draft[: stops[0] + 1] if len(stops) else draft
        empty = self.block == 0 and len(stops) and stops[0] == 0 and self.free.all()
        checked = self.times < TIMES and not empty
        again = self._doubted(said, prediction) if checked else self._narrower(len(draft)) if empty else None
        if again and self.times < TIMES:
            self.times, self.repairs = self.times + 1, self.repairs + 1
            passes = max(1, self.asked.max_denoising_steps // 2)
            self.sampling = replace(self.asked, max_denoising_steps=passes)
            return again
        self.times, self.sampling, following = 0, self.asked, self.layout.after(draft)
        # What was checked is in the cache already.
        return replace(following, encoded=checked) if isinstance(following, Given) else following

    def _narrower(self, width: int) -> Given | None:
        if width < 2:
            return None
        note = f"block 1: nothing was said; tried again on a canvas of {width // 2}"
        return Given(tokens=np.full(width // 2, -1, np.int32), said=0, note=note)

    def _doubted(self, said: np.ndarray, prediction: Prediction) -> Given | None:
        """What is to be written again, and then it is not in the cache; None: nothing, and all of it is."""
        self.checks += 1
        [score] = self.model.encode([said], [self.cache], score=True)
        low = (score.logprob < FLOOR) | (prediction.entropy[: len(said)] > UNSURE)
        doubtful = np.flatnonzero(low & self.free[: len(said)])
        if not len(doubtful):
            return None
        self.cache.trim(len(said))
        return self._again(prediction.argmax, int(doubtful[0]), len(doubtful), score)

    def _again(self, draft: np.ndarray, first: int, count: int, score: NextToken) -> Given:
        tokens, fixed = draft.copy(), np.arange(len(draft)) < first
        if first > 0:
            tokens[first], fixed[first] = score.argmax[first - 1], True
        fixed |= ~self.free
        note = f"block {self.block + 1}: {count} doubtful tokens; written again from token {first + 1} on"
        return Given(tokens=np.where(fixed, tokens, -1), fixed=fixed, allowed=self.given.allowed, said=0, note=note)


def begin(model: DiffusionModel, tokens: Sequence[int], **options: Any) -> Checked:
    """As `diffusion.begin`."""
    return diffusion.begin(model, tokens, **options, kind=Checked)
