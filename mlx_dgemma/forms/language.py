"""Writing within a language: whatever the model predicts, the text is one that the automaton accepts, which
`schema.py` or `template.py` has made. This is the last file of that chain; `lattice.py` is the one before.

A pass predicts each position apart from the others, so its argmax need not be a text of the language, nor even be cut
where the language is. The draft is therefore the most probable text of the language, by those predictions
(`Lattice.best`): each draft is valid, and the last is the answer. Between passes the skeleton is held where the draft
has it: what is forced behind a token that the model is sure of is fixed for the next pass, at its place. So a string's
end, once it is sure, lays the skeleton behind it; as long as it moves, so does that. A model that has not become sure
by half of its passes is helped: from then on what a draft repeats from its beginning counts as sure.

A form can be narrower than what the model would write, or have another order; a model held to it may then not know
what belongs where. So it first writes unaided: as long as the result is a document of the form but for members that the
form leaves out, and for their order (`projection.py`), that document is the draft, and nothing is held. Left to right,
tokens that depart from the form are collected in the same way, and not written (`TokenByToken`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Prediction, Text, TokenSet
from ..seam.token_sets import LOGPROB_SET
from ..writing.ask import Ask
from ..writing.batch import InProgress
from ..writing.blocks import Block, Open
from ..writing.diffuse import begin
from ..writing.writing import check_room
from .automaton import Automaton
from .lattice import IMPROBABLE, Lattice, Path, Vocabulary
from .notation import JSON, Notation
from .projection import projected

UNAIDED = 2  # passes without a document in it after which a model is held to the form
OVERRULED = 1.0  # nats of a position whose argmax cannot stand there: too many to be accepted, or to settle


class Language:
    """The texts that a model may write, in its tokens. Made once, for any number of texts."""

    def __init__(self, model: DiffusionModel, vocabulary: Vocabulary, automaton: Automaton, notation: Notation = JSON):
        """`vocabulary` is the same for every language of a tokenizer, and a second of work."""
        self.model, self.notation = model, notation
        self.lattice = Lattice(automaton, vocabulary, model.facts)
        self.sets: list[TokenSet] = []  # what `Block.allowed` points to
        self._slots: dict[int, int] = {}  # by state
        self._states: dict[int, int | None] = {}
        self._next: dict[int, tuple[TokenSet, int]] = {}  # by state, with the room that it takes

    def _add(self, ids: np.ndarray) -> int:
        """Make a token set of `ids` -> its index in `sets`."""
        self.sets.append(self.model.token_set(ids.tolist()))
        return len(self.sets) - 1

    @cached_property
    def anywhere(self) -> int:
        """The set of all that may stand somewhere."""
        return self._add(self.lattice.somewhere(range(self.lattice.end + 1)))

    def slot(self, state: int) -> int:
        """The set of a slot that begins with `state`."""
        if state not in self._slots:
            self._slots[state] = self._add(self.lattice.somewhere(self.lattice.slot(state)))
        return self._slots[state]

    def exactly(self, state: int, entry: int) -> int:
        """The set of one state; that of its whole slot where it is too large for log-probabilities."""
        if state not in self._states:
            ids = self.lattice.allowed(state, LOGPROB_SET - 1)
            self._states[state] = None if ids is None else self._add(ids)
        number = self._states[state]
        return self.slot(entry) if number is None else number

    def following(self, state: int, room: int) -> TokenSet:
        """The tokens after which the text can still be ended within `room` tokens."""
        known, ample = self._next.get(state, (None, 0))
        if known is not None and room >= ample:
            return known
        ids, ample = self.lattice.following(state, room)
        allowed = self.model.token_set(ids.tolist())
        if room >= ample:
            self._next[state] = allowed, ample
        return allowed

    def ending(self, tokens: Sequence[int]) -> np.ndarray:
        """int32: the shortest ending of a text that begins with `tokens`, with the stop token; empty if it ended."""
        return self.lattice.ending(self.lattice.walk(0, np.asarray(tokens, np.int64)))

    def check_fits(self, tokens: int) -> None:
        """Mistake where not even the shortest text fits into so many tokens."""
        if self.lattice.left[0] > tokens:
            raise Mistake(
                f"the shortest text that fits takes {self.lattice.left[0]} tokens, and there is room for "
                f"{tokens}: raise max_tokens, or ask for less"
            )


class TokenByToken:
    """A text of the language that is written left to right: a `Constraint`.

    As long as the model writes a text of the language unaided, it stands. Where it departs, tokens are collected: if
    they have, in the order of the form, what is written already and the rest of a document, that rest is written.
    Else the text is held to the form from where it departed.
    """

    def __init__(self, language: Language, max_tokens: int):
        language.check_fits(max_tokens)
        self.language, self.lattice, self.state, self.left = language, language.lattice, 0, max_tokens
        self.unaided, self.text, self.unwritten = True, b"", []  # text: the bytes that are written

    def allowed(self) -> TokenSet | None:
        return None if self.unaided else self.language.following(self.state, self.left)

    def take(self, token: int) -> list[int]:
        state = -1 if self.unwritten else self.lattice.walk(self.state, [token])
        if state < 0 or self.lattice.left[state] >= self.left:
            self.unwritten.append(token)
            return self._rest_of_document()
        self.state, self.left = state, self.left - 1
        self.text += self.lattice.vocabulary.spelt[token]
        return [token]

    def _rest_of_document(self) -> list[int]:
        """The rest of the text, by the document in `unwritten`; empty where that is not whole yet, or is of no use."""
        notation, vocabulary = self.language.notation, self.lattice.vocabulary
        text, last = self.text + vocabulary.text(self.unwritten), self.unwritten[-1]
        over = last in self.lattice.stops or len(self.unwritten) >= self.left
        whole = over or not {*notation.closing}.isdisjoint(vocabulary.spelt[last])
        pieces = notation.pieces(text) if whole else None
        if pieces is None and not over and notation.begins(text):
            return []
        self.unaided, self.unwritten = False, []
        document = projected(self.lattice.automaton, pieces, notation)
        if document is None or not document.startswith(self.text):
            return []
        path = self.lattice.spelt(document[len(self.text) :], self.left, self.left, self.state)
        return [] if path is None else path.tokens[: np.argmax(path.states == self.lattice.end)].tolist()

    def ending(self) -> np.ndarray:
        return self.lattice.ending(self.state)


class Document(Open):
    """The blocks of a text of the language that is denoised."""

    def __init__(self, language: Language, room: int, max_tokens: int, canvas_length: int | str | None = None):
        super().__init__(language.model.facts, room, max_tokens, canvas_length)
        self.unaided = UNAIDED  # passes that are left to it; 0: held
        self.language, self.lattice, self.state = language, language.lattice, 0
        self.tokens_left = min(max_tokens, room // self.width() * self.width())
        self.path: Path | None = None  # the draft of the last pass
        self.overruled = np.zeros(0, bool)  # [L]: where that is not the model's argmax
        self.earlier: np.ndarray | None = None  # the draft before
        language.check_fits(self.tokens_left)

    def first(self) -> Block:
        return super().first() if self.unaided else self._block(np.zeros(0, np.int32), self.width())

    def _block(self, start: np.ndarray, length: int) -> Block:
        """A canvas that begins with `start`, and with what is forced behind it."""
        states = [self.state]
        for token in start:
            states.append(self.lattice.walk(states[-1], [token]))
        forced = self.lattice.run(states[-1], length - len(start))
        missing = np.full(length - len(start) - len(forced.tokens), -1, np.int32)
        tokens = np.concatenate([start, forced.tokens, missing]).astype(np.int32)
        path = Path(tokens, np.concatenate([states, forced.states[1:], missing]))
        self.path, self.earlier = None, None
        return self._given(path, tokens >= 0, tokens >= 0)

    def after(self, draft: np.ndarray) -> Block | str:
        self.state = self.lattice.walk(self.state, draft)
        self.tokens_left -= len(draft)
        return super().after(draft)

    def revise(self, prediction: Prediction, block: Block) -> Prediction:
        """The draft is what the model writes unaided or, where that is no document, the most probable text of the
        language. A position where it overrules the model is not sure; behind its end is filler, which is sure."""
        if path := self._unaided_document(prediction.argmax):
            self.path, self.overruled = path, np.zeros(len(path.tokens), bool)
            return replace(prediction, argmax=path.tokens)
        self.unaided = max(self.unaided - 1, 0)
        candidates = [self._candidates(prediction, block, i) for i in range(len(block.tokens))]
        self.earlier = None if self.path is None else self.path.tokens
        self.path = self.lattice.best(self.state, candidates, self.tokens_left)
        over = self.lattice.over[self.path.states[:-1]]
        self.overruled = block.free & ~over & (prediction.argmax != self.path.tokens)
        entropy = np.where(self.overruled, np.maximum(prediction.entropy, OVERRULED), prediction.entropy)
        entropy = np.where(over, 0, entropy).astype(np.float32)
        sample = np.where(over, self.path.tokens, prediction.sample)
        return replace(prediction, argmax=self.path.tokens, sample=sample, entropy=entropy)

    def _unaided_document(self, draft: np.ndarray) -> Path | None:
        """The document in what the model writes unaided; None where it is held, or writes none."""
        content = self.content(draft)[:-1].tolist() if self.unaided else []
        pieces = self.language.notation.pieces(self.lattice.vocabulary.text(content))
        document = projected(self.lattice.automaton, pieces, self.language.notation)
        return document and self.lattice.spelt(document, len(draft), self.tokens_left)

    def _candidates(self, prediction: Prediction, block: Block, i: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Token ids at position i, their log-probabilities, and one for every other id."""
        if not block.free[i]:
            return block.tokens[i : i + 1], np.zeros(1), IMPROBABLE
        if i in prediction.allowed_logprobs:
            return self.language.sets[int(block.allowed[i])].ids, prediction.allowed_logprobs[i], IMPROBABLE
        top, drawn = float(prediction.top[i]), float(prediction.confidence[i])
        ids = np.array([prediction.sample[i], prediction.argmax[i]])
        with np.errstate(divide="ignore"):
            logprobs = np.log([min(drawn, top), top])
        rest = max(1 - top, 1e-9) / self.facts.vocab_size
        return ids, logprobs, float(np.log(rest))

    def narrow(self, block: Block, accepted: np.ndarray, late: bool) -> Block:
        if self.unaided:
            return block
        if block.fixed is None:  # from here on it is held: what it was sure of stood elsewhere
            accepted, self.earlier = np.zeros(len(accepted), bool), None
        sure, stable = accepted & ~self.overruled, 0
        # Early drafts of an unsure model agree by chance, and end their strings too soon.
        if self.earlier is not None and late:
            stable = int(np.argmax(np.append(self.earlier != self.path.tokens, True)))
        return self._given(self.path, self._held(sure, stable), sure)

    def _held(self, sure: np.ndarray, stable: int) -> np.ndarray:
        """[L] bool: what is forced, from the start and behind a token that the model is `sure` of or that is one of the
        first `stable`; of those also the overruled ones, or they would never settle."""
        held, lies = np.zeros(len(self.path.tokens), bool), True
        for i, forced in enumerate(self.lattice.forced[self.path.states[:-1]]):
            held[i] = lies if forced else i < stable and self.overruled[i]
            lies = held[i] or sure[i] or i < stable
        return held

    def _given(self, path: Path, held: np.ndarray, sure: np.ndarray) -> Block:
        """`held` as fixed, and between them only what may stand there: exactly, as far as what is before is sure."""
        allowed = np.full(len(held), -1, np.int32)
        borders = [0, *np.flatnonzero(np.diff(held)) + 1, len(held)]
        for start, end in pairwise(borders):
            if not held[start]:
                closed = end < len(held) and not self.lattice.forced[path.states[start:end]].any()
                allowed[start:end] = self._allowed(path.states[start:end], sure[start:end], closed)
        tokens = np.where(held, path.tokens, -1)
        return Block(tokens=tokens, fixed=held, allowed=allowed, token_sets=self.language.sets)

    def _allowed(self, states: np.ndarray, sure: np.ndarray, closed: bool) -> np.ndarray:
        entry = int(states[0])
        within = self.language.slot(entry) if closed or entry == self.lattice.end else self.language.anywhere
        allowed = np.full(len(states), within)
        for i, state in enumerate(states.tolist()):
            if state >= 0 and not self.lattice.forced[state]:
                allowed[i] = self.language.exactly(state, entry)
            if not sure[i]:
                break
        return allowed

    def rewrite(self, block: Block, draft: np.ndarray, start: int, expected: int | None) -> Block:
        kept, self.unaided = draft[:start], 0
        if expected is not None:
            state = self.lattice.walk(self.state, [*kept, expected])
            if state >= 0 and self.lattice.left[state] <= self.tokens_left - start - 1:
                kept = np.append(kept, np.int32(expected))
        return replace(self._block(kept, len(draft)), before=Text(), again=True)

    def finish(self, draft: np.ndarray) -> np.ndarray:
        return np.concatenate([draft, self.lattice.ending(self.state)]).astype(np.int32)


def begin_within(
    model: DiffusionModel, text: Text, ask: Ask, language: Language, *, request: int = 0, cache: Cache | None = None
) -> InProgress:
    """A text of `language` in answer to `text`, not yet begun, behind what `cache` holds. Mistake where its shortest
    does not fit."""
    length = len(text) + (cache.length if cache else 0)
    room = model.facts.max_position_embeddings - length
    if ask.mode == "auto":
        raise Mistake("a text with a form is denoised or written left to right: leave out mode 'auto'")
    if ask.mode == "ar":
        form = TokenByToken(language, min(ask.max_tokens, room))
        return begin(model, text, ask, request=request, cache=cache, form=form)
    width = ask.sampling.canvas_length
    check_room(model, length, width if isinstance(width, int) else model.facts.canvas_length)
    layout = Document(language, room, ask.max_tokens, width)
    return begin(model, text, ask, request=request, cache=cache, layout=layout)
