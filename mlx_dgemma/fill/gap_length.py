"""The search for the length of a gap where none is given, for many gaps at once.

A draft that knows nothing of what is behind a gap shows where that would stand. The likeliest places are denoised side
by side for a few passes. The best score wins: the causal log-probability of the gap and of what is behind it, less the
entropy that is left in the gap, all in nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from ..seam.model import Cache, DiffusionModel, Text
from ..writing.blocks import Block
from ..writing.clock import Clock
from ..writing.sampling import Sampling
from ..writing.task import Task
from ..writing.writing import Step, Writing
from .held import Alphabet, Held

LENGTHS, SURE = 12, 4  # lengths that are tried; where the draft knows the place
PASSES, GRACE = 8, 3  # passes over the draft, and over each trial; passes left, once the first of them is done
COMPARED = 16  # tokens behind a gap that a draft is compared with


@dataclass(kw_only=True)
class Gap:
    before: np.ndarray  # [n] int32: known tokens in front of it, behind the prompt
    behind: np.ndarray  # [m] int32: up to the next gap, or to the end of the text
    ends: bool  # the text ends there
    encoded: Callable[[np.ndarray], Cache]  # the cache of the prompt and some of `before`; not to be written to
    initial: Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]  # `Infill.initial`
    alphabet: Alphabet
    filler: np.ndarray  # [canvas] int32: what stands behind a text that ends
    first_lengths: Sequence[int]  # to try in any case, before others
    tries: int  # lengths to try at most
    longest: int
    sampling: Sampling
    clock: Clock
    seed: int

    def writing(self, model: DiffusionModel, text: Block, rng: np.random.Generator) -> Writing:
        layout = Held(text, self.filler)
        cache = self.encoded(layout.take_before())
        return Writing(model, Text(), layout, self.sampling, rng, cache)

    @cached_property
    def follows(self) -> np.ndarray:
        """The known tokens behind it, the end of the text included; at most a canvas of them."""
        return np.append(self.behind, self.filler[: int(self.ends)])[: len(self.filler)]


class Draft:
    """A draft of how the model would go on from the text before a gap, that knows nothing of what is behind."""

    def __init__(self, model: DiffusionModel, gap: Gap):
        self.gap, width, known = gap, len(gap.filler), len(gap.before)
        # In the canvas where what is known behind the gap would fit, too, and a quarter is left to look for it.
        inside = width - known >= max(len(gap.behind) + 2, width // 4)
        tokens = np.append(gap.before, np.full(width - known if inside else width, -1, np.int32))
        nothing = np.full(len(tokens), -1, np.int32)
        text = Block(tokens=tokens, fixed=np.arange(len(tokens)) < known, hint=nothing, allowed=nothing)
        self.front = known if inside else 0
        self.writing = gap.writing(model, text, np.random.default_rng(gap.seed))

    def lengths(self, step: Step) -> list[int]:
        """The likeliest first: where the draft agrees most with what is behind the gap; among equals, numbers of three
        binary digits and zeros, then the shortest. Few, where the draft has all that is compared."""
        draft, behind = step.draft[self.front :], self.gap.follows[:COMPARED]
        places = np.arange(1, min(len(draft), self.gap.longest + 1))
        agree = np.zeros(len(places), int)
        for offset, token in enumerate(behind):
            there = places + offset < len(draft)
            agree[there] += draft[places[there] + offset] == token
        spread = places % 2 ** np.maximum(np.log2(places).astype(int) - 2, 0) == 0  # 1 to 8, 10, 12, 14, 16, 20, …
        order = np.lexsort((places, ~spread, -agree))
        count = LENGTHS if agree.max() < len(behind) else SURE
        return list(dict.fromkeys([*self.gap.first_lengths, *places[order].tolist()]))[: min(count, self.gap.tries)]


class Trial:
    """A gap at one length."""

    def __init__(self, model: DiffusionModel, gap: Gap, length: int):
        self.gap, self.length = gap, length
        rng = np.random.default_rng(gap.seed)
        tokens, hint = gap.initial(length, rng)
        known, used, width = len(gap.before), length + len(gap.behind), len(gap.filler)
        self.front = known if known + used <= width else 0  # where the gap begins in the canvas
        unknown = 0 if gap.ends else max(0, width - self.front - used)  # of the next gap and what is behind that
        parts = [known, length, len(gap.behind), unknown]
        nothing = np.full(sum(parts), -1, np.int32)
        text = Block(
            tokens=np.concatenate([gap.before, tokens, gap.behind, nothing[:unknown]]),
            fixed=np.repeat([True, False, True, False], parts),
            hint=np.concatenate([nothing[:known], hint, nothing[known + length :]]),
            allowed=np.repeat(np.array([-1, gap.alphabet.any_text, -1, -1], np.int32), parts),
            token_sets=gap.alphabet.sets,
        )
        self.writing = gap.writing(model, text, rng)

    def text(self, step: Step) -> Text:
        """The text behind the cache: known text, the gap, what follows it."""
        return Text(np.append(step.draft[: self.front + self.length], self.gap.follows))


@dataclass(frozen=True)
class Result:
    tokens: np.ndarray  # int32: the gap's at the best length, so far
    scores: dict[int, float]  # length -> nats
    passes: int  # canvases denoised

    @property
    def length(self) -> int:
        return max(self.scores, key=self.scores.__getitem__)


def denoise(groups: Sequence[Sequence[Writing]], clocks: Sequence[Clock]) -> Task[list[list[Step]]]:
    """Denoise one block of each writing for a few passes -> the last step of each. A group has GRACE more passes when
    the first of it is done: what is easy to write settles first, and need not be right. The caches are shared, so
    nothing may be pending, and no writing goes on to a second block."""
    last, left = {}, [PASSES] * len(groups)
    running = list(chain(*groups))
    for number, writing in enumerate(running):
        writing.request = number
    while running:
        last |= yield running
        for i, (group, clock) in enumerate(zip(groups, clocks, strict=True)):
            most = GRACE if any(last[writing].final for writing in group) else PASSES
            left[i] = 0 if clock.passed() else min(left[i] - 1, most)
        pairs = zip(groups, left, strict=True)
        running = [writing for group, n in pairs if n > 0 for writing in group if not last[writing].final]
    return [[last[writing] for writing in group] for group in groups]


def score(model: DiffusionModel, trials: Sequence[Trial], steps: Sequence[Step], size: int) -> list[float]:
    """The score of each trial in nats, given its last step."""
    scores = []
    for first in range(0, len(trials), size):
        together = list(zip(trials, steps, strict=True))[first : first + size]
        caches = [trial.writing.cache.copy() for trial, _ in together]
        causal = model.encode([trial.text(step) for trial, step in together], caches, score=True)
        for (trial, step), tokens in zip(together, causal, strict=True):
            entropy = step.entropy[trial.front : trial.front + trial.length].sum()
            scores.append(float(tokens.logprob[trial.front :].sum() - entropy))
    return scores


def search(model: DiffusionModel, gaps: Sequence[Gap], size: int) -> Task[list[Result]]:
    clocks, drafts = [gap.clock for gap in gaps], [Draft(model, gap) for gap in gaps]
    drafted = [step for [step] in (yield from denoise([[draft.writing] for draft in drafts], clocks))]
    lengths = [draft.lengths(step) for draft, step in zip(drafts, drafted, strict=True)]
    # Behind the deadline, the likeliest length has to do.
    lengths = [tried[: 1 if clock.passed() else None] for tried, clock in zip(lengths, clocks, strict=True)]
    trials = [[Trial(model, gap, n) for n in tried] for gap, tried in zip(gaps, lengths, strict=True)]
    steps = yield from denoise([[trial.writing for trial in group] for group in trials], clocks)
    scores = iter(score(model, list(chain(*trials)), list(chain(*steps)), size))
    results = []
    for draft, group, last in zip(drafted, trials, steps, strict=True):
        tried = {trial.length: next(scores) for trial in group}
        best, step = max(zip(group, last, strict=True), key=lambda pair: tried[pair[0].length])
        tokens = step.draft[best.front : best.front + best.length]
        results.append(Result(tokens, tried, draft.step + 1 + sum(step.step + 1 for step in last)))
    return results
