"""How long a gap is, where nobody said: a search over lengths, many gaps at once.

Drafts that know nothing of what is behind a gap show where that would stand. The likeliest places are denoised side by
side for a few passes. The one that says most for itself is taken: its score is the causal log-probability of the gap
and of what is behind it, less the entropy that is left in the gap, all in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .diffusion import Given, Step, Writing
from .held import Held
from .interface import Cache, DiffusionModel
from .sampling import Sampling

DRAFTS = 4  # rows a gap
LENGTHS = 8  # that are tried, rows a gap
PASSES = 8  # over each of these
COMPARED = 16  # tokens behind a gap that a draft is compared with


@dataclass(frozen=True, kw_only=True)
class Gap:
    before: np.ndarray  # [n] int32: known tokens in front of it, behind the prompt
    behind: np.ndarray  # [m] int32: up to the next gap, or to the end of the text
    ends: bool  # the text ends there
    encoded: Callable[[np.ndarray], Cache]  # the cache of the prompt and some of `before`; not to be written to
    blank: Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]  # length -> what it starts from, a hint
    allowed: int  # the token set of what may stand in it
    filling: np.ndarray  # [canvas] int32: what stands behind a text that ends
    usual: Sequence[int]  # lengths to try whatever the drafts say
    seed: int

    @property
    def compared(self) -> np.ndarray:
        return np.append(self.behind, self.filling[: int(self.ends)])[:COMPARED]

    def _writing(self, model: DiffusionModel, sampling: Sampling, text: Given, rng: np.random.Generator) -> Writing:
        layout = Held(text, len(self.filling), self.filling)
        cache = self.encoded(text.tokens[: layout.starts[0]])
        return Writing(model, (), sampling=sampling, layout=layout, seed=rng, cache=cache)

    def draft(self, model: DiffusionModel, sampling: Sampling, number: int) -> tuple[Writing, int]:
        """What the model would say behind `before`, and where in its canvas that begins."""
        width, known = len(self.filling), len(self.before)
        inside = known <= width // 2
        nothing = np.full(width - known if inside else width, -1, np.int32)
        tokens = np.append(self.before, nothing)
        silence = np.full(len(tokens), -1, np.int32)
        text = Given(tokens=tokens, fixed=np.arange(len(tokens)) < known, hint=silence, allowed=silence)
        return self._writing(model, sampling, text, np.random.default_rng([self.seed, number])), known if inside else 0

    def lengths(self, drafts: Sequence[np.ndarray]) -> list[int]:
        """The likeliest first: those at which a draft agrees most with what is behind the gap; among equals powers of
        two, then the shortest."""
        places = np.arange(1, len(drafts[0]))
        agree = np.zeros((len(drafts), len(places)))
        for offset, token in enumerate(self.compared):
            there = places + offset < len(drafts[0])
            agree[:, there] += np.array([draft[places[there] + offset] == token for draft in drafts])
        order = np.lexsort((places, places & (places - 1) != 0, -agree.sum(axis=0), -agree.max(axis=0)))
        return list(dict.fromkeys([*self.usual, *places[order].tolist()]))[:LENGTHS]

    def trial(self, model: DiffusionModel, sampling: Sampling, length: int) -> Trial:
        rng = np.random.default_rng(self.seed)
        tokens, hint = self.blank(length, rng)
        known, used, width = len(self.before), length + len(self.behind), len(self.filling)
        front = known if known + used <= width else 0
        open_end = 0 if self.ends else max(0, width - front - used)  # what comes there is not known either
        parts = [known, length, len(self.behind), open_end]
        none = np.full(sum(parts), -1, np.int32)
        text = Given(
            tokens=np.concatenate([self.before, tokens, self.behind, none[:open_end]]),
            fixed=np.repeat([True, False, True, False], parts),
            hint=np.concatenate([none[:known], hint, none[known + length :]]),
            allowed=np.repeat(np.array([-1, self.allowed, -1, -1], np.int32), parts),
        )
        return Trial(self, length, front, self._writing(model, sampling, text, rng))


@dataclass
class Trial:
    gap: Gap
    length: int
    front: int  # where the gap begins in the canvas
    writing: Writing

    def said(self, step: Step) -> tuple[np.ndarray, float]:
        """All from what is not encoded to what is behind the gap, and the entropy left in it, nats."""
        gap = slice(self.front, self.front + self.length)
        behind = np.append(self.gap.behind, self.gap.filling[: int(self.gap.ends)])[: len(self.gap.filling)]
        return np.append(step.draft[: gap.stop], behind), float(step.entropy[gap].sum())


def look(model: DiffusionModel, writings: Sequence[Writing], size: int) -> list[Step]:
    """A few passes over one block of each, `size` at a time -> the last step of each."""
    last: list[Step | None] = [None] * len(writings)
    for first in range(0, len(writings), size):
        active = list(range(first, min(first + size, len(writings))))
        for _ in range(PASSES):
            predictions = model.denoise([writings[i].row() for i in active]) if active else []
            for i, prediction in zip(active, predictions, strict=True):
                last[i] = writings[i].take(prediction)
            active = [i for i in active if not writings[i].done]
    return last


def scores(model: DiffusionModel, trials: Sequence[Trial], steps: Sequence[Step], size: int) -> list[float]:
    found = []
    for first in range(0, len(trials), size):
        own = [(t, *t.said(step)) for t, step in zip(trials[first : first + size], steps[first:], strict=False)]
        caches = [t.writing.cache.copy() for t, _, _ in own]
        for (t, _, entropy), next_token in zip(own, model.encode([s for _, s, _ in own], caches, score=True), strict=True):
            found.append(float(next_token.logprob[t.front :].sum()) - entropy)
    return found


@dataclass(frozen=True)
class Found:
    tokens: np.ndarray  # int32: what the gap says at the best length, so far
    scores: dict[int, float]  # length -> nats
    passes: int  # canvases looked at


def search(model: DiffusionModel, gaps: Sequence[Gap], sampling: Sampling, size: int) -> list[Found]:
    drafts = [gap.draft(model, sampling, number) for gap in gaps for number in range(DRAFTS)]
    drafted = look(model, [writing for writing, _ in drafts], size)
    said = [step.draft[begin:] for step, (_, begin) in zip(drafted, drafts, strict=True)]
    trials = []
    for i, gap in enumerate(gaps):
        trials += [gap.trial(model, sampling, n) for n in gap.lengths(said[i * DRAFTS : (i + 1) * DRAFTS])]
    steps = look(model, [trial.writing for trial in trials], size)
    score = scores(model, trials, steps, size)
    found = []
    for i, gap in enumerate(gaps):
        own = [k for k, trial in enumerate(trials) if trial.gap is gap]
        best = max(own, key=score.__getitem__)
        front, length = trials[best].front, trials[best].length
        passes = sum(steps[k].step + 1 for k in own) + sum(s.step + 1 for s in drafted[i * DRAFTS : (i + 1) * DRAFTS])
        tokens = steps[best].draft[front : front + length]
        found.append(Found(tokens, {trials[k].length: score[k] for k in own}, passes))
    return found
