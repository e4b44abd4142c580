"""Expressions -> deterministic automata over the bytes of UTF-8.

A JSON schema without recursion, a template, a list of choices: each is a regular expression, and which bytes may come
next depends on the automaton's state alone. Thompson's construction, then the subset construction; see Hopcroft,
Motwani and Ullman, "Introduction to Automata Theory", chapters 2 and 3. A part that is repeated or used more than once
is made deterministic and minimal first, and copied from then on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce

from ..errors import Mistake
from .automaton import MOST_STATES, Automaton, Budget, Row, intersection, joined, minimised, too_large, trimmed
from .expression import LAST, Both, Chars, Either, Expression, Joined, Ranges, Repeat, Series, Text, children

MOST_NODES = 5 * MOST_STATES  # of a graph: many nodes can make one state


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


def build_automaton(expression: Expression, *, reach: int | None = None, budget: Budget | None = None) -> Automaton:
    """Builds the automaton of the texts that `expression` describes.

    No text of more than `reach` bytes will be written, so counts beyond it are not kept. Mistake where the automaton
    is too large, takes more work than is left in `budget`, or matches nothing at all.
    """
    if isinstance(expression, Automaton):
        return expression
    budget = budget or Budget()
    automaton = minimised(_Builder(expression, reach, budget).automaton(expression), budget)
    if not automaton.accepting.any():
        raise Mistake("nothing fits it")
    return automaton


class Sizes:
    """Estimates how many nodes each part of an expression takes, before anything is laid out."""

    def __init__(self, reach: int | None = None):
        self.reach = reach
        self._known: dict[int, tuple[Expression, int]] = {}  # by id; the expression is kept, or its id were used again

    def of(self, expression: Expression) -> int:
        if id(expression) not in self._known:
            self._known[id(expression)] = expression, self._estimate(expression)
        return self._known[id(expression)][1]

    def _estimate(self, expression: Expression) -> int:
        match expression:
            case Text(text):
                return len(text)
            case Automaton():
                return expression.size
            case Repeat(what, _, _, between):
                least, most = counts(expression, self.reach)
                return (self.of(what) + self.of(between)) * (max(least, most or 1) if most != 0 else 0)
            case Joined(parts, _, between):
                return sum(map(self.of, parts)) + len(parts) * self.of(between)
        return sum(map(self.of, children(expression))) or 1


def counts(repeat: Repeat, reach: int | None) -> tuple[int, int | None]:
    """How often, at least and at most, in a text of at most `reach` bytes."""
    beyond = reach is not None and repeat.most is not None and repeat.most >= reach
    return repeat.least, None if beyond else repeat.most


class _Builder:
    """Builds the parts of one expression, each once."""

    def __init__(self, expression: Expression, reach: int | None, budget: Budget):
        self.reach, self.budget = reach, budget
        self.shared = _shared(expression)
        self.parts: dict[int, Automaton] = {}  # by the id of a part; the expression keeps them all alive

    def automaton(self, expression: Expression) -> Automaton:
        if isinstance(expression, Both):
            return intersection(self.part(expression.one), self.part(expression.other), self.budget)
        graph = _Graph(self)
        return graph.deterministic(graph.add(expression, graph.node(), inside=True))

    def part(self, expression: Expression) -> Automaton:
        """The minimal automaton of a part that is used more than once."""
        if isinstance(expression, Chars):
            return _characters(expression.ranges)
        if isinstance(expression, Automaton):
            return expression
        if id(expression) not in self.parts:
            self.parts[id(expression)] = minimised(self.automaton(expression), self.budget)
        return self.parts[id(expression)]


@lru_cache(maxsize=256)
def _characters(ranges: Ranges) -> Automaton:
    """One character of `ranges`."""
    graph = _Graph(_Builder(Chars(ranges), None, Budget()))
    start, end = graph.node(), graph.node()
    for low, high in ranges:
        for product in utf8(low, high):
            graph.bytes(product, start, end)
    return minimised(graph.deterministic(end), Budget())


def _shared(expression: Expression) -> set[int]:
    """The ids of those parts that are used more than once."""
    seen, shared, waiting = set(), set(), [expression]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            waiting += children(part)
        elif not isinstance(part, Text | Chars):
            shared.add(id(part))
    return shared


class _Graph:
    """Nodes with arcs that take a byte of a range, none twice from one node, and arcs that take nothing. Starts at
    node 0."""

    def __init__(self, builder: _Builder):
        self.builder, self.budget = builder, builder.budget
        self.arcs: list[Row | tuple[()]] = []
        self.free: dict[int, list[int]] = defaultdict(list)
        self.closures: dict[int, list[int]] = {}

    def node(self) -> int:
        if len(self.arcs) >= MOST_NODES:
            raise Mistake(too_large())
        self.arcs.append(())
        return len(self.arcs) - 1

    def add(self, expression: Expression, start: int, inside: bool = False) -> int:
        """Lays out from `start` all that the expression describes -> where it ends. A part that is used more than once
        comes as a copy of its automaton, unless this is `inside` its making."""
        if not inside and id(expression) in self.builder.shared:
            return self._embed(self.builder.part(expression), start)
        match expression:
            case Text(text):
                return self.bytes([(byte, byte) for byte in text.encode()], start)
            case Chars() | Both() | Automaton():
                return self._embed(self.builder.part(expression), start)
            case Series(parts):
                return reduce(lambda at, part: self.add(part, at), parts, start)
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

    def bytes(self, product: Sequence[tuple[int, int]], start: int, end: int | None = None) -> int:
        """Lays out one byte after another, each in its range -> where they end, which is `end` if given."""
        for low, high in product:
            node = self._after(start) if self.arcs[start] or start in self.free else start
            self.arcs[node] = [(low, high, target := self.node())]
            start = target
        if end is None:
            return start
        self.free[start].append(end)
        return end

    def _after(self, start: int) -> int:
        self.free[start].append(node := self.node())
        return node

    def _repeat(self, repeat: Repeat, start: int) -> int:
        least, most = counts(repeat, self.builder.reach)
        what = repeat.what if max(least, most or 0) < 2 else self.builder.part(repeat.what)
        end, inside, at = self.node(), start, start
        if not least:
            self.free[start].append(end)
        for i in range(max(least, most or 1) if most != 0 else 0):
            inside = self._after(self.add(repeat.between, at) if i else at)
            at = self.add(what, inside)
            if i + 1 >= least:
                self.free[at].append(end)
        if most is None:
            self.free[self.add(repeat.between, at)].append(inside)
        return end

    def _join(self, members: Joined, start: int) -> int:
        end, last = self.node(), max((i for i, needed in enumerate(members.needed) if needed), default=0)
        first, further = start, self.node()  # before each part, where nothing is written yet, and behind `between`
        for i, (part, needed) in enumerate(zip(members.parts, members.needed, strict=True)):
            begin, before = self.node(), (first, further)
            first, further = self.node(), self.node()
            for node, skipped in zip(before, (first, further), strict=True):
                self.free[node] += [begin] if needed else [begin, skipped]
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
        if base + automaton.size > MOST_NODES:
            raise Mistake(too_large())
        self.arcs += [[(low, high, target + base) for low, high, target in row] for row in automaton.rows]
        self.free[start].append(base)
        for state in automaton.ends:
            self.free[base + state].append(end)
        return end

    def _closure(self, node: int) -> list[int]:
        """The nodes reached from `node` for nothing that have arcs, or are an end."""
        if node not in self.closures:
            seen, waiting = {node}, [node]
            while waiting:
                for target in self.free.get(waiting.pop(), ()):
                    if target not in seen:
                        seen.add(target)
                        waiting.append(target)
            self.budget.spend(len(seen))
            self.closures[node] = [target for target in seen if self.arcs[target] or target not in self.free]
        return self.closures[node]

    def deterministic(self, end: int) -> Automaton:
        """The subset construction. The text may end at `end`."""
        numbers: dict[frozenset[int], int] = {}
        order: list[frozenset[int]] = []
        states: dict[frozenset[int] | int, int] = {}  # after arcs to these nodes, or to this one

        def number(targets: frozenset[int] | int) -> int:
            if targets not in states:
                nodes = [targets] if isinstance(targets, int) else targets
                closure = frozenset(node for target in nodes for node in self._closure(target))
                self.budget.spend(len(closure))
                if closure not in numbers:
                    numbers[closure] = len(order)
                    order.append(closure)
                states[targets] = numbers[closure]
            return states[targets]

        rows: list[Row] = []
        number(0)
        for nodes in order:
            if len(order) > MOST_STATES:
                raise Mistake(too_large())
            arcs = [arc for node in nodes for arc in self.arcs[node]]
            self.budget.spend(len(arcs))
            if len(nodes) == 1:
                rows.append(joined((low, high, number(target)) for low, high, target in arcs))
            else:
                rows.append(joined((low, high, number(targets)) for low, high, targets in self._split(arcs)))
        return trimmed(rows, [end in nodes for nodes in order])

    def _split(self, arcs: Row) -> Iterator[tuple[int, int, frozenset[int]]]:
        """Ranges of bytes that lead to the same nodes, and those nodes."""
        opening, closing = defaultdict(list), defaultdict(list)
        for low, high, target in arcs:
            opening[low].append(target)
            closing[high + 1].append(target)
        active: dict[int, int] = {}  # the nodes led to from here on, each with the number of its arcs
        first = 0
        for border in sorted(opening.keys() | closing.keys()):
            if active:
                self.budget.spend(len(active))
                yield first, border - 1, frozenset(active)
            for target in opening.get(border, ()):
                active[target] = active.get(target, 0) + 1
            for target in closing.get(border, ()):
                active[target] -= 1
                if not active[target]:
                    del active[target]
            first = border
