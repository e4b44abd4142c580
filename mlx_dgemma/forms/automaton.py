"""Deterministic automata over bytes: their tables, their intersection, and the smallest of the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import Mistake

MOST_STATES = 30_000  # a table of 30 MB
MOST_WORK = 1_200_000  # arcs looked at: about a second of a slow processor
MOST_REFINEMENT = 200_000  # of them, to minimise one part
FEWEST_ROUNDS = 8  # of refinement: a part that affords fewer is hardly ever done

Row = list[tuple[int, int, int]]  # a state's moves, (first byte, last byte, next state): in order, no byte twice


class Budget:
    """Counts elementary steps of work, and raises Mistake when `steps` of them are spent."""

    def __init__(self, steps: int = MOST_WORK):
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Mistake("it takes too much work to lay out: make it simpler, or its repetitions fewer")


@dataclass(frozen=True, eq=False)
class Automaton:
    """Starts in state 0. From every state some text leads to an accepting one."""

    rows: list[Row]  # of each state
    accepting: np.ndarray  # [states] bool

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self.rows)

    @cached_property
    def ends(self) -> list[int]:
        """The accepting states."""
        return np.flatnonzero(self.accepting).tolist()

    @cached_property
    def table(self) -> np.ndarray:
        """[states, 256] int32: the state after a byte, -1 for none."""
        table = np.full((len(self.rows), 256), -1, np.int32)
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
        in an accepting one)."""
        return _nearest(self.rows, self.accepting)

    def matches(self, text: bytes) -> bool:
        state = 0
        for byte in text:
            state = self.table[state, byte]
            if state < 0:
                return False
        return bool(self.accepting[state])


def joined(arcs: Iterable[tuple[int, int, int]]) -> Row:
    """The same moves with neighbouring ranges as one where they lead to the same state."""
    row: Row = []
    for low, high, target in arcs:
        if row and row[-1][1] == low - 1 and row[-1][2] == target:
            row[-1] = (row[-1][0], high, target)
        else:
            row.append((low, high, target))
    return row


def intersection(one: Automaton, other: Automaton, budget: Budget) -> Automaton:
    """The automaton of the texts that both match: its states are pairs."""
    numbers, order, rows = {(0, 0): 0}, [(0, 0)], []
    for a, b in order:
        if len(order) > MOST_STATES:
            raise Mistake(too_large())
        row = []
        budget.spend(2 * (len(one.rows[a]) + len(other.rows[b])))
        for low, high, pair in _overlapping(one.rows[a], other.rows[b]):
            if pair not in numbers:
                numbers[pair] = len(order)
                order.append(pair)
            row.append((low, high, numbers[pair]))
        rows.append(joined(row))
    return trimmed(rows, [bool(one.accepting[a] and other.accepting[b]) for a, b in order])


def _overlapping(one: Row, other: Row) -> Iterator[tuple[int, int, tuple[int, int]]]:
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            yield low, high, (one[i][2], other[j][2])
        if one[i][1] == high:
            i += 1
        else:
            j += 1


def _nearest(rows: list[Row], accepting: np.ndarray | list[bool]) -> tuple[list[int], list[int]]:
    """Breadth first, backwards from the accepting states -> as `Automaton.nearest`."""
    before: list[list[tuple[int, int]]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for low, _, target in row:
            before[target].append((low, state))
    byte, order = [-1] * len(rows), np.flatnonzero(accepting).tolist()
    seen = set(order)
    for state in order:
        for first, source in before[state]:
            if source not in seen:
                seen.add(source)
                byte[source] = first
                order.append(source)
    return order, byte


def trimmed(rows: list[Row], accepting: list[bool]) -> Automaton:
    """The automaton without those states from which no text leads to an accepting one; state 0 stays."""
    alive = sorted({0, *_nearest(rows, accepting)[0]})
    if len(alive) < len(rows):
        numbers = {state: number for number, state in enumerate(alive)}
        rows = [[(a, b, numbers[target]) for a, b, target in rows[state] if target in numbers] for state in alive]
    return Automaton(rows, np.array(accepting)[alive])


def minimised(automaton: Automaton, budget: Budget) -> Automaton:
    """The smallest automaton of the same texts: Moore's refinement. The same one where that would take long."""
    rows, classes = automaton.rows, automaton.accepting.tolist()
    count, arcs = len(set(classes)), sum(map(len, rows)) + len(rows)
    rounds = MOST_REFINEMENT // arcs
    for _ in range(rounds if rounds >= FEWEST_ROUNDS else 0):
        budget.spend(arcs)
        numbers: dict[tuple, int] = {}
        merged = [joined((low, high, classes[target]) for low, high, target in row) for row in rows]
        classes = [numbers.setdefault((c, tuple(row)), len(numbers)) for c, row in zip(classes, merged, strict=True)]
        if len(numbers) == count:
            first = sorted({number: state for state, number in reversed([*enumerate(classes)])}.values())
            rows = [joined((low, high, classes[target]) for low, high, target in rows[state]) for state in first]
            return Automaton(rows, automaton.accepting[first])
        count = len(numbers)
    return automaton


def too_large() -> str:
    remedy = "make its lengths, numbers of items or lists of values smaller"
    return f"it takes more than {MOST_STATES} states to hold: {remedy}"
