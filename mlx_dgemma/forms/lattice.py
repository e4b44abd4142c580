"""An automaton over bytes, read in tokens: what may stand where, how far the end is, and the best way through a canvas.

A state here is one between two tokens. Where only one text can follow, only the token is allowed with which the
tokenizer begins it, so that a model sees what it was trained on; elsewhere all tokens are, those that cross from one
part of the text into the next included. Behind the text stand a stop token and the filler that a canvas ends with.
Nothing is made for all states and all tokens: with lengths to count there are thousands of the ones, and a quarter of
a million of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checkpoint.config import ModelConfig
from ..tokens.tokenizer import Tokenizer
from .automaton import Automaton

BARRED = -150.0  # nats: for a token that was not allowed where it is needed; no other is as improbable
AHEAD = 64  # bytes of a text that the tokenizer is shown for its next token
FAR = np.iinfo(np.int32).max


class Vocabulary:
    """What each token writes, in bytes; b"" for special ones, and for all but one of those that write the same."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.encode = tokenizer.encode
        self.spelt = tokenizer.spelling(vocab_size)
        self.token = {text: token for token, text in enumerate(self.spelt) if text}
        self.lengths = np.array([len(text) for text in self.spelt])
        self.longest = int(self.lengths.max())
        joined = b"".join(text.ljust(self.longest, b"\0") for text in self.spelt)
        self.bytes = np.frombuffer(joined, np.uint8).reshape(vocab_size, self.longest)
        # By first byte, the long ones first.
        order = np.argsort(-self.lengths, kind="stable")
        order = order[self.lengths[order] > 0]
        self.by_first = [order[self.bytes[order, 0] == byte] for byte in range(256)]

    def beginning(self, follow: np.ndarray) -> np.ndarray:
        """The tokens that begin with one of these bytes, the long ones first."""
        tokens = np.concatenate([self.by_first[byte] for byte in follow] or [np.zeros(0, int)])
        return tokens[np.argsort(-self.lengths[tokens], kind="stable")]


@dataclass(frozen=True)
class Path:
    tokens: np.ndarray  # [L] int32
    states: np.ndarray  # [L + 1]: before and after each of them


class Lattice:
    """States are the automaton's, and one more, `end`, behind the stop token."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary, config: ModelConfig):
        self.vocabulary, self.automaton = vocabulary, automaton
        self.end = len(automaton.accepting)
        self.table = np.concatenate([automaton.table, np.full((1, 256), -1, np.int32)])
        self.accepting = np.append(automaton.accepting, False)
        self.stops = np.unique(config.stop_ids)
        self.filler = np.unique([*config.stop_ids, config.pad_id])
        self.ending = np.zeros((len(vocabulary.spelt), 2), bool)  # by token: ends a text, may stand behind it
        self.ending[self.stops, 0] = self.ending[self.filler, 1] = True
        self.written = np.full(self.end + 1, -1)  # the token of a text that is forced, -1 where there is a choice
        for state in np.flatnonzero(automaton.only >= 0).tolist():
            self.written[state] = self._written(state)
        self.forced = self.written >= 0
        self._find_ways_out()

    def _written(self, state: int) -> int:
        """The token with which the tokenizer begins the one text that can follow.

        A space before a choice is left to it: in most vocabularies it belongs to the word behind.
        """
        only, text = self.automaton.only, bytearray()
        while only[state] >= 0 and len(text) < AHEAD:
            text.append(only[state])
            state = self.table[state, only[state]]
        ends = len(text) == AHEAD or (self.accepting[state] and (self.table[state] < 0).all())
        known = bytes(text) if ends else bytes(text).rstrip(b" ")
        if known and 0x80 <= known[0] < 0xC0:  # inside a character, which is being written byte by byte
            return self.vocabulary.token.get(known[:1], -1)
        tokens = self.vocabulary.encode(known.decode("utf-8", "ignore"))
        spelt = self.vocabulary.spelt[tokens[0]] if tokens else b""
        return tokens[0] if spelt and known.startswith(spelt) else -1

    def _find_ways_out(self) -> None:
        """`left` [states]: tokens to the end, the stop token among them, over the text of the fewest bytes; and with
        which token that way begins, and where it leads."""
        byte, order = self._shortest_texts()
        self.left = np.full(self.end + 1, FAR)
        self.left[self.end] = 0
        self.out = np.zeros((self.end + 1, 2), np.int64)  # token, state
        self.out[self.end] = self.filler[0], self.end
        for state in order:
            options = [(1, int(self.stops[0]), self.end)] if byte[state] < 0 else self._along(state, byte)
            for left, *out in options:
                if left < self.left[state]:
                    self.left[state], self.out[state] = left, out

    def _along(self, state: int, byte: np.ndarray) -> list[tuple[int, int, int]]:
        """(tokens to the end, token, state) for each token that begins the shortest text."""
        only, text, found = int(self.written[state]), b"", []
        while byte[state] >= 0 and len(text) < self.vocabulary.longest:
            text += bytes([byte[state]])
            state = int(self.table[state, byte[state]])
            token = self.vocabulary.token.get(text)
            if token is not None and only in (-1, token) and self.left[state] < FAR:
                found.append((int(self.left[state]) + 1, token, state))
        return found

    def _shortest_texts(self) -> tuple[np.ndarray, list[int]]:
        """[states] the next byte on the shortest way to an accepting one, -1 in those; the states, nearest first."""
        sources, bytes_ = np.nonzero(self.table >= 0)
        targets = self.table[sources, bytes_]
        byte, order = np.full(self.end + 1, -1), np.flatnonzero(self.accepting).tolist()
        seen, near = self.accepting.copy(), self.accepting
        while True:
            new = near[targets] & ~seen[sources]
            if not new.any():
                return byte, order
            found, first = np.unique(sources[new], return_index=True)
            byte[found] = bytes_[new][first]
            near = np.zeros(self.end + 1, bool)
            near[found] = seen[found] = True
            order += found.tolist()

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
        stop, filler = self.ending[ids].T
        targets[self.accepting[states][:, None] & stop] = self.end
        targets[(states == self.end)[:, None] & filler] = self.end
        return targets

    def allowed(self, state: int, most: int) -> np.ndarray | None:
        """The ids that may stand in a state; None for more than `most`, without having looked at all of very many."""
        if self.forced[state]:
            return self.written[state : state + 1]
        if state == self.end:
            return self.filler
        follow = np.flatnonzero(self.table[state] >= 0)
        tokens = self.vocabulary.beginning(follow)
        if len(tokens) > 50 * most:
            return None
        tokens = tokens[self.moves(np.array([state]), tokens)[0] >= 0] if len(tokens) else tokens
        tokens = np.union1d(tokens, self.stops) if self.accepting[state] else np.sort(tokens)
        return tokens if len(tokens) <= most else None

    def somewhere(self, states: np.ndarray) -> np.ndarray:
        """The ids that may stand in some of `states`, with a few that may not: judged by each two bytes in a row."""
        table = self.table[states]
        pairs = np.zeros((256, 256), bool)
        for byte in np.flatnonzero((table >= 0).any(0)):
            targets = np.unique(table[:, byte])
            pairs[byte] = (self.table[targets[targets >= 0]] >= 0).any(0)
        tokens = self.vocabulary.beginning(np.flatnonzero((table >= 0).any(0)))
        for place in range(1, self.vocabulary.longest):
            long = int(np.searchsorted(-self.vocabulary.lengths[tokens], -place))  # the first so many go on
            text = self.vocabulary.bytes[tokens[:long]]
            keep = np.ones(len(tokens), bool)
            keep[:long] = pairs[text[:, place - 1], text[:, place]]
            tokens = tokens[keep]
        ends = self.accepting[states].any() or (states == self.end).any()
        return np.union1d(tokens, self.filler) if ends else np.sort(tokens)

    def slot(self, state: int) -> np.ndarray:
        """The states that are reached from `state` up to the next choice behind something forced."""
        inside = np.zeros(self.end + 1, bool)
        inside[state] = True
        near = np.array([state])
        while len(near):
            targets = self.table[near]
            back = self.forced[near][:, None] & ~self.forced[targets]  # a choice behind what is forced
            near = np.unique(targets[(targets >= 0) & ~back])
            near = near[~inside[near]]
            inside[near] = True
        return np.flatnonzero(inside)

    def run(self, state: int, length: int) -> Path:
        """What is forced from `state` on, `length` tokens at most."""
        tokens, states = [], [state]
        while len(tokens) < length and self.forced[states[-1]]:
            token, target = self.out[states[-1]].tolist()
            tokens.append(token)
            states.append(target)
        return Path(np.array(tokens, np.int32), np.array(states))

    def walk(self, state: int, tokens: np.ndarray) -> int:
        for token in tokens:
            state = int(self.moves(np.array([state]), np.array([token]))[0, 0])
        return state

    def best(self, start: int, says: Sequence[tuple[np.ndarray, np.ndarray, float]], room: int) -> Path:
        """The most probable of all ways to put one token at each position of a canvas such that the text can still be
        ended within `room` tokens from the canvas's first: Viterbi's algorithm.

        `says` has for each position: ids, their log-probabilities, and one for all others. The product of the
        positions' probabilities is the model's own, which predicts each apart from the others. A way always exists
        where `left[start] <= room`: whatever was chosen, the next token towards the end is among those looked at, and
        no state is entered from which the end is out of reach.
        """
        states, scores = np.array([start]), np.zeros(1)
        back: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for position, (ids, logprobs, other) in enumerate(says, start=1):
            targets = self.moves(states, ids)
            source, which = np.nonzero(targets >= 0)
            found = np.concatenate([targets[source, which], self.out[states, 1]])
            token = np.concatenate([ids[which], self.out[states, 0]])
            score = np.concatenate([scores[source] + np.maximum(logprobs[which], BARRED), scores + other])
            source = np.concatenate([source, np.arange(len(states))])
            score = np.where(self.left[found] <= max(room - position, 0), score, -np.inf)
            order = np.lexsort((score, found))
            last = order[np.append(found[order][1:] != found[order][:-1], True)]  # the best into each state
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
