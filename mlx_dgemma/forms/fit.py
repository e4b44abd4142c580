"""Tests whether a JSON value is one of a case (`case.py`), in linear time: Python's `re` can take exponential time over
a pattern, and reads another dialect."""

from fractions import Fraction
from typing import Any

from ..tokens.references import References
from .case import Case, Schema, Together, canonical
from .cases import Cases, kind
from .numeral import is_multiple
from .pattern import dialects_differ
from .strings import Strings


class Fit:
    """Tests values by the schemas of one file."""

    def __init__(self, references: References, strings: Strings, legacy: bool):
        self.strings = strings
        self.cases = Cases(references, self.case, legacy)

    def schemas(self, value: Any, schemas: Together) -> bool:
        return any(self.case(value, case) for case in self.cases.together(schemas))

    def case(self, value: Any, case: Case) -> bool:
        name = kind(value)
        if not ({name, "number"} if name == "integer" else {name}) & case.types:
            return False
        if case.values is not None and canonical(value) not in set(map(canonical, case.values)):
            return False
        match name:
            case "object":
                return self._object(value, case)
            case "array":
                return self._array(value, case)
            case "string":
                return self._string(value, case)
            case "integer" | "number":
                return _number(value, case)
        return True

    def _string(self, value: str, case: Case) -> bool:
        text = value.encode("utf-8", "surrogatepass")
        held = len(value) in case.length and value not in case.excluded
        return held and all(self.strings.plain(pattern).matches(text) for pattern in case.patterns)

    def _array(self, value: list, case: Case) -> bool:
        if len(value) not in case.items or (case.unique and len(set(map(canonical, value))) < len(value)):
            return False
        for first, rest in case.lists:
            if not all(self.schemas(item, (first[i] if i < len(first) else rest,)) for i, item in enumerate(value)):
                return False
        return all(sum(self.schemas(item, (schema,)) for item in value) in range_ for schema, range_ in case.contains)

    def _object(self, value: dict, case: Case) -> bool:
        if len(value) not in case.members or any(name not in value for name in case.required):
            return False
        return all(
            self.schemas(name, case.names) and self.schemas(item, self.member(case, name))
            for name, item in value.items()
        )

    def member(self, case: Case, name: str) -> Together:
        """The schemas that apply to a member of that name."""
        schemas: list[Schema] = [*case.properties.get(name, ())]
        plain = name.isascii() and name.isprintable()  # or another dialect might find the pattern
        schemas += [s for p, s in case.matching if self.named(p, name) or (not plain and dialects_differ(p))]
        for names, patterns, schema in case.others:
            if name not in names and not any(self.named(pattern, name) for pattern in patterns):
                schemas.append(schema)
        return tuple(schemas)

    def named(self, pattern: str, name: str) -> bool:
        return self.strings.plain(pattern).matches(name.encode("utf-8", "surrogatepass"))


def _number(value: float, case: Case) -> bool:
    exact = Fraction(value)
    low = case.low is None or (exact > case.low[0] if case.low[1] else exact >= case.low[0])
    high = case.high is None or (exact < case.high[0] if case.high[1] else exact <= case.high[0])
    return low and high and all(is_multiple(value, multiple) for multiple in case.multiples)
