"""Regular expressions over characters -> a deterministic automaton over the bytes of their UTF-8.

A JSON schema without recursion, a template, a list of choices: each is such an expression, and what may stand next in
a text that began somehow depends on the automaton's state alone. Thompson's construction, then that of subsets; see
Hopcroft, Motwani and Ullman, "Introduction to Automata Theory", chapters 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import chain, pairwise

import numpy as np

from ..errors import Mistake
from .expression import LAST, Both, Chars, Either, Expression, Joined, Repeat, Series, Text

MOST_STATES = 30_000  # a table of 30 MB, a few seconds to make


def utf8(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """The code points from `low` to `high` as products of byte ranges."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST)):
        if (a := max(low, first)) <= (b := min(high, last)):
            yield from _products(chr(a).encode(), chr(b).encode())


def _products(a: bytes, b: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    """Byte strings from `a` to `b`, of one length."""
    low, high, rest = a[0], b[0], len(a) - 1
    if low == high or not rest:
        tails = _products(a[1:], b[1:]) if rest else [()]
        yield from (((low, high), *tail) for tail in tails)
        return
    if a[1:] != b"\x80" * rest:
        yield from (((low, low), *tail) for tail in _products(a[1:], b"\xbf" * rest))
        low += 1
    last = b[1:] != b"\xbf" * rest
    if low <= high - last:
        yield ((low, high - last), *[(0x80, 0xBF)] * rest)
    if last:
        yield from (((high, high), *tail) for tail in _products(b"\x80" * rest, b[1:]))


@dataclass(frozen=True)
class Automaton:
    """Begins in state 0. From every state some text leads to an accepting one."""

    table: np.ndarray  # [states, 256] int32: the state after a byte, -1 for none
    accepting: np.ndarray  # [states] bool

    @cached_property
    def only(self) -> np.ndarray:
        """[states] int: the byte that must follow, -1 where there is a choice or the text may end."""
        live = self.table >= 0
        return np.where((live.sum(1) == 1) & ~self.accepting, live.argmax(1), -1)

    def matches(self, text: bytes) -> bool:
        state = 0
        for byte in text:
            state = self.table[state, byte]
            if state < 0:
                return False
        return bool(self.accepting[state])


def compile(expression: Expression) -> Automaton:
    """Mistake where the automaton is too large, or nothing at all matches."""
    graph = _Graph()
    return graph.deterministic(graph.add(expression, graph.node()))


class _Graph:
    """Nodes, arcs that take a byte of a range, and arcs that take nothing. Begins at node 0."""

    def __init__(self):
        self.arcs: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []

    def node(self) -> int:
        if len(self.arcs) > 20 * MOST_STATES:
            raise Mistake(_too_large())
        self.arcs.append([])
        self.free.append([])
        return len(self.arcs) - 1

    def add(self, expression: Expression, start: int) -> int:
        """Put in what leads from `start` over all that the expression describes -> where it ends."""
        match expression:
            case Text(text):
                return self._run([(byte, byte) for byte in text.encode()], start, None)
            case Chars(ranges):
                end = self.node()
                for product in chain.from_iterable(utf8(low, high) for low, high in ranges):
                    self._run(product, start, end)
                return end
            case Series(parts):
                return reduce(lambda at, part: self.add(part, at), parts, start)
            case Either(options):
                end = self.node()
                self._lead([self.add(option, start) for option in options], end)
                return end
            case Repeat():
                return self._repeat(expression, start)
            case Joined():
                return self._join(expression, start)
            case Both(one, other):
                return self._embed(_intersection(compile(one), compile(other)), start)

    def _after(self, start: int) -> int:
        self.free[start].append(node := self.node())
        return node

    def _lead(self, ends: list[int], to: int) -> None:
        for end in ends:
            self.free[end].append(to)

    def _run(self, product: Sequence[tuple[int, int]], start: int, end: int | None) -> int:
        for i, (low, high) in enumerate(product):
            target = end if end is not None and i == len(product) - 1 else self.node()
            self.arcs[start].append((low, high, target))
            start = target
        return start

    def _repeat(self, repeat: Repeat, start: int) -> int:
        for _ in range(repeat.least):
            start = self.add(repeat.what, start)
        if repeat.most is None:
            inside = self._after(start)
            self.free[self.add(repeat.what, inside)].append(inside)
            return self._after(inside)
        end = self.node()
        for _ in range(repeat.most - repeat.least):
            self.free[start].append(end)
            start = self.add(repeat.what, self._after(start))
        self.free[start].append(end)
        return end

    def _join(self, joined: Joined, start: int) -> int:
        empty: int | None = start  # where nothing is written yet; None once something must have been
        written = self.node()
        for part, needed in zip(joined.parts, joined.needed, strict=True):
            begin, after = self.node(), self.node()
            self.free[self.add(joined.between, written)].append(begin)
            if empty is not None:
                self.free[empty].append(begin)
            self.free[self.add(part, begin)].append(after)
            if needed:
                empty = None
            else:
                self.free[written].append(after)
            written = after
        if empty is not None:
            self.free[empty].append(written)
        return written

    def _embed(self, automaton: Automaton, start: int) -> int:
        nodes = [self.node() for _ in automaton.accepting]
        end = self.node()
        self.free[start].append(nodes[0])
        for state, byte in zip(*np.nonzero(automaton.table >= 0), strict=True):
            self.arcs[nodes[state]].append((byte, byte, nodes[automaton.table[state, byte]]))
        self._lead([nodes[state] for state in np.flatnonzero(automaton.accepting)], end)
        return end

    def _closure(self, nodes: set[int]) -> frozenset[int]:
        """What is reached from `nodes` for nothing, and matters: has arcs, or is an end."""
        seen, waiting = set(nodes), list(nodes)
        while waiting:
            for node in self.free[waiting.pop()]:
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        return frozenset(node for node in seen if self.arcs[node] or not self.free[node])

    def deterministic(self, end: int) -> Automaton:
        self.arcs[end].append((256, 256, end))  # no byte: only makes the end matter
        borders = sorted({x for arcs in self.arcs for low, high, _ in arcs for x in (low, high + 1)} | {0, 256})
        kinds = [(a, b) for a, b in pairwise(borders) if b <= 256]  # bytes told apart by no arc
        first = {a: i for i, (a, _) in enumerate(kinds)} | {256: len(kinds)}
        numbers = {(begin := self._closure({0})): 0}
        order, rows = [begin], []
        for nodes in order:
            targets: dict[int, set[int]] = {}
            for low, high, target in {arc for node in nodes for arc in self.arcs[node] if arc[0] < 256}:
                for kind in range(first[low], first[high + 1]):
                    targets.setdefault(kind, set()).add(target)
            row = {}
            for kind, found in targets.items():
                closure = self._closure(found)
                if closure not in numbers:
                    numbers[closure] = len(order)
                    order.append(closure)
                row[kind] = numbers[closure]
            rows.append(row)
            if len(order) > MOST_STATES:
                raise Mistake(_too_large())
        table = np.full((len(rows), 256), -1, np.int32)
        for state, row in enumerate(rows):
            for kind, target in row.items():
                table[state, slice(*kinds[kind])] = target
        return _trimmed(table, np.array([end in nodes for nodes in order]))


def _intersection(one: Automaton, other: Automaton) -> Automaton:
    numbers, order, rows = {(0, 0): 0}, [(0, 0)], []
    for a, b in order:
        row = np.full(256, -1, np.int32)
        for byte in np.flatnonzero((one.table[a] >= 0) & (other.table[b] >= 0)):
            pair = int(one.table[a, byte]), int(other.table[b, byte])
            if pair not in numbers:
                numbers[pair] = len(order)
                order.append(pair)
            row[byte] = numbers[pair]
        rows.append(row)
        if len(order) > MOST_STATES:
            raise Mistake(_too_large())
    return _trimmed(np.stack(rows), np.array([one.accepting[a] and other.accepting[b] for a, b in order]))


def _trimmed(table: np.ndarray, accepting: np.ndarray) -> Automaton:
    """Without the states that lead nowhere."""
    sources, bytes_ = np.nonzero(table >= 0)
    targets = table[sources, bytes_]
    alive = accepting.copy()
    while not alive[sources[alive[targets]]].all():
        alive[sources[alive[targets]]] = True
    if not alive[0]:
        raise Mistake("nothing fits it")
    number = np.where(alive, np.cumsum(alive) - 1, -1)
    number = np.append(number, -1).astype(np.int32)  # the last, for -1
    return Automaton(number[table[alive]], accepting[alive])


def _too_large() -> str:
    return f"it takes more than {MOST_STATES} states to hold: make its lengths and numbers of items smaller"
