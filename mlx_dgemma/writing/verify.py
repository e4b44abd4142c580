"""Check and repair: the causal pass that commits a block also scores every token of it, and unlikely tokens are written
again.

A canvas settles on tokens that suit each other; the causal pass gives the probability of each after those before it:
another opinion of the same weights, for one head product. The first unlikely token gives way to the one that the causal
pass expects there, and what follows is denoised again behind that.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..seam.model import Prediction, Text
from .blocks import Block
from .writing import Writing

FLOOR = np.log(0.05)  # log-probability after what is before it, below which a token is unlikely
UNSURE = 0.7  # nats of its own entropy above which it is: two that are equally likely
TIMES = 3  # rewrites of a block at most; each in half the passes, because much of the block is known


@dataclass(eq=False)
class Verify:
    """A `Check`. A block is committed when nothing in it is unlikely, or after `TIMES` rewrites. An answer that ends
    before it began is tried again on half the canvas."""

    checks: int = 0  # causal passes over a block
    repairs: int = 0  # blocks that were written again
    times: int = 0  # rewrites of the present block
    encoded: bool = False  # the block that was reviewed last is in the cache already

    def review(self, writing: Writing, prediction: Prediction) -> Block | None:
        draft, block, again = prediction.argmax, writing.current, None
        empty = writing.block == 0 and draft[0] in writing.model.facts.stop_ids and bool(block.free.all())
        self.encoded = self.times < TIMES and not empty
        if self.encoded:
            again = self._repaired(writing, prediction)
        elif empty and self.times < TIMES and len(draft) >= 2:
            again = _narrower(block, len(draft) // 2)
        if again is None:
            self.times = 0
            return None
        self.times, self.repairs = self.times + 1, self.repairs + 1
        return replace(again, max_steps=max(1, writing.sampling.max_denoising_steps // 2))

    def _repaired(self, writing: Writing, prediction: Prediction) -> Block | None:
        """The block that is to be written again, and the cache is as it was; None where nothing in it is unlikely, and
        the cache holds it."""
        self.checks += 1
        content, block = writing.layout.content(prediction.argmax), writing.current
        [score] = writing.model.encode([Text(content)], [writing.cache], score=True)
        unlikely = (score.logprob < FLOOR) | (prediction.entropy[: len(content)] > UNSURE)
        positions = np.flatnonzero(unlikely & block.free[: len(content)])
        if not len(positions):
            return None
        writing.cache.trim(len(content))
        first = int(positions[0])
        expected = int(score.argmax[first - 1]) if first else None  # the first token has none before it in this pass
        again = writing.layout.rewrite(block, prediction.argmax, first, expected)
        note = f"block {writing.block + 1}: {len(positions)} doubtful tokens; written again from token {first + 1} on"
        return replace(again, note=note)


def _narrower(block: Block, width: int) -> Block:
    note = f"block 1: nothing was said; tried again on a canvas of {width}"
    fixed, allowed = (None if array is None else array[:width] for array in (block.fixed, block.allowed))
    tokens = np.full(width, -1, np.int32)
    return replace(block, tokens=tokens, fixed=fixed, hint=None, allowed=allowed, again=True, note=note)
