"""A schema -> the cases that it allows (`case.py`): allOf merged, anyOf as several, what is not held refused by name.

Each case may be narrower than the schema, never wider: where a keyword leaves more than one way to be right, cases are
those ways that an automaton can hold. "if" gives what holds by its "then", and what holds by both "then" and "else".
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

from ..errors import Mistake
from ..tokens.references import References
from .case import ANY_TYPE, Case, Range, Schema, canonical, common
from .numeral import Bound
from .strings import FORMATS

MAX_CASES = 200  # of one schema
MAX_LOOK = 3  # members within each other, when no value may be left
MAX_BOUND = 1e300  # of a bound: what is beyond may be no double
ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
OBJECT = frozenset({"object"})
REFUSED = {
    "$dynamicRef": "what it refers to depends on who asks",
    "$recursiveRef": "what it refers to depends on who asks",
    "unevaluatedProperties": "which members it is about depends on all that is said elsewhere",
    "unevaluatedItems": "which items it is about depends on all that is said elsewhere",
}


class Refusal(Mistake):
    """A keyword, at its path, that cannot be held."""

    def __init__(self, path: tuple, why: str):
        super().__init__(f"{pointer(path)} cannot be held: {why}")
        self.path, self.why = path, why


class Unfit(Refusal):
    """A schema that no value fits: as one of several options it may stand."""


def pointer(path: Iterable) -> str:
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


class Cases:
    """The cases of the schemas of one file."""

    def __init__(
        self, references: References, fits: Callable[[Any, Case], bool], legacy: bool, *, opposed: bool = False
    ):
        """`fits` says whether a value of an enum is one of a case; `legacy`: what stands beside $ref is not read, as
        before draft 2019-09; `opposed`: the cases are wider than the schema, never narrower, for what must not hold."""
        self.opposed = self if opposed else Cases(references, fits, legacy, opposed=True)
        self.references, self.fits, self.legacy = references, fits, legacy
        self.opposites: dict[int, Schema] = {}  # of the schemas of these ids
        self.known: dict[int, list[Case] | None] = {}  # None for those that are being read
        self.kept: list[Schema] = []  # so that no id is used again
        self.reading: list[Schema] = []
        self.looking = 0
        self.inside: dict[int, set[int]] = {}  # by id: those of the schemas that it applies to the same value

    def place(self, schema: Schema) -> tuple:
        return self.references.places.get(id(schema), ())

    def of(self, schema: Schema) -> list[Case]:
        """The cases of `schema`."""
        if isinstance(schema, bool):
            return [Case()] if schema else []
        if id(schema) not in self.known:
            self.known[id(schema)] = None
            self.kept.append(schema)
            self.inside[id(schema)] = {id(schema)}
            self.reading.append(schema)
            try:
                self.known[id(schema)] = self._read(schema)
            except Mistake:
                del self.known[id(schema)]
                raise
            finally:
                self.reading.pop()
        if self.reading:
            self.inside[id(self.reading[-1])] |= self.inside[id(schema)]
        cases = self.known[id(schema)]
        if cases is None:
            raise Refusal(self.place(schema), "it refers to itself and to nothing else")
        return cases

    def applied(self, schema: Schema) -> set[int]:
        """The ids of all schemas that `schema`, whose cases are known, applies to the same value."""
        return self.inside.get(id(schema), set())

    def referred(self, schema: Schema) -> Schema:
        """The schema that `schema` does nothing but refer to, or itself."""
        for _ in range(MAX_CASES):
            if not isinstance(schema, dict) or "$ref" not in schema or schema.keys() - ANNOTATIONS != {"$ref"}:
                break
            schema = self.references.target(schema["$ref"], schema)
        return schema

    def together(self, schemas: Iterable[Schema]) -> list[Case]:
        """The cases in which all of them hold."""
        cases = None
        for schema in schemas:
            here = self.of(schema)
            cases = here if cases is None else self._both(cases, here, schema)
        return [Case()] if cases is None else [case for case in cases if case.types and case.values != ()]

    def _both(self, left: list[Case], right: list[Case], schema: Schema) -> list[Case]:
        if len(left) * len(right) > MAX_CASES:
            raise Refusal(self.place(schema), f"it has more than {MAX_CASES} cases: leave some out")
        both = [case for a, b in product(left, right) if (case := a & b)]
        if self.opposed is self or len(both) < 2:
            return both
        return [case for case in both if not self._never(case)]

    def _read(self, schema: dict[str, Any]) -> list[Case]:
        place = self.place(schema)
        for keyword, why in REFUSED.items():
            if schema.get(keyword, True) not in (True, {}):
                raise Refusal((*place, keyword), why)
        if "$ref" in schema and self.legacy:
            return self._referred(schema, (*place, "$ref"))
        cases = [_one_case(schema, place)]
        if self.opposed is self:  # `format` is an annotation
            cases = [replace(cases[0], patterns=())]
        for keyword, read in self._ways().items():
            if keyword in schema:
                cases = self._both(cases, read(schema, (*place, keyword)), schema)
        if "enum" in schema or "const" in schema:
            cases = self._enumerated(schema, cases, place)
        return cases

    def _ways(self) -> dict[str, Callable[[dict, tuple], list[Case]]]:
        return {
            "$ref": self._referred,
            "allOf": lambda schema, _: self.together(schema["allOf"]),
            "anyOf": self._any_of,
            "oneOf": self._any_of if self.opposed is self else self._one_of,
            "not": self._not,
            "if": self._if,
            "dependentRequired": self._dependent,
            "dependentSchemas": self._dependent,
            "dependencies": self._dependent,
        }

    def _referred(self, schema: dict, place: tuple) -> list[Case]:
        try:
            return self.of(self.references.target(schema["$ref"], schema))
        except Refusal:
            raise
        except Mistake as mistake:
            raise Refusal(place, str(mistake)) from None

    def _any_of(self, schema: dict, place: tuple) -> list[Case]:
        cases, empty = [], None
        for option in schema[place[-1]]:
            try:
                cases += self.of(option)
            except Unfit as mistake:
                empty = mistake
        if empty and not cases:
            raise empty
        return cases

    def _one_of(self, schema: dict, place: tuple) -> list[Case]:
        """The cases of each option that are none of another."""
        options, cases = [self.opposed.of(option) for option in schema["oneOf"]], []
        for number, option in enumerate(map(self.of, schema["oneOf"])):
            for case in option:
                ways = [case]
                for other in (o for i, o in enumerate(options) if i != number):
                    if any(not self.disjoint(way, each) for way in ways for each in other):
                        ways = self._both(ways, self.without(other, schema), schema)
                cases += ways
        if not cases and any(options):
            raise Refusal(place, "its options do not exclude each other; use anyOf")
        return cases

    def _not(self, schema: dict, place: tuple) -> list[Case]:
        opposite = schema["not"]
        if isinstance(opposite, dict) and opposite.keys() == {"not"}:
            return self.of(opposite["not"])
        if self.opposed is self and not (isinstance(opposite, dict) and opposite.keys() == {"type"}):
            return [Case()]
        cases = self.without(self.opposed.of(opposite), schema)
        if not cases and schema["not"] not in (True, {}):
            raise Refusal(place, "nothing that an automaton can hold is left by it")
        return cases

    def _if(self, schema: dict, place: tuple) -> list[Case]:
        then, other = schema.get("then", True), schema.get("else", True)
        if self.opposed is self:
            return [*self.of(then), *self.of(other)]
        by_then = self._both(self.of(schema["if"]), self.of(then), schema)
        by_else = self._both(self.without(self.opposed.of(schema["if"]), schema), self.of(other), schema)
        return [*by_then, *by_else] or self.together([then, other])

    def _dependent(self, schema: dict, place: tuple) -> list[Case]:
        cases = [Case()]
        for name, needed in schema[place[-1]].items():
            required = Case(required=tuple([name, *needed] if isinstance(needed, list) else [name]))
            present = [required] if isinstance(needed, list) else self._both([required], self.of(needed), schema)
            cases = self._both(cases, [*present, Case(properties={name: (False,)})], schema)
        return cases

    def _enumerated(self, schema: dict, cases: list[Case], place: tuple) -> list[Case]:
        values = schema.get("enum", [schema.get("const")])
        if "const" in schema:
            values = [value for value in values if canonical(value) == canonical(schema["const"])]
        if cases != [Case()] and self.opposed is not self:
            values = [value for value in values if any(self.fits(value, case) for case in cases)]
        if not values and self.opposed is not self:
            keyword = "enum" if "enum" in schema else "const"
            raise Unfit((*place, keyword), "none of its values fits what else is said here")
        return [Case(values=tuple(values), place=place)]

    def without(self, cases: list[Case], schema: Schema) -> list[Case]:
        """Cases in which none of `cases`, which are `opposed`, holds; not all of them."""
        result = [Case()]
        for case in cases:
            result = self._both(result, list(self._opposites(case)), schema)
        return result

    def opposite(self, schema: Schema) -> Schema:
        """{"not": schema}, the same object each time."""
        return not schema if isinstance(schema, bool) else self.opposites.setdefault(id(schema), {"not": schema})

    def _opposites(self, case: Case) -> Iterator[Case]:
        """Cases in which one thing that `case` says does not hold."""
        left = ANY_TYPE - case.types - ({"number"} if "integer" in case.types else set())
        if left:
            yield Case(types=left)
        yield from _outside(case)
        for name in case.required:
            yield Case(types=OBJECT, properties={name: (False,)})
        for name, schemas in case.properties.items():
            for schema in (schema for schema in schemas if schema is not True and schema != {}):
                yield Case(types=OBJECT, required=(name,), properties={name: (self.opposite(schema),)})
        if case.values is not None:
            yield from _other_values(case.values)

    def disjoint(self, left: Case, right: Case) -> bool:
        """True where surely no value is in both."""
        both = left & right
        if both is None:
            return True
        if both.values is not None:
            return not common(frozenset(map(kind, both.values)), both.types)
        if both.types <= {"number", "integer"} and both.low and both.high:
            return both.low[0] > both.high[0] or (both.low[0] == both.high[0] and (both.low[1] or both.high[1]))
        if both.types == {"string"} or both.types == {"array"}:
            return (both.length if both.types == {"string"} else both.items).empty
        return both.types == {"object"} and any(self._impossible(both, name) for name in both.required)

    def _impossible(self, case: Case, name: str) -> bool:
        """True where surely no member of that name can be."""
        barred = any(schema is False and name not in names and not patterns for names, patterns, schema in case.others)
        if barred or name not in case.properties:
            return barred
        try:
            return all(self._never(each) for each in self.opposed.together(case.properties[name]))
        except Mistake:
            return False

    def _never(self, case: Case) -> bool:
        """True where surely no value is of it. What is deep inside is not looked at: it may refer to itself."""
        if self.looking == MAX_LOOK:
            return False
        self.looking += 1
        try:
            return self.disjoint(case, case)
        finally:
            self.looking -= 1


def _outside(case: Case) -> Iterator[Case]:
    """Numbers beyond its bounds, texts and lists of other lengths."""
    if case.low:
        yield Case(types=frozenset({"number"}), high=(case.low[0], not case.low[1]))
    if case.high:
        yield Case(types=frozenset({"number"}), low=(case.high[0], not case.high[1]))
    for name, types, counted in (("length", {"string"}, case.length), ("items", {"array"}, case.items)):
        if counted.least:
            yield Case(types=frozenset(types), **{name: Range(0, counted.least - 1)})
        if counted.most is not None:
            yield Case(types=frozenset(types), **{name: Range(counted.most + 1)})


def _other_values(values: tuple) -> Iterator[Case]:
    """Values that are none of these; no lists and objects, where one of these is such."""
    kinds = {kind(value).replace("integer", "number") for value in values}
    yield Case(types=ANY_TYPE - kinds)
    if "string" in kinds:
        yield Case(types=frozenset({"string"}), excluded=tuple(value for value in values if isinstance(value, str)))
    if rest := {True, False} - {value for value in values if isinstance(value, bool)}:
        yield Case(types=frozenset({"boolean"}), values=tuple(rest))
    numbers = sorted({Fraction(value) for value in values if kind(value) in ("integer", "number")})
    ends = [None, *((number, True) for number in numbers), None]
    if numbers:
        yield from (Case(types=frozenset({"number"}), low=low, high=high) for low, high in pairwise(ends))


def kind(value: Any) -> str:
    """The type of a JSON value."""
    if isinstance(value, float) and value.is_integer():
        return "integer"
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")


def _one_case(schema: dict[str, Any], place: tuple) -> Case:
    """Read the keywords that one case can hold together."""
    given = schema.get("type", sorted(ANY_TYPE))
    types = frozenset([given] if isinstance(given, str) else given)
    if schema.get("nullable") is True and "type" in schema:
        types |= {"null"}
    properties = {name: (inner,) for name, inner in schema.get("properties", {}).items()}
    matching = schema.get("patternProperties", {})
    others = ()
    if "additionalProperties" in schema:
        others = ((frozenset(properties), tuple(matching), schema["additionalProperties"]),)
    return Case(
        types=types - {"integer"} if "number" in types else types,
        low=_bound(schema, "minimum", place),
        high=_bound(schema, "maximum", place),
        multiples=tuple(schema[key] for key in ("multipleOf",) if key in schema),
        patterns=_patterns(schema),
        length=_range(schema, "Length"),
        items=_range(schema, "Items"),
        members=_range(schema, "Properties"),
        lists=_lists(schema),
        contains=_contains(schema),
        unique=schema.get("uniqueItems") is True,
        properties=properties,
        required=tuple(schema["required"]) if isinstance(schema.get("required"), list) else (),
        matching=tuple(matching.items()),
        others=others,
        names=tuple(schema[key] for key in ("propertyNames",) if key in schema),
        place=place,
    )


def _patterns(schema: dict) -> tuple[str, ...]:
    """`pattern`, and `format` where it is held: an annotation elsewhere."""
    patterns = (schema.get("pattern"), FORMATS.get(schema.get("format")))
    return tuple(pattern for pattern in patterns if pattern is not None)


def _lists(schema: dict) -> tuple:
    first, rest = schema.get("prefixItems"), schema.get("items", True)
    if isinstance(rest, list):  # before draft 2020-12
        first, rest = rest, schema.get("additionalItems", True)
    return ((tuple(first or ()), rest),) if first or rest is not True else ()


def _contains(schema: dict) -> tuple:
    if "contains" not in schema:
        return ()
    return ((schema["contains"], Range(int(schema.get("minContains", 1)), _whole(schema.get("maxContains")))),)


def _whole(number: Any) -> int | None:
    return None if number is None else int(number)


def _range(schema: dict, of: str) -> Range:
    return Range(int(schema.get(f"min{of}", 0)), _whole(schema.get(f"max{of}")))


def _bound(schema: dict, name: str, place: tuple) -> Bound | None:
    """The stricter of `minimum` and `exclusiveMinimum`, or of `maximum` and `exclusiveMaximum`."""
    bounds, exclusive = [], f"exclusive{name.capitalize()}"
    for keyword, excluded in ((name, schema.get(exclusive) is True), (exclusive, True)):
        value = schema.get(keyword)
        if value is not None and not isinstance(value, bool):
            if not abs(value) < MAX_BOUND:
                raise Refusal((*place, keyword), f"need a number nearer to 0 than {MAX_BOUND}, got {json.dumps(value)}")
            bounds.append((Fraction(value), excluded))
    sign = 1 if name == "minimum" else -1
    return max(bounds, key=lambda bound: (sign * bound[0], bound[1]), default=None)
