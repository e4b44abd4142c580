"""Deterministic automata over bytes: their tables, their intersection, and the smallest of the same texts.

`construction.py` makes them from expressions, `lattice.py` reads them in tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import Mistake

MAX_STATES = 50_000  # a table of 50 MB
MAX_WORK = 1_200_000  # arcs looked at: about a second of a slow processor
MAX_REFINEMENT = 200_000  # of them, to minimise one part
MIN_ROUNDS = 8  # of refinement: a part that affords fewer is hardly ever done
TOO_LARGE = (
    f"it takes more than {MAX_STATES} states to hold: make its lengths, numbers of items or lists of values smaller"
)

Row = list[tuple[int, int, int]]  # a state's moves, (first byte, last byte, next state): in order, no byte twice


class Budget:
    """Counts elementary steps of work, and raises Mistake when `steps` of them are spent.

    No text of more than `reach` bytes will be written, so repetitions beyond it need not be counted.
    """

    def __init__(self, steps: int = MAX_WORK, reach: int | None = None):
        self.left, self.reach = steps, reach

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Mistake("it takes too much work to lay out: make it simpler, or its repetitions fewer")


@dataclass(frozen=True, eq=False)
class Automaton:
    """Starts in state 0."""

    rows: list[Row]  # of each state
    accepting: np.ndarray  # [states] bool

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self.rows)

    @cached_property
    def table(self) -> np.ndarray:
        """[states, 256] int32: the state after a byte, -1 for none."""
        table = np.full((self.size, 256), -1, np.int32)
        for state, row in enumerate(self.rows):
            for low, high, target in row:
                table[state, low : high + 1] = target
        return table

    @cached_property
    def only(self) -> np.ndarray:
        """[states] int: the byte that must follow, -1 where there is a choice or the text may end."""
        single = [row[0][0] if len(row) == 1 and row[0][0] == row[0][1] else -1 for row in self.rows]
        return np.where(self.accepting, -1, single)

    @cached_property
    def nearest(self) -> tuple[list[int], list[int]]:
        """The states in order of the fewest bytes to an accepting one, and of each state the first of those bytes (-1
        in an accepting one). A state from which no text is accepted is not in that order."""
        before: list[list[tuple[int, int]]] = [[] for _ in self.rows]
        for state, row in enumerate(self.rows):
            for low, _, target in row:
                before[target].append((low, state))
        byte, order = [-1] * self.size, np.flatnonzero(self.accepting).tolist()
        seen = set(order)
        for state in order:  # breadth first, backwards
            for first, source in before[state]:
                if source not in seen:
                    seen.add(source)
                    byte[source] = first
                    order.append(source)
        return order, byte

    @cached_property
    def shortest(self) -> int:
        """Bytes of the shortest text."""
        state, length, byte = 0, 0, self.nearest[1]
        while byte[state] >= 0:
            state, length = int(self.table[state, byte[state]]), length + 1
        return length

    def matches(self, text: bytes) -> bool:
        state = 0
        for byte in text:
            state = self.table[state, byte]
            if state < 0:
                return False
        return bool(self.accepting[state])


def joined(arcs: Iterable[tuple[int, int, int]]) -> Row:
    """Join neighbouring ranges that lead to the same state."""
    row: Row = []
    for low, high, target in arcs:
        if row and row[-1][1] == low - 1 and row[-1][2] == target:
            row[-1] = (row[-1][0], high, target)
        else:
            row.append((low, high, target))
    return row


def trimmed(rows: list[Row], accepting: list[bool]) -> Automaton:
    """Drop the states from which no text leads to an accepting one; state 0 stays."""
    automaton = Automaton(rows, np.array(accepting))
    alive = sorted({0, *automaton.nearest[0]})
    if len(alive) == len(rows):
        return automaton
    numbers = {state: number for number, state in enumerate(alive)}
    rows = [[(low, high, numbers[target]) for low, high, target in rows[state] if target in numbers] for state in alive]
    return Automaton(rows, automaton.accepting[alive])


def intersection(left: Automaton, right: Automaton, budget: Budget) -> Automaton:
    """The automaton of the texts that both match: its states are pairs."""
    numbers, order, rows = {(0, 0): 0}, [(0, 0)], []
    for a, b in order:
        if len(order) > MAX_STATES:
            raise Mistake(TOO_LARGE)
        budget.spend(2 * (len(left.rows[a]) + len(right.rows[b])))
        row = []
        for low, high, target in left.rows[a]:
            for other_low, other_high, other_target in right.rows[b]:
                first, last, pair = max(low, other_low), min(high, other_high), (target, other_target)
                if first <= last:
                    if pair not in numbers:
                        numbers[pair] = len(order)
                        order.append(pair)
                    row.append((first, last, numbers[pair]))
        rows.append(joined(row))
    return trimmed(rows, [bool(left.accepting[a] and right.accepting[b]) for a, b in order])


def complement(automaton: Automaton) -> Automaton:
    """The automaton of all other byte strings."""
    sink, rows = automaton.size, []
    for row in [*automaton.rows, []]:
        full, after = [], 0
        for low, high, target in row:
            full += [(after, low - 1, sink)] * (after < low) + [(low, high, target)]
            after = high + 1
        rows.append([*full, *[(after, 255, sink)] * (after < 256)])
    return Automaton(rows, np.append(~automaton.accepting, True))


def minimised(automaton: Automaton, budget: Budget) -> Automaton:
    """The smallest automaton of the same texts: Moore's refinement. The same one where that would take long."""
    rows, classes = automaton.rows, automaton.accepting.tolist()
    count, arcs = len(set(classes)), sum(map(len, rows)) + len(rows)
    rounds = MAX_REFINEMENT // arcs
    for _ in range(rounds if rounds >= MIN_ROUNDS else 0):
        budget.spend(arcs)
        numbers: dict[tuple, int] = {}
        merged = [joined((low, high, classes[target]) for low, high, target in row) for row in rows]
        classes = [numbers.setdefault((c, *row), len(numbers)) for c, row in zip(classes, merged, strict=True)]
        if len(numbers) == count:  # no class was split: the classes are the states
            first = {number: state for state, number in reversed([*enumerate(classes)])}
            states = [first[number] for number in range(count)]
            rows = [joined((low, high, classes[target]) for low, high, target in rows[state]) for state in states]
            return Automaton(rows, automaton.accepting[states])
        count = len(numbers)
    return automaton
