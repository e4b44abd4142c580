"""Writing within a language: whatever the model predicts, the text that comes of it is one of the expression's.

A pass predicts each position apart from the others, so its argmax need not be a text of the language, nor even be cut
where the language is. What counts as this writing's draft is therefore the most probable text of the language, by
those predictions (`Lattice.best`): each draft is valid, and the last is the answer. Between passes the skeleton is
held where the draft has it: what is forced behind a token that the model is sure of is given to the next pass as
fixed, at its place. So a string's end, once found, lays the skeleton behind it; as long as it moves, so does that. A
model that has not become sure by half of its passes is helped: from then on what a draft repeats from its beginning
counts as sure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..errors import Mistake
from ..seam.model import DiffusionModel, Prediction
from ..tokens.tokenizer import Tokenizer
from ..writing.blocks import Given, Open
from ..writing.sampling import Sampling
from ..writing.writing import Step, Writing, check_request
from .construction import build_automaton
from .expression import Expression
from .lattice import BARRED, Lattice, Path, Vocabulary

FEW = 1024  # sets of fewer ids have log-probabilities
OVERRULED = 1.0  # nats of a position whose argmax cannot stand there: too many to be accepted, or to settle


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """A second of work for a quarter of a million pieces, the same for every language."""
    return Vocabulary(tokenizer, vocab_size)


class Language:
    """What a model may write, in its tokens. To be made once, for any number of texts."""

    def __init__(self, model: DiffusionModel, tokenizer: Tokenizer, expression: Expression):
        self.model = model
        vocabulary = _vocabulary(tokenizer, model.config.vocab_size)
        self.lattice = Lattice(build_automaton(expression), vocabulary, model.config)
        self.ids: dict[int, np.ndarray] = {}  # of each token set
        self._sets: dict[str, int] = {}
        self._few: dict[int, np.ndarray | None] = {}

    def set_of(self, key: str, ids: Callable[[], np.ndarray]) -> int:
        """The token set of `ids()`, made once."""
        if key not in self._sets:
            allowed = ids()
            self._sets[key] = index = self.model.token_set(allowed.tolist())
            self.ids[index] = allowed
        return self._sets[key]

    def anywhere(self) -> int:
        return self.set_of("anywhere", lambda: self.lattice.somewhere(np.arange(self.lattice.end + 1)))

    def slot(self, state: int) -> int:
        """Of a slot that begins with `state`."""
        return self.set_of(f"slot {state}", lambda: self.lattice.somewhere(self.lattice.slot(state)))

    def exactly(self, state: int, entry: int) -> int:
        """Of one state; of its whole slot where they are too many to be told the log-probabilities of."""
        if state not in self._few:
            self._few[state] = self.lattice.allowed(state, FEW - 1)
        few = self._few[state]
        return self.slot(entry) if few is None else self.set_of(f"state {state}", lambda: few)


class Document(Open):
    """The blocks of a text of the language, and what is held in them."""

    def __init__(self, language: Language, room: int, max_tokens: int, canvas_length: int | str | None = None):
        super().__init__(language.model.config, room, max_tokens, canvas_length)
        self.language, self.lattice, self.state = language, language.lattice, 0
        self.tokens_left = min(max_tokens, room // self.width() * self.width())
        if self.lattice.left[0] > self.tokens_left:
            raise Mistake(
                f"the shortest text that fits takes {self.lattice.left[0]} tokens, and there is room for "
                f"{self.tokens_left}: raise max_tokens, or ask for less"
            )

    def first(self) -> Given:
        length = self.width()
        run = self.lattice.run(self.state, length)
        known = np.arange(length) < len(run.tokens)
        tokens, states = np.full(length, -1, np.int32), np.full(length + 1, -1)
        tokens[known], states[: len(run.states)] = run.tokens, run.states
        return self.given(Path(tokens, states), known, known)

    def after(self, draft: np.ndarray) -> Given | str:
        self.state = self.lattice.walk(self.state, draft)
        self.tokens_left -= len(draft)
        return super().after(draft)

    def best(self, prediction: Prediction, given: Given) -> Path:
        says = [self._says(prediction, given, i) for i in range(len(given.tokens))]
        return self.lattice.best(self.state, says, self.tokens_left)

    def _says(self, prediction: Prediction, given: Given, i: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Ids, their log-probabilities, and one for every other."""
        if given.fixed[i]:
            return given.tokens[i : i + 1], np.zeros(1), BARRED
        if i in prediction.allowed_logprobs:
            return self.language.ids[int(given.allowed[i])], prediction.allowed_logprobs[i], BARRED
        likeliest = np.exp(-float(prediction.entropy[i]))  # at least: entropy is the mean of -log p
        drawn = float(prediction.confidence[i])
        if prediction.sample[i] == prediction.argmax[i]:
            likeliest = max(likeliest, drawn)
        ids = np.array([prediction.sample[i], prediction.argmax[i]])
        with np.errstate(divide="ignore"):
            logprobs = np.log([min(drawn, likeliest), likeliest])
        rest = max(1 - likeliest, 1e-9) / self.language.model.config.vocab_size
        return ids, logprobs, float(np.log(rest))

    def held(self, path: Path, sure: np.ndarray, stable: int, overruled: np.ndarray) -> np.ndarray:
        """[L] bool. What is forced, from the start and behind a token that the model is `sure` of, or that is one of
        the first `stable`; and of those also what it is `overruled` in, or it would never settle."""
        held, lies = np.zeros(len(path.tokens), bool), True
        for i, forced in enumerate(self.lattice.forced[path.states[:-1]]):
            held[i] = lies if forced else i < stable and overruled[i]
            lies = held[i] or sure[i] or i < stable
        return held

    def given(self, path: Path, held: np.ndarray, sure: np.ndarray) -> Given:
        """`held` as fixed, and between them only what may stand there: exactly, as far as what is before is sure."""
        allowed = np.full(len(held), -1, np.int32)
        borders = [0, *np.flatnonzero(np.diff(held)) + 1, len(held)]
        for start, end in pairwise(borders):
            if not held[start]:
                closed = end < len(held) and not self.lattice.forced[path.states[start:end]].any()
                allowed[start:end] = self._allowed(path.states[start:end], sure[start:end], closed)
        return Given(tokens=np.where(held, path.tokens, -1), fixed=held, allowed=allowed)

    def _allowed(self, states: np.ndarray, sure: np.ndarray, closed: bool) -> np.ndarray:
        entry = int(states[0])
        within = self.language.slot(entry) if closed or entry == self.lattice.end else self.language.anywhere()
        allowed = np.full(len(states), within)
        for i, state in enumerate(states.tolist()):
            if state >= 0 and not self.lattice.forced[state]:
                allowed[i] = self.language.exactly(state, entry)
            if not sure[i]:
                break
        return allowed


class Constrained(Writing):
    """A text of a language. Its layout is a Document."""

    layout: Document

    def _begin(self, given: Given) -> None:
        super()._begin(given)
        self.drafts: list[np.ndarray] = []

    def row(self):
        return replace(super().row(), hint=self._hint())  # what is fixed may have been noise in the last pass

    def take(self, prediction: Prediction) -> Step:
        path = self.layout.best(prediction, self.given)
        overruled = self.free & (prediction.argmax != path.tokens)
        entropy = np.where(overruled, np.maximum(prediction.entropy, OVERRULED), prediction.entropy).astype(np.float32)
        step = super().take(replace(prediction, argmax=path.tokens, entropy=entropy))
        if not step.final:
            self._hold(path, step.accepted & ~overruled, overruled)
        return step

    def _hold(self, path: Path, sure: np.ndarray, overruled: np.ndarray) -> None:
        stable = 0
        # Early drafts of an unsure model agree by chance, and end their strings too soon.
        if self.drafts and self.step > self.sampling.max_denoising_steps // 2:
            stable = int(np.argmax(np.append(self.drafts[-1] != path.tokens, True)))
        held = self.layout.held(path, sure, stable, overruled)
        self.given, self.free = self.layout.given(path, held, sure), ~held
        # What is stable is asked of the positions that are free, which now are others.
        self.drafts.append(path.tokens)
        self.settled.history = [draft[self.free] for draft in self.drafts]
        self.canvas = np.where(held, path.tokens, self.canvas).astype(np.int32)


def begin(
    model: DiffusionModel,
    tokens: Sequence[int],
    *,
    language: Language,
    max_tokens: int = 2048,
    sampling: Sampling,
    seed: int = 0,
    request: int = 0,
) -> Constrained:
    """A text of `language` in answer to `tokens`, not yet begun. Mistake where its shortest does not fit."""
    room = model.config.max_position_embeddings - len(tokens)
    check_request(model, tokens, max_tokens, sampling.canvas_length if isinstance(sampling.canvas_length, int) else 0)
    layout = Document(language, room, max_tokens, sampling.canvas_length)
    return Constrained(model, tokens, sampling=sampling, layout=layout, seed=seed, request=request)
