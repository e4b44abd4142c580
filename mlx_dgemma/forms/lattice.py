"""An automaton over bytes (`automaton.py`), read in tokens: which may come where, how far the end is, the best way
through a canvas. `language.py` asks it while a text is written.

A state here lies between two tokens. Where only one text can follow, only the token is allowed with which the
tokenizer begins it, so that a model sees what it was trained on; elsewhere all tokens are, those that cross from one
part of the text into the next included. Behind the text come a stop token and the filler that a canvas ends with.
Nothing is computed for all pairs of a state and a token: where lengths are counted there are thousands of states, and
a vocabulary has a quarter of a million tokens.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from ..errors import Mistake
from ..seam.model import Facts
from ..tokens.tokenizer import Tokenizer
from .automaton import Automaton
from .notation import CONTROLS

IMPROBABLE = -150.0  # nats: for a token that was not allowed where it is needed; no other is as improbable
AHEAD = 64  # bytes of a text that the tokenizer is shown for its next token
FAR = np.iinfo(np.int32).max
LONGEST = 256  # bytes of a token, at most
_CONTROL = re.compile(rb"([\xf8-\xff])")  # bytes that UTF-8 never has


class Vocabulary:
    """The bytes that each token writes; b"" for special tokens, and for all but one of those that write the same. A
    control token of a notation writes the byte that stands for it, which no text has."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        """Mistake where a token is longer than `LONGEST`."""
        self._encode = tokenizer.encode_parts
        self.spelt = [b"" if _CONTROL.search(text) else text for text in tokenizer.spelling(vocab_size)]
        for name, text in CONTROLS.items():
            if (token := tokenizer.token_id(name)) is not None and token < vocab_size:
                self.spelt[token] = text
        self.token = {text: token for token, text in enumerate(self.spelt) if text}
        self.has_calls = self.token.keys() >= {*CONTROLS.values()}
        self.lengths = np.array([len(text) for text in self.spelt])
        self.longest = int(self.lengths.max())
        if self.longest > LONGEST:
            raise Mistake(f"this tokenizer has a token of {self.longest} bytes; a form takes {LONGEST} at most")
        joined = b"".join(text.ljust(self.longest, b"\0") for text in self.spelt)
        self.bytes = np.frombuffer(joined, np.uint8).reshape(vocab_size, self.longest)
        # The tokens that write something, the long ones first: those of more than n bytes are the first longer[n].
        self.order = np.argsort(-self.lengths, kind="stable")[: np.count_nonzero(self.lengths)]
        self.longer = np.searchsorted(-self.lengths[self.order], -np.arange(self.longest))
        self.columns = np.ascontiguousarray(self.bytes[self.order].T)  # [longest, tokens in that order]

    def encode(self, text: bytes) -> list[int]:
        """The tokens in which the tokenizer writes a text; half a character at its end is left out."""
        pieces = enumerate(_CONTROL.split(text))  # text and control tokens in turn
        return self._encode([self.token[piece] if i % 2 else piece.decode("utf-8", "ignore") for i, piece in pieces])

    def text(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self.spelt[token] for token in tokens)

    def starts(self, text: bytes) -> list[tuple[int, int]]:
        """The tokens with which `text` can begin: (number of bytes, token) each."""
        return [(n, self.token[text[:n]]) for n in range(1, len(text) + 1) if text[:n] in self.token]


@dataclass(frozen=True)
class Path:
    """Tokens, and the states that they lead through."""

    tokens: np.ndarray  # [L] int32
    states: np.ndarray  # [L + 1]: before and after each token


class Following(NamedTuple):
    """The tokens that may come next."""

    ids: np.ndarray  # [n] int64, sorted
    ample: int  # room in tokens from which on these are all that may ever come here: less would leave some out


class Lattice:
    """The ways through an automaton in tokens. The states are the automaton's and one more, `end`, behind the stop
    token.

    `left` [states] is the number of tokens, the stop token included, of the shortest way to the end that is known: the
    text of the fewest bytes, in the fewest tokens. `out` [states, 2] is that way's next token, and the state behind
    it. `forced` [states] says where one text must follow, and `written` [states] which token begins it (else -1).
    `over` [states] says where nothing but the stop token or filler can follow.
    """

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary, facts: Facts):
        self.vocabulary, self.automaton = vocabulary, automaton
        self.end = automaton.size
        self.table = np.concatenate([automaton.table, np.full((1, 256), -1, np.int32)])  # -1 leads to -1
        self.accepting = np.append(automaton.accepting, False)
        self.stops = np.unique(facts.stop_ids)
        self.filler = np.unique([*facts.stop_ids, facts.pad_id])
        self.is_stop, self.is_filler = np.zeros((2, len(vocabulary.spelt)), bool)
        self.is_stop[self.stops] = self.is_filler[self.filler] = True
        self.written = self._forced_tokens()
        self.forced = self.written >= 0
        self.over = np.append(automaton.accepting & ~(automaton.table >= 0).any(axis=1), True)
        self.left, self.out = self._ways_out(facts.pad_id)

    def _forced_tokens(self) -> np.ndarray:
        """[states] the token with which the tokenizer begins the one text that can follow, -1 where there are more.

        A space before a choice is left to it: in most vocabularies it belongs to the word behind.
        """
        rows, only, first_token = self.automaton.rows, self.automaton.only.tolist(), cache(self._first_token)
        texts, ends = [b""] * self.end, list(range(self.end))  # the bytes that must follow, the state behind them
        written = np.full(self.end + 1, -1)
        for state in self.automaton.nearest[0]:
            if only[state] >= 0:
                target = rows[state][0][2]  # nearer to the end, so it has been here before
                text = texts[state] = bytes([only[state]]) + texts[target][: AHEAD - 1]
                ends[state] = ends[target]
                written[state] = first_token(text, len(text) == AHEAD or not rows[ends[state]])
        return written

    def _first_token(self, text: bytes, whole: bool) -> int:
        """The tokenizer's first token of `text`, which no choice follows where it is `whole`; -1 for none."""
        known = text if whole else text.rstrip(b" ")
        if known and 0x80 <= known[0] < 0xC0:  # inside a character, which is being written byte by byte
            return self.vocabulary.token.get(known[:1], -1)
        tokens = self.vocabulary.encode(known)
        spelt = self.vocabulary.spelt[tokens[0]] if tokens else b""
        return tokens[0] if spelt and known.startswith(spelt) else -1

    def _ways_out(self, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """`left` and `out`."""
        order, byte = self.automaton.nearest
        written, longest, starts = self.written.tolist(), self.vocabulary.longest, cache(self.vocabulary.starts)
        texts, targets = [b""] * self.end, self.table[np.arange(self.end), byte].tolist()  # the shortest text from here
        left, out = (
            [FAR] * self.end + [0],
            [(int(self.stops[0]), self.end)] * self.end + [(pad_id, self.end)],
        )
        for state in order:
            if byte[state] < 0:
                left[state] = 1
                continue
            texts[state] = bytes([byte[state]]) + texts[targets[state]][: longest - 1]
            at, behind = 0, state
            for length, token in starts(texts[state]):
                while at < length:
                    at, behind = at + 1, targets[behind]
                if written[state] in (-1, token) and left[behind] + 1 < left[state]:
                    left[state], out[state] = left[behind] + 1, (token, behind)
        return np.array(left), np.array(out)

    def moves(self, states: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """[states, ids]: where each token leads from each state, -1 for nowhere."""
        text, lengths = self.vocabulary.bytes[ids], self.vocabulary.lengths[ids]
        targets = self.table[states[:, None], text[:, 0]]
        targets[:, lengths == 0] = -1
        for place in range(1, int(lengths.max())):
            row, column = np.nonzero((targets >= 0) & (lengths > place))
            targets[row, column] = self.table[targets[row, column], text[column, place]]
        forced = self.forced[states]
        targets[forced] = np.where(self.written[states[forced], None] == ids, targets[forced], -1)
        targets[self.accepting[states][:, None] & self.is_stop[ids]] = self.end
        targets[(states == self.end)[:, None] & self.is_filler[ids]] = self.end
        return targets

    def allowed(self, state: int, most: int) -> np.ndarray | None:
        """The sorted ids that may come in a state, None for more than `most`: then not all need to be looked at."""
        if self.forced[state]:
            return self.written[state : state + 1]
        if state == self.end:
            return self.filler
        if np.count_nonzero(self.table[state, self.vocabulary.columns[0]] >= 0) > 50 * most:
            return None
        tokens, _ = self._tokens(state)
        tokens = np.union1d(tokens, self.stops) if self.accepting[state] else np.sort(tokens)
        return tokens if len(tokens) <= most else None

    def following(self, state: int, room: int) -> Following:
        """The ids of all tokens that may come next if the text is to end within `room` tokens, the stop token
        included. At least one where `left[state] <= room`."""
        if self.forced[state] or state == self.end:
            ids = self.written[state : state + 1] if self.forced[state] else self.filler
            return Following(ids if self.left[state] <= room else ids[:0], int(self.left[state]))
        tokens, targets = self._tokens(state)
        left = self.left[targets] + 1
        if self.accepting[state]:
            tokens, left = np.append(tokens, self.stops), np.append(left, np.ones(len(self.stops), int))
        return Following(np.sort(tokens[left <= room]), int(left.max(initial=0)))

    def ending(self, state: int) -> np.ndarray:
        """[left[state]] int32: the tokens of the shortest way to the end, the stop token last."""
        tokens = []
        while state != self.end:
            token, state = self.out[state].tolist()
            tokens.append(token)
        return np.array(tokens, np.int32)

    def _tokens(self, state: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens whose bytes may follow, and the state behind each."""
        where = np.flatnonzero(self.table[state, self.vocabulary.columns[0]] >= 0)
        table, targets = self.table.ravel(), np.full(len(where), state)
        for column, long in zip(self.vocabulary.columns, np.searchsorted(where, self.vocabulary.longer), strict=True):
            targets[:long] = table[256 * targets[:long] + column[where[:long]]]  # behind -1, the last row: all -1
        alive = targets >= 0
        return self.vocabulary.order[where[alive]], targets[alive]

    def somewhere(self, states: Sequence[int]) -> np.ndarray:
        """The sorted ids that may come in some of `states`, and some that may not: judged by two bytes in a row."""
        table = self.table[np.asarray(states)]
        source, byte = np.nonzero(table >= 0)
        shapes, shape = self._shapes
        behind = np.zeros((256, len(shapes)), np.float32)  # the shapes of the states behind each byte
        behind[byte, shape[table[source, byte]]] = 1
        pairs = behind @ shapes > 0  # [256, 256]: whether the second byte may follow the first
        columns = self.vocabulary.columns
        where = np.flatnonzero((table >= 0).any(axis=0)[columns[0]])
        keep = np.ones(len(where), bool)
        for place, long in enumerate(np.searchsorted(where, self.vocabulary.longer)[1:], start=1):
            keep[:long] &= pairs[columns[place - 1, where[:long]], columns[place, where[:long]]]
        tokens = self.vocabulary.order[where[keep]]
        ends = self.accepting[states].any() or self.end in states
        return np.union1d(tokens, self.filler) if ends else np.sort(tokens)

    @cached_property
    def _shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """[shapes, 256] which bytes may follow: 1 or 0, each shape once; and [states] the shape of each state."""
        packed = np.packbits(self.table >= 0, axis=1).view("V32").ravel()
        _, first, shape = np.unique(packed, return_index=True, return_inverse=True)
        return (self.table[first] >= 0).astype(np.float32), shape

    def slot(self, state: int) -> list[int]:
        """The states between `state` and the next choice behind something forced."""
        inside, waiting = {state}, [state]
        while waiting:
            source = waiting.pop()
            for _, _, target in self.automaton.rows[source] if source != self.end else ():
                back = self.forced[source] and not self.forced[target]  # a choice behind what is forced
                if target not in inside and not back:
                    inside.add(target)
                    waiting.append(target)
        return sorted(inside)

    def run(self, state: int, length: int) -> Path:
        """The tokens that are forced from `state` on, `length` of them at most."""
        tokens, states = [], [state]
        while len(tokens) < length and self.forced[states[-1]]:
            token, target = self.out[states[-1]].tolist()
            tokens.append(token)
            states.append(target)
        return Path(np.array(tokens, np.int32), np.array(states))

    def spelt(self, rest: bytes, length: int, room: int, start: int = 0) -> Path | None:
        """The rest of a text of the language, from `start` on, as a canvas of `length` tokens; None where it takes
        more, or more than `room`, the stop token included."""
        tokens, states, whole = [], [start], []
        while rest and states[-1] >= 0 and len(tokens) < min(length, room):
            forced = int(self.written[states[-1]])
            whole = whole or self.vocabulary.encode(rest)
            whole = whole if forced in (-1, *whole[:1]) else [forced]
            tokens.append(whole.pop(0))
            states.append(self.walk(states[-1], tokens[-1:]))
            rest = rest[len(self.vocabulary.spelt[tokens[-1]]) :]
        if rest or states[-1] < 0 or len(tokens) >= min(length, room):
            return None
        filler = [self.stops[0], *[self.out[self.end, 0]] * (length - len(tokens) - 1)]
        return Path(np.array([*tokens, *filler], np.int32), np.array([*states, *[self.end] * len(filler)]))

    def walk(self, state: int, tokens: Iterable[int]) -> int:
        """The state that `tokens` lead to from `state`, -1 for none."""
        for token in tokens:
            state = int(self.moves(np.array([state]), np.array([token]))[0, 0])
        return state

    def best(self, start: int, predictions: Sequence[tuple[np.ndarray, np.ndarray, float]], room: int) -> Path:
        """The most probable of all ways to put one token at each position of a canvas such that the text can still be
        ended within `room` tokens from the canvas's first: Viterbi's algorithm.

        `predictions` has for each position: ids, their log-probabilities, and one for every other id. The model
        predicts each position apart from the others, so a way's log-probabilities add up. They count from the likeliest
        token, half from that of all and half from that of those which can stand there: the one keeps what comes next
        where the model expects it, the other does not punish what the form demands. What stands behind the end costs
        nothing, or ending would be dearer than to swallow what the model goes on to say. A way always exists where
        `left[start] <= room`: whatever was chosen, the next token towards the end is among those looked at, and no
        state is entered from which the end is out of reach.
        """
        states, scores = np.array([start]), np.zeros(1)
        back: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for position, (ids, logprobs, other) in enumerate(predictions, start=1):
            after = self.moves(states, ids)
            after[self.over[states]] = -1  # `out` has the stop token and filler
            logprobs = np.maximum(logprobs, IMPROBABLE)
            likeliest = np.where(after >= 0, logprobs, other).max(axis=1, initial=other)
            likeliest = (likeliest + logprobs.max(initial=other)) / 2
            source, which = np.nonzero(after >= 0)
            target = np.concatenate([after[source, which], self.out[states, 1]])
            token = np.concatenate([ids[which], self.out[states, 0]])
            worth = np.append(logprobs[which], np.where(self.over[states], likeliest, other))
            source = np.append(source, np.arange(len(states)))
            score = scores[source] + worth - likeliest[source]
            score = np.where(self.left[target] <= max(room - position, 0), score, -np.inf)
            order = np.lexsort((score, target))
            last = order[np.append(target[order][1:] != target[order][:-1], True)]  # the best into each state
            last = last[score[last] > -np.inf]
            back.append((states, source[last], token[last]))
            states, scores = target[last], score[last]
        at = int(np.argmax(scores))
        tokens, passed = [], [states[at]]
        for before, source, token in reversed(back):
            tokens.append(token[at])
            at = source[at]
            passed.append(before[at])
        return Path(np.array(tokens[::-1], np.int32), np.array(passed[::-1]))
