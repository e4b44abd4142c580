"""A case of a schema: all that a value must be at once. A schema is a list of cases (`cases.py`): one must hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .numeral import Bound

Schema = dict[str, Any] | bool
Together = tuple[Schema, ...]  # schemas that all hold
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANY_TYPE = frozenset(TYPES) - {"integer"}


@dataclass(frozen=True)
class Range:
    """Counts from `least` to `most` (None: any number)."""

    least: int = 0
    most: int | None = None

    def __and__(self, other: "Range") -> "Range":
        limits = [most for most in (self.most, other.most) if most is not None]
        return Range(max(self.least, other.least), min(limits, default=None))

    def __contains__(self, count: int) -> bool:
        return self.least <= count and (self.most is None or count <= self.most)

    @property
    def empty(self) -> bool:
        return self.most is not None and self.most < self.least


@dataclass(frozen=True, kw_only=True)
class Case:
    """Each keyword restricts values of its own type only."""

    types: frozenset[str] = ANY_TYPE  # "integer" beside "number" says nothing
    values: tuple | None = None  # of enum and const
    low: Bound | None = None
    high: Bound | None = None
    multiples: tuple[float, ...] = ()
    patterns: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()  # texts that it is not
    length: Range = Range()
    items: Range = Range()
    members: Range = Range()
    lists: tuple[tuple[tuple[Schema, ...], Schema], ...] = ()  # prefixItems, and items: of each schema that says so
    contains: tuple[tuple[Schema, Range], ...] = ()
    unique: bool = False
    properties: Mapping[str, Together] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    matching: tuple[tuple[str, Schema], ...] = ()  # patternProperties
    others: tuple[tuple[frozenset[str], tuple[str, ...], Schema], ...] = ()  # names and patterns that it is not about
    names: Together = ()  # propertyNames
    place: tuple = field(default=(), compare=False)  # the path of the schema that says most of it

    def __and__(self, other: "Case") -> "Case | None":
        """Both at once; None where no value is."""
        values = self.values if other.values is None else other.values
        if self.values is not None and other.values is not None:
            known = set(map(canonical, other.values))
            values = tuple(value for value in self.values if canonical(value) in known)
        if values and (excluded := self.excluded + other.excluded):
            values = tuple(value for value in values if value not in excluded)
        properties = dict(self.properties)
        for name, schemas in other.properties.items():
            properties[name] = (*properties.get(name, ()), *schemas)
        lows, highs = ([b for b in pair if b] for pair in ((self.low, other.low), (self.high, other.high)))
        both = Case(
            types=common(self.types, other.types),
            values=values,
            low=max(lows, default=None),
            high=min(highs, key=lambda bound: (bound[0], not bound[1]), default=None),
            length=self.length & other.length,
            items=self.items & other.items,
            members=self.members & other.members,
            unique=self.unique or other.unique,
            properties=properties,
            required=tuple(dict.fromkeys(self.required + other.required)),
            place=max(other.place, self.place, key=len),
            **{name: getattr(self, name) + getattr(other, name) for name in JOINED},
        )
        return both if both.types and both.values != () else None


JOINED = ("multiples", "patterns", "excluded", "lists", "contains", "matching", "others", "names")


def common(left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    """The types that are in both: a number may be an integer."""
    integers = any("integer" in a and b & {"number", "integer"} for a, b in ((left, right), (right, left)))
    both = (left & right) - {"integer"}
    return both | {"integer"} if integers and "number" not in both else both


def canonical(value: Any) -> str:
    """Equal for values that JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        members = [f"{json.dumps(name)}:{canonical(value[name])}" for name in sorted(value)]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(Fraction(value))
    return json.dumps(value)
