"""How long a gap is, where nobody said: a search over lengths, for many gaps at once.

A draft that knows nothing of what is behind a gap shows where that would stand. The likeliest places are denoised side
by side for a few passes. The one that says most for itself is taken: its score is the causal log-probability of the gap
and of what is behind it, less the entropy that is left in the gap, all in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from ..seam.model import Cache, DiffusionModel
from ..writing.blocks import Given
from ..writing.sampling import Sampling
from ..writing.writing import Step, Writing
from .held import Held

LENGTHS, SURE = 12, 4  # that are tried; where the draft knows the place
PASSES, GRACE = 8, 3  # over the draft, and over each of them; more, once one of them is done
COMPARED = 16  # tokens behind a gap that a draft is compared with


@dataclass(kw_only=True)
class Gap:
    before: np.ndarray  # [n] int32: known tokens in front of it, behind the prompt
    behind: np.ndarray  # [m] int32: up to the next gap, or to the end of the text
    ends: bool  # the text ends there
    encoded: Callable[[np.ndarray], Cache]  # the cache of the prompt and some of `before`; not to be written to
    blank: Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]  # length -> what it starts from, a hint
    allowed: int  # the token set of what may stand in it
    filling: np.ndarray  # [canvas] int32: what stands behind a text that ends
    usual: Sequence[int]  # lengths to try whatever the draft says
    sampling: Sampling
    seed: int

    def writing(self, model: DiffusionModel, text: Given, rng: np.random.Generator) -> Writing:
        layout = Held(text, len(self.filling), self.filling)
        cache = self.encoded(text.tokens[: layout.starts[0]])
        return Writing(model, (), sampling=self.sampling, layout=layout, seed=rng, cache=cache)

    @cached_property
    def follows(self) -> np.ndarray:
        """What is known to stand behind it, the end of the text included; at most a canvas of it."""
        return np.append(self.behind, self.filling[: int(self.ends)])[: len(self.filling)]


class Draft:
    """What the model would say behind the text before a gap."""

    def __init__(self, model: DiffusionModel, gap: Gap):
        self.gap, width, known = gap, len(gap.filling), len(gap.before)
        # In the canvas where what is known behind the gap would fit, too, and a quarter is left to look for it.
        inside = width - known >= max(len(gap.behind) + 2, width // 4)
        tokens = np.append(gap.before, np.full(width - known if inside else width, -1, np.int32))
        nothing = np.full(len(tokens), -1, np.int32)
        text = Given(tokens=tokens, fixed=np.arange(len(tokens)) < known, hint=nothing, allowed=nothing)
        self.front = known if inside else 0
        self.writing = gap.writing(model, text, np.random.default_rng(gap.seed))

    def lengths(self, step: Step) -> list[int]:
        """The likeliest first: where the draft agrees most with what is behind the gap; among equals, numbers of three
        binary digits and zeros, then the shortest. Few, where the draft says all that is compared."""
        said, behind = step.draft[self.front :], self.gap.follows[:COMPARED]
        places = np.arange(1, len(said))
        agree = np.zeros(len(places), int)
        for offset, token in enumerate(behind):
            there = places + offset < len(said)
            agree[there] += said[places[there] + offset] == token
        spread = places % 2 ** np.maximum(np.log2(places).astype(int) - 2, 0) == 0  # 1 to 8, 10, 12, 14, 16, 20, …
        order = np.lexsort((places, ~spread, -agree))
        count = LENGTHS if agree.max() < len(behind) else SURE
        return list(dict.fromkeys([*self.gap.usual, *places[order].tolist()]))[:count]


class Trial:
    """A gap at one length."""

    def __init__(self, model: DiffusionModel, gap: Gap, length: int):
        self.gap, self.length = gap, length
        rng = np.random.default_rng(gap.seed)
        tokens, hint = gap.blank(length, rng)
        known, used, width = len(gap.before), length + len(gap.behind), len(gap.filling)
        self.front = known if known + used <= width else 0  # where the gap begins in the canvas
        unknown = 0 if gap.ends else max(0, width - self.front - used)  # of the next gap and what is behind that
        parts = [known, length, len(gap.behind), unknown]
        nothing = np.full(sum(parts), -1, np.int32)
        text = Given(
            tokens=np.concatenate([gap.before, tokens, gap.behind, nothing[:unknown]]),
            fixed=np.repeat([True, False, True, False], parts),
            hint=np.concatenate([nothing[:known], hint, nothing[known + length :]]),
            allowed=np.repeat(np.array([-1, gap.allowed, -1, -1], np.int32), parts),
        )
        self.writing = gap.writing(model, text, rng)

    def said(self, step: Step) -> np.ndarray:
        """All that is not encoded: known text, the gap, what follows it."""
        return np.append(step.draft[: self.front + self.length], self.gap.follows)


@dataclass(frozen=True)
class Found:
    tokens: np.ndarray  # int32: what the gap says at the best length, so far
    scores: dict[int, float]  # length -> nats
    passes: int  # canvases looked at


def look(model: DiffusionModel, groups: Sequence[Sequence[Writing]], size: int) -> list[list[Step]]:
    """A few passes over one block of each, `size` canvases in a pass -> the last step of each. A group has GRACE more
    passes when the first of it is done: what is easily said settles first, and need not be right."""
    last: dict[Writing, Step] = {}
    left = [PASSES] * len(groups)
    while any(left):
        rows = [one for group, n in zip(groups, left, strict=True) if n for one in group if not one.done]
        for first in range(0, len(rows), size):
            own = rows[first : first + size]
            for writing, prediction in zip(own, model.denoise([one.row() for one in own]), strict=True):
                last[writing] = writing.take(prediction)
        for i, group in enumerate(groups):
            done = [one.done for one in group]
            left[i] = 0 if all(done) else max(0, min(left[i] - 1, GRACE if any(done) else PASSES))
    return [[last[writing] for writing in group] for group in groups]


def score(model: DiffusionModel, trials: Sequence[Trial], steps: Sequence[Step], size: int) -> list[float]:
    """Nats: of each trial, given the last step of it."""
    found = []
    for first in range(0, len(trials), size):
        own = list(zip(trials, steps, strict=True))[first : first + size]
        caches = [trial.writing.cache.copy() for trial, _ in own]
        causal = model.encode([trial.said(step) for trial, step in own], caches, score=True)
        for (trial, step), said in zip(own, causal, strict=True):
            entropy = step.entropy[trial.front : trial.front + trial.length].sum()
            found.append(float(said.logprob[trial.front :].sum() - entropy))
    return found


def search(model: DiffusionModel, gaps: Sequence[Gap], size: int) -> list[Found]:
    drafts = [Draft(model, gap) for gap in gaps]
    drafted = [step for [step] in look(model, [[draft.writing] for draft in drafts], size)]
    proposed = [draft.lengths(step) for draft, step in zip(drafts, drafted, strict=True)]
    trials = [[Trial(model, gap, n) for n in lengths] for gap, lengths in zip(gaps, proposed, strict=True)]
    steps = look(model, [[trial.writing for trial in own] for own in trials], size)
    scores = iter(score(model, list(chain(*trials)), list(chain(*steps)), size))
    found = []
    for draft, own, last in zip(drafted, trials, steps, strict=True):
        tried = {trial.length: next(scores) for trial in own}
        best, said = max(zip(own, last, strict=True), key=lambda one: tried[one[0].length])
        tokens = said.draft[best.front : best.front + best.length]
        found.append(Found(tokens, tried, draft.step + 1 + sum(step.step + 1 for step in last)))
    return found
