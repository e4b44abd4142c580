"""An automaton over bytes, read in tokens: what may stand where, how far the end is, and the best way through a canvas.

A state here is one between two tokens. Where only one text can follow, only the tokens are allowed that the tokenizer
writes for it, so that a model sees what it was trained on; elsewhere all tokens are, those that cross from one part
of the text into the next included. Behind the text stand a stop token and the filler that a canvas ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .automaton import Automaton
from .config import ModelConfig
from .tokenizer import Tokenizer

BARRED = -150.0  # nats: for a token that was not allowed where it is needed; no other is as improbable
AHEAD = 64  # bytes of a text that the tokenizer is shown for its next token


class Vocabulary:
    """What each token writes, in bytes; b"" for special ones, and for all but one of those that write the same."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.encode = tokenizer.encode
        self.spelt = tokenizer.spelling(vocab_size)
        lengths = np.array([len(text) for text in self.spelt])
        self.lengths, self.longest = lengths, int(lengths.max())
        self.bytes = np.zeros((vocab_size, self.longest), np.uint8)
        for token, text in enumerate(self.spelt):
            self.bytes[token, : len(text)] = np.frombuffer(text, np.uint8)
        some = np.flatnonzero(lengths)
        self.by_first = [some[self.bytes[some, 0] == byte] for byte in range(256)]

    def walk(self, automaton: Automaton, state: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may follow, and the state that each leads to."""
        follow = np.flatnonzero(automaton.table[state] >= 0)
        tokens = np.concatenate([self.by_first[byte] for byte in follow])
        states = automaton.table[state, self.bytes[tokens, 0]]
        for place in range(1, self.longest):
            more = np.flatnonzero(self.lengths[tokens] > place)
            if not len(more):
                break
            states[more] = automaton.table[states[more], self.bytes[tokens[more], place]]
            alive = states >= 0
            tokens, states = tokens[alive], states[alive]
        return tokens, states

    def written(self, automaton: Automaton, state: int) -> int | None:
        """The token with which the tokenizer writes the one text that can follow; None where several can.

        A space before a choice is left to it: in most vocabularies it belongs to the word behind.
        """
        text, at = bytearray(), state
        while automaton.only[at] >= 0 and len(text) < AHEAD:
            text.append(automaton.only[at])
            at = automaton.table[at, automaton.only[at]]
        open_end = len(text) < AHEAD and not (automaton.accepting[at] and (automaton.table[at] < 0).all())
        known = bytes(text).rstrip(b" ") if open_end else bytes(text)
        tokens = self.encode(known.decode("utf-8", "ignore"))
        spelt = self.spelt[tokens[0]] if tokens else b""
        return tokens[0] if spelt and known.startswith(spelt) else None


@dataclass(frozen=True)
class Path:
    tokens: np.ndarray  # [L] int32
    states: np.ndarray  # [L + 1]: before and after each of them


class Lattice:
    """`moves[state, kind[token]]` is the state after a token, -1 for none; the last state is behind the stop token."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary, config: ModelConfig):
        self.vocabulary = vocabulary
        ends = [token for token in config.stop_ids if token < config.vocab_size]
        rows, self.forced = self._rows(automaton, np.array(ends))
        rows.append((np.unique([*ends, config.pad_id]), np.full(len({*ends, config.pad_id}), len(rows))))
        self.end = len(rows) - 1
        self.kind = self._kinds(rows, config.vocab_size)
        self.moves = np.full((len(rows), self.kind.max() + 1), -1, np.int32)
        for state, (tokens, targets) in enumerate(rows):
            self.moves[state, self.kind[tokens]] = targets
        self.left = self._distances()
        self.way_out = [self._nearer(tokens, targets, state) for state, (tokens, targets) in enumerate(rows)]

    def _rows(self, automaton: Automaton, ends: np.ndarray) -> tuple[list, np.ndarray]:
        """For each state, in the order they are met, its tokens and where each leads; and whether it is forced."""
        number, order, rows, forced = {0: 0}, [0], [], []
        for state in order:
            token = self.vocabulary.written(automaton, state) if automaton.only[state] >= 0 else None
            tokens, targets = self.vocabulary.walk(automaton, state) if (automaton.table[state] >= 0).any() else ([], [])
            if token is not None:
                targets, tokens = targets[tokens == token], np.array([token])
            for target in np.unique(targets).tolist():
                if target not in number:
                    number[target] = len(order)
                    order.append(target)
            targets = np.array([number[target] for target in np.asarray(targets).tolist()], np.int64)
            if automaton.accepting[state]:
                tokens, targets = np.append(tokens, ends).astype(int), np.append(targets, np.full(len(ends), -1))
            rows.append((np.asarray(tokens), targets))
            forced.append(token is not None)
        rows = [(tokens, np.where(targets < 0, len(order), targets)) for tokens, targets in rows]
        return rows, np.array([*forced, False])

    @staticmethod
    def _kinds(rows: list[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> np.ndarray:
        """[vocab_size]: tokens of one kind lead to the same place from every state; kind 0 leads nowhere."""
        kind, kinds = np.zeros(vocab_size, np.int64), 1
        for tokens, targets in rows:  # split each kind by where the state takes it
            pairs = kind[tokens] * (len(rows) + 1) + targets
            found, inverse = np.unique(pairs, return_inverse=True)
            kind[tokens] = kinds + inverse
            kinds += len(found)
        used, inverse = np.unique(np.append(kind, 0), return_inverse=True)
        return inverse[:-1].astype(np.int32)

    def _distances(self) -> np.ndarray:
        """[states]: tokens to the end at least, the stop token among them."""
        sources, kinds = np.nonzero(self.moves >= 0)
        pairs = np.unique(np.stack([sources, self.moves[sources, kinds]]), axis=1)
        left = np.full(len(self.moves), np.iinfo(np.int32).max)
        left[self.end] = distance = 0
        while (near := pairs[0, (left[pairs[1]] == distance) & (left[pairs[0]] > distance + 1)]).size:
            distance += 1
            left[near] = distance
        return left

    def _nearer(self, tokens: np.ndarray, targets: np.ndarray, state: int) -> tuple[int, int]:
        """A token that leads towards the end, and where to."""
        if state == self.end:
            return int(tokens[0]), state
        best = int(np.argmin(self.left[targets]))
        return int(tokens[best]), int(targets[best])

    def allowed(self, states: Sequence[int]) -> np.ndarray:
        """The ids that may stand in one of these states."""
        return np.flatnonzero((self.moves[list(states)] >= 0).any(0)[self.kind])

    def slot(self, state: int) -> list[int]:
        """The states that are reached from `state` before something is forced, or the text ends."""
        found, waiting = {state}, [state]
        while waiting:
            row = self.moves[waiting.pop()]
            for target in np.unique(row[row >= 0]).tolist():
                if target not in found and target != self.end and not self.forced[target]:
                    found.add(target)
                    waiting.append(target)
        return sorted(found)

    def run(self, state: int, length: int) -> Path:
        """What is forced from `state` on, `length` tokens at most."""
        tokens, states = [], [state]
        while len(tokens) < length and self.forced[states[-1]]:
            token, target = self.way_out[states[-1]]
            tokens.append(token)
            states.append(target)
        return Path(np.array(tokens, np.int32), np.array(states))

    def walk(self, state: int, tokens: np.ndarray) -> int:
        for token in tokens:
            state = int(self.moves[state, self.kind[token]])
        return state

    def best(self, start: int, says: Sequence[tuple[np.ndarray, np.ndarray, float]], room: int) -> Path:
        """The most probable of all ways to put one token at each position of a canvas such that the text can still be
        ended within `room` tokens from the canvas's first: Viterbi's algorithm.

        `says` has for each position: ids, their log-probabilities, and one for all others. The product of the
        positions' probabilities is the model's own, which predicts each apart from the others. A way always exists
        where `left[start] <= room`: whatever was chosen, the next token towards the end is among those looked at, and
        no state is entered from which the end is out of reach.
        """
        out_token, out_state = np.array(self.way_out).T
        states, scores = np.array([start]), np.zeros(1)
        back: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for position, (ids, logprobs, other) in enumerate(says, start=1):
            order = np.argsort(logprobs, kind="stable")
            likeliest = np.zeros(self.moves.shape[1], np.int64)  # of each kind: the last written stays
            likeliest[self.kind[ids[order]]] = order
            kinds = np.unique(self.kind[ids])
            chosen = likeliest[kinds]
            targets = self.moves[states[:, None], kinds]
            source, which = np.nonzero(targets >= 0)
            found = np.concatenate([targets[source, which], out_state[states]])
            token = np.concatenate([ids[chosen[which]], out_token[states]])
            score = np.concatenate([scores[source] + np.maximum(logprobs[chosen[which]], BARRED), scores + other])
            source = np.concatenate([source, np.arange(len(states))])
            score = np.where(self.left[found] <= max(room - position, 0), score, -np.inf)
            order = np.lexsort((score, found))
            last = order[np.append(found[order][1:] != found[order][:-1], True)]
            last = last[score[last] > -np.inf]
            back.append((states, source[last], token[last]))
            states, scores = found[last], score[last]
        return self._traced(back, states, int(np.argmax(scores)))

    @staticmethod
    def _traced(back: list, states: np.ndarray, at: int) -> Path:
        tokens, passed = [], [states[at]]
        for before, source, token in reversed(back):
            tokens.append(token[at])
            at = source[at]
            passed.append(before[at])
        return Path(np.array(tokens[::-1], np.int32), np.array(passed[::-1]))
