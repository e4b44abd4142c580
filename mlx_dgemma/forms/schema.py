"""A JSON schema -> the automaton of its documents, written as `json.dumps` writes them.

Held are objects, arrays, strings, numbers, integers, booleans, null, enum, const, anyOf, and $ref within the file,
nested without a circle: documents of a regular language, see `construction.py`. Members come in the order of
`properties`; one that is not required may be left out, and none is added. Every other keyword that restricts is a
mistake, named with its path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound
from .automaton import Automaton, Budget, too_large
from .construction import MOST_NODES, Sizes, build_automaton
from .expression import (
    ANY,
    Both,
    Chars,
    Either,
    Expression,
    Joined,
    Ranges,
    Repeat,
    Series,
    Text,
    either,
    overlap,
    series,
    without,
)
from .numeral import Bound, number
from .pattern import pattern

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
ANNOTATIONS |= {"$schema", "$id", "$comment", "$defs", "definitions"}
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
KEYWORDS = {  # of each type
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "number": BOUNDS,
    "integer": BOUNDS,
    "boolean": set(),
    "null": set(),
}
HELD = {"type", "enum", "const", "anyOf", "$ref"}.union(*KEYWORDS.values())
FARTHEST = 1e300  # of a bound: what is beyond may be no double
ESCAPED: Ranges = ((0, 31), (34, 34), (92, 92))  # control characters, quote, backslash
Schema = dict[str, Any]


def read(path: str | Path) -> Schema:
    """Reads a schema from a file. Mistake where it cannot be read, or is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise NotFound(f"{path}: {(error.strerror or str(error)).lower()}; --json-schema takes a file") from None
    except RecursionError:
        raise Mistake(f"{path} cannot be held: it is nested too deep") from None
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def language(schema: Schema | bool, *, reach: int | None = None) -> Automaton:
    """Builds the automaton of a schema's documents; of those of at most `reach` bytes, where it is given.

    Mistake where it is no JSON schema, or cannot be held: names the keyword and its path.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    validator = validator_for(schema, default=Draft202012Validator)
    try:
        validator.check_schema(schema, format_checker=None)  # with it, Python's `re` would have to read each pattern
        return _Reader(validator, schema, reach).automaton()
    except SchemaError as error:
        raise Mistake(f"no JSON schema: {error.message}, at {_pointer(error.absolute_path)}") from None
    except RecursionError:
        raise Mistake("the schema cannot be held: it is nested too deep") from None


def _pointer(path) -> str:
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _with_our_patterns(validator: type, matches: Callable[[str, str], bool]) -> type:
    """The validator, but with our patterns: Python's `re` can take exponential time, and reads another dialect."""
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def check(_, text: str, value: Any, __) -> Iterator[ValidationError]:
        if isinstance(value, str) and not matches(text, value):
            yield ValidationError(f"{value!r} does not match {text!r}")

    return extend(validator, {"pattern": check})


def escaped(expression: Expression) -> Expression:
    """The expression of a text as it is written between the quotes of a JSON string."""
    match expression:
        case Text(text):
            return Text(json.dumps(text, ensure_ascii=False)[1:-1])
        case Chars(ranges):
            plain = Chars(overlap(ranges, without(ESCAPED)))
            special = (chr(c) for a, b in overlap(ranges, ESCAPED) for c in range(a, b + 1))
            return Either((plain, *(Text(json.dumps(character)[1:-1]) for character in special)))
        case Series(parts):
            return Series(tuple(map(escaped, parts)))
        case Either(options):
            return Either(tuple(map(escaped, options)))
        case Repeat(what, least, most, between):
            return Repeat(escaped(what), least, most, escaped(between))
        case Both(one, other):
            return Both(escaped(one), escaped(other))
    raise TypeError(expression)


@cache
def _character() -> Automaton:
    """One character of a JSON string."""
    return build_automaton(escaped(ANY))


class _Reader:
    """Reads one schema. The work on its patterns and on all of it comes out of one budget."""

    def __init__(self, validator: type, root: Schema | bool, reach: int | None):
        self.root, self.reach, self.budget = root, reach, Budget()
        self.validator = _with_our_patterns(validator, self._matches)(root)
        self.sizes, self.nodes = Sizes(reach), {}  # nodes: an estimate of how many each path takes
        self.references: dict[str, Expression | None] = {}  # None for those that are being followed
        self.patterns: dict[str, Automaton] = {}
        self.numbers: dict[tuple, Automaton] = {}

    def automaton(self) -> Automaton:
        expression = self.value(self.root, ())
        try:
            if self.nodes[()] > MOST_NODES:
                raise Mistake(too_large())
            return build_automaton(expression, reach=self.reach, budget=self.budget)
        except Mistake as mistake:
            heavy = (path for path, nodes in self.nodes.items() if 2 * nodes >= self.nodes[()])
            raise Mistake(f"{_pointer(max(heavy, key=len))} cannot be held: {mistake}") from None

    def value(self, schema: Schema | bool, path: tuple) -> Expression:
        expression = self._value(schema, path)
        self.nodes[path] = self.sizes.of(expression)
        return expression

    def _value(self, schema: Schema | bool, path: tuple) -> Expression:
        def refuse(what: str, *at) -> Mistake:
            return Mistake(f"{_pointer((*path, *at))} cannot be held: {what}")

        if not isinstance(schema, dict):
            raise refuse(f"{json.dumps(schema)} says nothing of what to write; give it a type")
        keywords = {keyword for keyword in schema if keyword not in ANNOTATIONS and not keyword.startswith("x-")}
        if "$id" in schema and path:
            raise refuse("references inside would count from here; leave it out", "$id")
        if unknown := sorted(keywords - HELD):
            raise refuse(f"{unknown[0]} is not one of {', '.join(sorted(HELD))}", unknown[0])
        for alone, follow in (("$ref", self._referred), ("anyOf", self._any_of)):
            if alone in keywords:
                if more := sorted(keywords - {alone}):
                    raise refuse(f"it stands beside {alone}; put it inside", more[0])
                return follow(schema[alone], path, refuse)
        if keywords & {"enum", "const"}:
            return self._enumerated(schema, keywords, refuse)
        options = [self._typed(kind, schema, path, refuse) for kind in self._types(schema, keywords, refuse)]
        return options[0] if len(options) == 1 else either(*options)

    def _types(self, schema: Schema, keywords: set[str], refuse: Callable) -> list[str]:
        """The types that are given, or else those that a keyword is about."""
        given = schema.get("type")
        types = [given] if isinstance(given, str) else given
        types = types or [kind for kind, known in KEYWORDS.items() if keywords & known and kind != "integer"]
        if not types:
            raise refuse("it says nothing of what to write; give it a type")
        return [kind for kind in types if not (kind == "integer" and "number" in types)]

    def _typed(self, kind: str, schema: Schema, path: tuple, refuse: Callable) -> Expression:
        if kind == "object":
            return self._object(schema, path, refuse)
        if kind == "array":
            return self._array(schema, path, refuse)
        if kind == "string":
            return self._string(schema, refuse)
        if kind in ("number", "integer"):
            return self._number(kind, schema, refuse)
        return either("true", "false") if kind == "boolean" else Text("null")

    def _number(self, kind: str, schema: Schema, refuse: Callable) -> Expression:
        bounds = self._bound(schema, "inimum", max, refuse), self._bound(schema, "aximum", min, refuse)
        if (kind, *bounds) not in self.numbers:
            try:
                expression = number(*bounds, whole=kind == "integer")
                self.numbers[kind, *bounds] = build_automaton(expression, budget=self.budget)
            except Mistake as mistake:
                raise refuse(str(mistake)) from None
        return self.numbers[kind, *bounds]

    def _referred(self, reference: str, path: tuple, refuse: Callable) -> Expression:
        if reference != "#" and not reference.startswith("#/"):
            raise refuse(f"{reference} is not in this file; copy it here", "$ref")
        if reference not in self.references:
            self.references[reference] = None
            self.references[reference] = self.value(*self._resolved(reference, refuse))
        expression = self.references[reference]
        if expression is None:
            raise refuse(f"{reference} refers to itself, so it has no longest document", "$ref")
        return expression

    def _resolved(self, reference: str, refuse: Callable) -> tuple[Any, tuple]:
        """The schema that is referred to, and its path."""
        target: Any = self.root
        parts = [part.replace("~1", "/").replace("~0", "~") for part in reference[1:].split("/")[1:]]
        try:
            for part in parts:
                target = target[int(part)] if isinstance(target, list) else target[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise refuse(f"{reference} is not there", "$ref") from None
        return target, tuple(parts)

    def _any_of(self, options: list, path: tuple, refuse: Callable) -> Expression:
        return either(*(self.value(option, (*path, "anyOf", i)) for i, option in enumerate(options)))

    def _enumerated(self, schema: Schema, keywords: set[str], refuse: Callable) -> Expression:
        keyword = "enum" if "enum" in schema else "const"
        values = schema["enum"] if keyword == "enum" else [schema["const"]]
        texts = [self._written(value) for value in values]
        if (length := sum(map(len, texts))) > MOST_NODES:
            raise refuse(f"its values have {length} characters, more than {MOST_NODES}: leave some out", keyword)
        if keywords - {keyword}:
            others = {name: value for name, value in schema.items() if name not in (keyword, "$schema")}
            try:
                valid = self.validator.evolve(schema=others).is_valid
                texts = [text for text, value in zip(texts, values, strict=True) if valid(value)]
            except Mistake as mistake:
                raise refuse(str(mistake), "pattern") from None
        if not texts:
            raise refuse("none of its values fits what else is said here", keyword)
        return either(*texts)

    def _matches(self, text: str, value: str) -> bool:
        """Whether the pattern `text` is found in `value`: in linear time."""
        if text not in self.patterns:
            self.patterns[text] = build_automaton(pattern(text), budget=self.budget)
        return self.patterns[text].matches(value.encode("utf-8", "surrogatepass"))

    @staticmethod
    def _written(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
            return text
        except UnicodeEncodeError:  # half a character, which JSON can name but not write
            return json.dumps(value)

    def _object(self, schema: Schema, path: tuple, refuse: Callable) -> Expression:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if missing := [name for name in required if name not in properties]:
            raise refuse(f"properties does not say what {missing[0]!r} is", "required")
        members = tuple(
            series(f"{self._written(name)}: ", self.value(inner, (*path, "properties", name)))
            for name, inner in properties.items()
        )
        needed = set(required)
        return series("{", Joined(members, tuple(name in needed for name in properties), Text(", ")), "}")

    def _array(self, schema: Schema, path: tuple, refuse: Callable) -> Expression:
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        most = None if most is None else int(most)
        if most is not None and most < least:
            raise refuse(f"no array has at least {least} and at most {most} items", "maxItems")
        if most == 0:
            return Text("[]")
        if "items" not in schema:
            raise refuse("it says nothing of its items; give it items")
        if isinstance(schema["items"], list):
            raise refuse("it is a list; items takes one schema for all of them", "items")
        item = self.value(schema["items"], (*path, "items"))
        return series("[", Repeat(item, least, most, Text(", ")), "]")

    def _string(self, schema: Schema, refuse: Callable) -> Expression:
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < least:
            raise refuse(f"no text has at least {least} and at most {most} characters", "maxLength")
        content: Expression = Repeat(_character(), least, None if most is None else int(most))
        if "pattern" in schema:
            try:
                matching = escaped(pattern(schema["pattern"]))
                content = Both(matching, content) if "minLength" in schema or "maxLength" in schema else matching
                content = build_automaton(content, reach=self.reach, budget=self.budget)
            except Mistake as mistake:
                raise refuse(str(mistake), "pattern") from None
        return series('"', content, '"')

    @staticmethod
    def _bound(schema: Schema, name: str, stricter: Callable, refuse: Callable) -> Bound | None:
        """Returns the stricter of `minimum` and `exclusiveMinimum`, or of their opposites."""
        bounds = []
        for keyword, excluded in ((f"m{name}", False), (f"exclusiveM{name}", True)):
            if keyword in schema:
                value = schema[keyword]
                if isinstance(value, bool) or not abs(value) < FARTHEST:
                    raise refuse(f"need a number nearer to 0 than {FARTHEST}, got {json.dumps(value)}", keyword)
                bounds.append((Fraction(value), excluded))
        if len(bounds) == 2 and bounds[0][0] == bounds[1][0]:
            return bounds[1]
        return stricter(bounds) if bounds else None
