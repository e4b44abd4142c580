"""The cases of a schema (`cases.py`) -> the expression of its documents, in a notation (`notation.py`).

Members come in the order of `properties`, or in the notation's own, others behind them, and only where a schema says
what they are. What may refer to itself is written to a depth, and so is a value of which nothing is said.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import ceil, floor, prod
from typing import Any, NamedTuple

from ..errors import Mistake
from .automaton import Automaton, Budget, complement
from .case import TYPES, Case, Range, Schema, Together, canonical
from .cases import Refusal
from .construction import MAX_NODES, Empty, Sizes, build_automaton
from .expression import Both, Chars, Either, Expression, Joined, Repeat, Text, either, optional, series
from .fit import Fit
from .numeral import multiples, number
from .pattern import PLAIN, dialects_differ

NOTHING = Either(())
FEW = 8  # members of which any one may be the one that is needed
SCALARS = frozenset(TYPES[2:]) - {"integer"}
MAX_WHOLE = 100  # different numbers in a list
MAX_COPIED, MIN_COUNTED = 6000, 64  # states of a pattern beside a length, and characters all the same
MAX_SETS = 1000  # lists of different values that are looked at


class Depth(NamedTuple):
    """How often a schema may stand inside itself, and how far the length of a text is counted."""

    itself: int
    anything: int  # a value of which nothing is said
    text: int = 10**9  # characters


class Documents:
    """Writes expressions, each once for every depth."""

    def __init__(self, fit: Fit, budget: Budget, depth: Depth):
        self.cases, self.fit, self.budget, self.depth = fit.cases, fit, budget, depth
        self.notation = fit.strings.notation
        self.comma = Text(self.notation.comma)
        self.circular = fit.cases.references.circular()
        self.open: Counter[tuple] = Counter()  # how often each schema stands around what is being written
        self.around = Depth(0, 0)  # how many of them refer to themselves, and say nothing
        self.known: dict[tuple, Expression] = {}
        self.numbers: dict[tuple, Expression] = {}
        self.cut = False  # at a depth
        self.sizes, self.nodes = Sizes(budget.reach), {}  # nodes: an estimate of how many each path takes

    def largest(self) -> tuple[int, tuple]:
        """The nodes of the whole schema, and the innermost path that takes half of them."""
        whole = max(self.nodes.values())
        return whole, max((path for path, nodes in self.nodes.items() if 2 * nodes >= whole), key=len)

    def value(self, schemas: Together, path: tuple) -> Expression:
        """The values of which all `schemas` hold; NOTHING where there is none, or only beyond the depth."""
        cases, around = self.cases.together(schemas), self.around
        anything = cases == [Case()]
        key = () if anything else tuple(sorted({id(self.cases.referred(schema)) for schema in schemas}))
        if (key, around) in self.known:
            return self.known[key, around]
        itself = any(not self.circular.isdisjoint(self.cases.applied(schema)) for schema in schemas)
        if (itself and around.itself == self.depth.itself) or self.open[key] > self.depth.itself:
            self.cut = True
            return NOTHING
        if anything and around.anything == self.depth.anything:
            self.cut, cases = True, [Case(types=SCALARS)]
        self.open[key] += 1
        self.around = Depth(around.itself + itself, around.anything + anything)
        try:
            expression = self._options(cases, path)
        except (Refusal, Empty):
            raise
        except Mistake as mistake:
            raise Refusal(path, str(mistake)) from None
        finally:
            self.open[key] -= 1
            self.around = around
        self.known[key, around] = expression
        self.nodes[path] = self.sizes[expression]
        return expression

    def _options(self, cases: list[Case], path: tuple) -> Expression:
        options, empty = [], None
        for case in cases:
            place = case.place or path
            try:
                options += (found := [option for option in self._case(case, place) if option is not NOTHING])
                self.nodes[place] = sum(self.sizes[option] for option in found)
            except Empty as mistake:
                empty = mistake
        if not options and empty:
            raise empty
        return Either(tuple(options)) if len(options) > 1 else options[0] if options else NOTHING

    def _case(self, case: Case, path: tuple) -> list[Expression]:
        if case.values is not None:
            return [self._enumerated(case, path)]
        writers = {"object": self._object, "array": self._array, "string": self._string}
        options = []
        for kind in TYPES:
            if kind not in case.types:
                continue
            if kind in writers:
                options.append(writers[kind](case, path))
            elif kind in ("number", "integer"):
                options.append(self._number(kind, case, path))
            else:
                options.append(either("true", "false") if kind == "boolean" else either(*self.notation.ways(None)))
        return options

    def _enumerated(self, case: Case, path: tuple) -> Expression:
        bare = case == Case(values=case.values)
        try:
            values = [value for value in case.values if bare or self.fit.case(value, case)]
            texts = [text for value in values for text in self.notation.ways(value)]
        except Refusal:
            raise
        except Mistake as mistake:
            raise Refusal((*path, "enum"), str(mistake)) from None
        if (length := sum(map(len, texts))) > MAX_NODES:
            raise Refusal((*path, "enum"), f"its values have {length} bytes, more than {MAX_NODES}: leave some out")
        return either(*texts) if texts else NOTHING

    def _object(self, case: Case, path: tuple) -> Expression:
        members: dict[str, Expression] = {}
        for name in self.notation.order(dict.fromkeys((*case.properties, *case.required))):
            allowed = not case.names or self.fit.schemas(name, case.names)
            inner = self.value(self.fit.member(case, name), (*path, "properties", name)) if allowed else NOTHING
            if inner is not NOTHING:
                members[name] = series(self.notation.key(name), self.notation.colon, inner)
            elif name in case.required:
                return NOTHING
        entry, counted = self._entry(case, path), case.members
        if counted.most is not None:
            members = self._fewest(members, case.required, counted.most)
        needed = [name in case.required for name in members]
        if counted.empty or (counted.most is not None and sum(needed) > counted.most):
            return NOTHING
        missing = counted.least - sum(needed)
        if entry is not None:
            room = None if counted.most is None else counted.most - len(members)
            if missing > 1:
                raise Refusal((*path, "minProperties"), "names could repeat; say in properties which there are")
            parts = [*members.values()]
            if room != 0:
                parts.append(Repeat(entry, 1, room, self.comma))
                needed.append(missing > 0)
            return series("{", Joined(tuple(parts), tuple(needed), self.comma), "}")
        if missing > len(members) - sum(needed):
            return NOTHING
        return self._with_some([*members.values()], needed, missing)

    @staticmethod
    def _fewest(members: dict[str, Expression], required: tuple[str, ...], most: int) -> dict[str, Expression]:
        """The members that are required, and the first of the others, up to `most`."""
        others = [name for name in members if name not in required]
        spare = others[: max(most - (len(members) - len(others)), 0)]
        return {name: member for name, member in members.items() if name in required or name in spare}

    def _with_some(self, parts: list[Expression], needed: list[bool], missing: int) -> Expression:
        """An object of these members, with `missing` more than are needed: any one, or the first."""
        free = [i for i, must in enumerate(needed) if not must]
        ways = [(parts, needed)]
        if missing == 1 and len(free) <= FEW:  # the first that is there is each in turn
            ways = []
            for first in free:
                kept = [i for i in range(len(parts)) if needed[i] or i >= first]
                ways.append(([parts[i] for i in kept], [needed[i] or i == first for i in kept]))
        elif missing > 0:
            ways = [(parts, [must or i in free[:missing] for i, must in enumerate(needed)])]
        return either(*(series("{", Joined(tuple(p), tuple(n), self.comma), "}") for p, n in ways))

    def _entry(self, case: Case, path: tuple) -> Expression | None:
        """A member that `properties` does not name, None where none is added."""
        described = bool(case.matching) or not (case.properties or case.required)
        if not described and all(self.cases.together([schema]) == [Case()] for _, _, schema in case.others):
            return None
        names = either(*map(self.notation.written, case.properties)) if case.properties else None
        patterns = dict.fromkeys(pattern for pattern, _ in case.matching)
        keys: list[tuple[Expression | None, list, tuple[Schema, ...]]] = []
        for pattern in patterns:
            schemas = [schema for other, schema in case.matching if other == pattern]
            schemas += [schema for _, covered, schema in case.others if pattern not in covered]
            keys.append((self._found(pattern), [p for p in patterns if p != pattern], tuple(schemas)))
        rest = tuple(schema for _, _, schema in case.others)
        keys.append((None, list(patterns), rest))
        entries = []
        for key, excluded, schemas in keys:
            inner = self.value(schemas, (*path, "additionalProperties" if key is None else "patternProperties"))
            if inner is not NOTHING and (name := self._name(key, excluded, names, case, path)) is not None:
                entries.append(series(name, self.notation.colon, inner))
        return either(*entries) if entries else None

    def _name(self, key: Expression | None, excluded: list[str], names: Expression | None, case: Case, path: tuple):
        """Names of members as they are written, without those that are `excluded`; None for none."""
        made = self.value((*case.names, STRING), path)
        without = [names] if names else []
        without += [self._found(pattern) for pattern in excluded]
        if any(map(dialects_differ, excluded)):
            plain = self.notation.string(self.notation.escaped(Repeat(Chars(PLAIN))))
            key = plain if key is None else build_automaton(Both(key, plain), self.budget)
        try:
            made = build_automaton(made if key is None else Both(key, made), self.budget)
            for out in without:
                made = build_automaton(Both(made, complement(build_automaton(out, self.budget))), self.budget)
            return self.notation.keys(made, self.budget)
        except Empty:
            return None

    def _found(self, pattern: str) -> Expression:
        """The strings in which `pattern` is found."""
        return self.notation.string(self.fit.strings.content(pattern))

    def _array(self, case: Case, path: tuple) -> Expression:
        if case.items.empty:
            why = f"no array has at least {case.items.least} and at most {case.items.most} items"
            raise Empty(str(Refusal((*path, "maxItems"), why)))
        if case.unique and case.items.most not in (0, 1):
            return self._set(case, path)
        first = max((len(first) for first, _ in case.lists), default=0)
        contains = [(schema, counted) for schema, counted in case.contains if counted != Range()]
        spots = [(schema, counted) for schema, counted in contains for _ in range(counted.least)]
        positions = max(first, len(spots))
        if case.items.most is not None:
            positions = min(positions, case.items.most)
        least = max(case.items.least, len(spots))
        beyond = case.items.most is not None and least > case.items.most
        if beyond or any(counted.empty for _, counted in contains):
            return NOTHING

        def item(i: int) -> Expression:
            schemas = [first[i] if i < len(first) else rest for first, rest in case.lists]
            here = spots[i][0] if i < len(spots) else None
            schemas += [here] if here is not None else []
            limited = (schema for schema, counted in contains if counted.most is not None)
            schemas += [self.cases.opposite(schema) for schema in limited if schema is not here]
            return self.value(tuple(schemas), (*path, "items"))

        parts = [item(i) for i in range(positions)]
        if NOTHING in parts:
            parts, rest = parts[: parts.index(NOTHING)], NOTHING
        else:
            rest = item(max(first, len(spots), positions))
        return self._listed(parts, rest, least, case.items.most)

    def _listed(self, parts: list[Expression], rest: Expression, least: int, most: int | None) -> Expression:
        """A list that begins with `parts` and goes on with any number of `rest`."""
        if rest is NOTHING or most == len(parts):
            if least > len(parts):
                return NOTHING
            behind: Expression = Text("")
        else:
            more = None if most is None else most - len(parts)
            fewest = max(least - len(parts), 0)
            if not parts:
                return series("[", Repeat(rest, fewest, more, self.comma), "]")
            behind = Repeat(series(self.comma, rest), fewest, more)
        for i in reversed(range(len(parts))):
            here = series(self.comma if i else "", parts[i], behind)
            behind = here if i < least else optional(here)
        return series("[", behind, "]")

    def _set(self, case: Case, path: tuple) -> Expression:
        """A list of different values: of an enum, in its order; at most one where nothing is said of them."""
        first = max((len(first) for first, _ in case.lists), default=0)
        kinds = [self._finite(tuple(f[i] if i < len(f) else rest for f, rest in case.lists)) for i in range(first + 1)]
        if not case.lists and not case.contains:
            return self._array(case & Case(items=Range(0, 1)), path)
        if case.contains or None in kinds[: first or 1]:
            why = "only values of an enum and few whole numbers can be held apart; leave it out, and drop what is twice"
            raise Refusal((*path, "uniqueItems"), why)
        if first:
            few = prod(map(len, kinds[:first])) <= MAX_SETS
            ways = [way for n in range(first + 1) for way in product(*kinds[:n])] if few else []
            fit = [self.notation.written(list(way)) for way in ways if self.fit.case(list(way), case)]
            return either(*fit) if fit else NOTHING
        parts = tuple(Text(self.notation.written(value)) for value in kinds[0])
        counted = Repeat(Either(parts), case.items.least, case.items.most, self.comma)
        values = Joined(parts, (False,) * len(parts), self.comma)
        return series("[", Both(values, counted) if case.items != Range() else values, "]")

    def _finite(self, schemas: Together) -> list | None:
        """The values of which all `schemas` hold, None for too many."""
        found: dict[str, Any] = {}
        for case in self.cases.together(schemas):
            values = case.values
            if values is None and case.types <= {"boolean", "null"}:
                values = (*[False, True] * ("boolean" in case.types), *[None] * ("null" in case.types))
            bounded = case.types == {"integer"} and case.low and case.high
            if bounded and case.high[0] - case.low[0] <= MAX_WHOLE:
                values = range(ceil(case.low[0]), floor(case.high[0]) + 1) if values is None else values
            if values is None:
                return None
            found |= {canonical(value): value for value in values if self.fit.case(value, case)}
        return [*found.values()]

    def _string(self, case: Case, path: tuple) -> Expression:
        if case.length.empty:
            why = f"no text has at least {case.length.least} and at most {case.length.most} characters"
            raise Empty(str(Refusal((*path, "maxLength"), why)))
        try:
            content = self._content(case.patterns, case.length)
        except Mistake as mistake:
            raise _at((*path, "pattern"), mistake) from None
        if case.excluded:
            others = either(*(self.notation.written(text)[1:-1] for text in case.excluded))  # without its quotes
            content = Both(content, complement(build_automaton(others, self.budget)))
        return self.notation.string(content)

    def _content(self, patterns: tuple[str, ...], length: Range) -> Expression:
        """The texts of this length in which all `patterns` are found; each made once."""
        found = [self.fit.strings.content(pattern) for pattern in patterns]
        counted, known = Range(length.least, self._counted(length, found)), self.fit.strings.counted
        if (patterns, counted) not in known:
            content: Expression | None = None
            if not found or counted != Range():
                content = Repeat(self.notation.character, counted.least, counted.most)
            for made in found:
                content = made if content is None else build_automaton(Both(made, content), self.budget)
            known[patterns, counted] = content
        return known[patterns, counted]

    def _counted(self, length: Range, patterns: list[Automaton]) -> int | None:
        """How many characters a text may have: fewer than are allowed, where to count them would take too many states.
        Each takes a copy of the automaton of each pattern."""
        most, reach = length.most, self.budget.reach
        if most is None or (reach is not None and most >= reach):
            return most
        far = [max(MAX_COPIED // made.size, MIN_COUNTED, 2 * made.shortest) for made in patterns]
        return max(length.least, min(most, self.depth.text, *far))

    def _number(self, kind: str, case: Case, path: tuple) -> Expression:
        key = (kind, case.low, case.high, case.multiples)
        if key not in self.numbers:
            try:
                bounds, whole = (case.low, case.high), kind == "integer"
                made = (
                    multiples(*bounds, case.multiples, whole=whole) if case.multiples else number(*bounds, whole=whole)
                )
                self.numbers[key] = build_automaton(made, self.budget)
            except Mistake as mistake:
                raise _at(path, mistake) from None
        return self.numbers[key]


STRING: Schema = {"type": "string"}


def _at(path: tuple, mistake: Mistake) -> Mistake:
    named = Refusal(path, str(mistake))
    return Empty(str(named)) if isinstance(mistake, Empty) else named
