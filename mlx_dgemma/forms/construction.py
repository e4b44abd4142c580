"""Expressions -> deterministic automata over the bytes of UTF-8.

A JSON schema without recursion, a template, a list of choices: each is a regular expression (`expression.py`), and
which bytes may come next depends on the state of its automaton (`automaton.py`) alone. Thompson's construction, then
the subset construction; see Hopcroft, Motwani and Ullman, "Introduction to Automata Theory", chapters 2 and 3. A part
that is repeated is made deterministic and minimal first, and copied from then on.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from ..errors import Mistake
from .automaton import MAX_STATES, TOO_LARGE, Automaton, Budget, Row, intersection, joined, minimised, trimmed
from .expression import LAST, Both, Chars, Either, Expression, Joined, Ranges, Repeat, Series, Text, children

MAX_NODES = 3 * MAX_STATES  # of a graph: many nodes can make one state

ByteRanges = tuple[tuple[int, int], ...]  # one byte of each range, one after another


@dataclass(frozen=True, eq=False)
class Bytes:
    """The bytes of some characters, as an expression."""

    ranges: ByteRanges


def utf8(low: int, high: int) -> Iterator[ByteRanges]:
    """The code points from `low` to `high` as products of byte ranges."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST)):
        if (a := max(low, first)) <= (b := min(high, last)):
            yield from _products(chr(a).encode(), chr(b).encode())


def _products(low: bytes, high: bytes) -> Iterator[ByteRanges]:
    """The byte strings from `low` to `high`, which have the same length."""
    first, last, rest = low[0], high[0], len(low) - 1
    lowest, highest = b"\x80" * rest, b"\xbf" * rest
    if rest and first == last:
        yield from (((first, last), *tail) for tail in _products(low[1:], high[1:]))
    elif low[1:] != lowest:
        yield from _products(low, low[:1] + highest)
        yield from _products(bytes([first + 1]) + lowest, high)
    elif high[1:] != highest:
        yield from _products(low, bytes([last - 1]) + highest)
        yield from _products(high[:1] + lowest, high)
    else:
        yield ((first, last), *[(0x80, 0xBF)] * rest)


class Empty(Mistake):
    """An expression that no text matches."""


def build_automaton(expression: Expression, budget: Budget | None = None) -> Automaton:
    """Builds the automaton of the texts that `expression` describes.

    Mistake where it is too large, or takes more work than is left in `budget`; Empty where it matches nothing at all.
    """
    automaton = _minimal(expression, budget or Budget())
    if not automaton.accepting.any():
        raise Empty("nothing fits it")
    return automaton


class Sizes(dict[Expression, int]):
    """Estimates how many nodes each part of an expression takes, before anything is laid out."""

    def __init__(self, reach: int | None):
        self.reach = reach

    def __missing__(self, expression: Expression) -> int:
        match expression:
            case Text(text):
                size = len(text)
            case Automaton():
                size = expression.size
            case Repeat(content, _, _, between):
                size = (self[content] + self[between]) * _copies(expression, self.reach)[0]
            case Joined(parts, _, between):
                size = sum(self[part] for part in parts) + len(parts) * self[between]
            case _:
                size = sum(self[part] for part in children(expression)) or 1
        self[expression] = size
        return size


def _copies(repeat: Repeat, reach: int | None) -> tuple[int, bool]:
    """Return how many copies of its content a repetition takes, and whether the last may come any number of times."""
    if repeat.most is None or (reach is not None and repeat.most >= reach):
        return max(repeat.least, 1), True
    return repeat.most, False


def _minimal(expression: Expression, budget: Budget) -> Automaton:
    match expression:
        case Automaton():
            return expression
        case Chars(ranges):
            return _characters(ranges)
        case Both(left, right):
            automaton = intersection(_minimal(left, budget), _minimal(right, budget), budget)
        case _:
            graph = _Graph(budget)
            automaton = graph.deterministic(graph.add(expression, graph.node()))
    return minimised(automaton, budget)


@lru_cache(maxsize=256)
def _characters(ranges: Ranges) -> Automaton:
    """Build the automaton of one character of `ranges`."""
    return _minimal(Either(tuple(Bytes(way) for low, high in ranges for way in utf8(low, high))), Budget())


class _Graph:
    """Nodes with arcs that take a byte of a range, none twice from one node, and arcs that take nothing. Starts at
    node 0."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.arcs: list[Row] = []
        self.free: dict[int, list[int]] = defaultdict(list)  # node -> nodes that are reached from it for nothing
        self.closures: dict[int, frozenset[int]] = {}

    def node(self) -> int:
        if len(self.arcs) >= MAX_NODES:
            raise Mistake(TOO_LARGE)
        self.arcs.append([])
        return len(self.arcs) - 1

    def _after(self, start: int) -> int:
        self.free[start].append(node := self.node())
        return node

    def add(self, expression: Expression, start: int) -> int:
        """Lays out from `start` all that the expression describes -> where it ends."""
        match expression:
            case Chars() | Both() | Automaton():
                return self._embed(_minimal(expression, self.budget), start)
            case Text(text):
                written = text.encode() if isinstance(text, str) else text
                return self._add_bytes(((byte, byte) for byte in written), start)
            case Bytes(ranges):
                return self._add_bytes(ranges, start)
            case Series(parts):
                for part in parts:
                    start = self.add(part, start)
                return start
            case Either(options):
                end = self.node()
                for option in options:
                    self.free[self.add(option, start)].append(end)
                return end
            case Repeat():
                return self._repeat(expression, start)
            case Joined():
                return self._join(expression, start)
        raise TypeError(expression)

    def _add_bytes(self, ranges: Iterable[tuple[int, int]], start: int) -> int:
        at = self._after(start)
        for low, high in ranges:
            target = self.node()
            self.arcs[at] = [(low, high, target)]
            at = target
        return at

    def _repeat(self, repeat: Repeat, start: int) -> int:
        copies, endless = _copies(repeat, self.budget.reach)
        content = repeat.content if copies < 2 else _minimal(repeat.content, self.budget)
        end, inside, at = self.node(), start, start
        if not repeat.least:
            self.free[start].append(end)
        for i in range(copies):
            inside = self._after(self.add(repeat.between, at) if i else at)
            at = self.add(content, inside)
            if i + 1 >= repeat.least:
                self.free[at].append(end)
        if endless:
            self.free[self.add(repeat.between, at)].append(inside)
        return end

    def _join(self, members: Joined, start: int) -> int:
        end, last = self.node(), max((i for i, needed in enumerate(members.needed) if needed), default=0)
        first, further = start, self.node()  # where no part is written yet, and behind one and `between`
        for i, (part, needed) in enumerate(zip(members.parts, members.needed, strict=True)):
            begin, next_further = self.node(), self.node()
            self.free[first].append(begin)
            self.free[further] += [begin] if needed else [begin, next_further]
            first = self.node() if needed else first  # no way leads to that node
            further = next_further
            written = self.add(part, begin)
            if i < len(members.parts) - 1:
                self.free[self.add(members.between, written)].append(further)
            if i >= last:
                self.free[written].append(end)
        self.free[first].append(end)
        return end

    def _embed(self, automaton: Automaton, start: int) -> int:
        end = self.node()
        base = end + 1
        if base + automaton.size > MAX_NODES:
            raise Mistake(TOO_LARGE)
        self.arcs += [[(low, high, target + base) for low, high, target in row] for row in automaton.rows]
        self.free[start].append(base)
        for state in automaton.accepting.nonzero()[0].tolist():
            self.free[base + state].append(end)
        return end

    def _closure(self, node: int) -> frozenset[int]:
        """The nodes reached from `node` for nothing that have arcs, or are an end."""
        if node not in self.free:
            return frozenset([node])
        if node not in self.closures:
            seen, waiting = {node}, [node]
            while waiting:
                targets = [target for target in self.free.get(waiting.pop(), ()) if target not in seen]
                seen.update(targets)
                waiting += targets
            self.budget.spend(len(seen))
            self.closures[node] = frozenset(target for target in seen if self.arcs[target] or target not in self.free)
        return self.closures[node]

    def deterministic(self, end: int) -> Automaton:
        """The subset construction. The text may end at `end`."""
        numbers: dict[frozenset[int], int] = {}

        @cache
        def state_after(targets: frozenset[int]) -> int:
            """The state behind arcs to these nodes."""
            closure = frozenset[int]().union(*map(self._closure, targets))
            self.budget.spend(len(closure))
            if closure not in numbers:
                numbers[closure] = len(order)
                order.append(closure)
            return numbers[closure]

        order: list[frozenset[int]] = []
        rows: list[Row] = []
        state_after(frozenset([0]))
        for nodes in order:
            if len(order) > MAX_STATES:
                raise Mistake(TOO_LARGE)
            rows.append(joined((low, high, state_after(targets)) for low, high, targets in self._moves(nodes)))
        return trimmed(rows, [end in nodes for nodes in order])

    def _moves(self, nodes: frozenset[int]) -> Iterator[tuple[int, int, frozenset[int]]]:
        """Ranges of bytes that lead from `nodes` to the same nodes, and those nodes."""
        arcs = [arc for node in nodes for arc in self.arcs[node]]
        self.budget.spend(len(arcs))
        if len(nodes) == 1:
            yield from ((low, high, frozenset([target])) for low, high, target in arcs)
            return
        opening, closing = defaultdict(set), defaultdict(set)
        for arc in arcs:
            opening[arc[0]].add(arc)
            closing[arc[1] + 1].add(arc)
        active: set[tuple[int, int, int]] = set()
        for first, after in pairwise(sorted({*opening, *closing})):
            active -= closing[first]
            active |= opening[first]
            if active:
                self.budget.spend(len(active))
                yield first, after - 1, frozenset(target for _, _, target in active)
