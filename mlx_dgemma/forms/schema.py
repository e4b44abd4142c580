"""A JSON schema -> the expression for its documents, written as `json.dumps` writes them.

Held are objects, arrays, strings, numbers, integers, booleans, null, enum, const, anyOf, and $ref within the file,
nested without a circle: documents of a regular language, see `automaton.py`. Members come in the order of `properties`;
one that is not required may be left out, and none is added. Every other keyword that restricts is a mistake, named
with its path.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound
from .construction import build_automaton
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

SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
SAYS_NOTHING |= {"$schema", "$id", "$comment", "$defs", "definitions"}
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
    """Of a file. Mistake where it is no JSON, or no schema."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise NotFound(f"{path}: {(error.strerror or str(error)).lower()}; --json-schema takes a file") from None
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def language(schema: Schema | bool) -> Expression:
    """Mistake where it is no JSON schema, or cannot be held: names the keyword and its path."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    validator = validator_for(schema, default=Draft202012Validator)
    try:
        validator.check_schema(schema)
    except SchemaError as error:
        raise Mistake(f"no JSON schema: {error.message}, at {_pointer(error.absolute_path)}") from None
    return _Reader(validator(schema)).value(schema, ())


def _pointer(path) -> str:
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def escaped(expression: Expression) -> Expression:
    """What a JSON string has between its quotes, for a text that the expression describes."""
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
        case Repeat(what, least, most):
            return Repeat(escaped(what), least, most)
        case Both(one, other):
            return Both(escaped(one), escaped(other))
    raise TypeError(expression)


CHARACTER = escaped(ANY)


class _Reader:
    def __init__(self, validator):
        self.validator, self.root = validator, validator.schema
        self.inside: list[str] = []  # references that are being followed

    def value(self, schema: Schema | bool, path: tuple) -> Expression:
        def refuse(what: str, *at) -> Mistake:
            return Mistake(f"{_pointer((*path, *at))} cannot be held: {what}")

        if not isinstance(schema, dict):
            raise refuse(f"{json.dumps(schema)} says nothing of what to write; give it a type")
        said = {keyword for keyword in schema if keyword not in SAYS_NOTHING and not keyword.startswith("x-")}
        if "$id" in schema and path:
            raise refuse("references inside would count from here; leave it out", "$id")
        if unknown := sorted(said - HELD):
            raise refuse(f"{unknown[0]} is not one of {', '.join(sorted(HELD))}", unknown[0])
        for alone, follow in (("$ref", self._referred), ("anyOf", self._any_of)):
            if alone in said:
                if more := sorted(said - {alone}):
                    raise refuse(f"it stands beside {alone}; put it inside", more[0])
                return follow(schema[alone], path, refuse)
        if said & {"enum", "const"}:
            return self._enumerated(schema, refuse)
        options = [self._typed(kind, schema, path, refuse) for kind in self._types(schema, said, refuse)]
        return options[0] if len(options) == 1 else either(*options)

    def _types(self, schema: Schema, said: set[str], refuse: Callable) -> list[str]:
        """As given, or those that a keyword is about."""
        given = schema.get("type")
        types = [given] if isinstance(given, str) else given
        types = types or [kind for kind, own in KEYWORDS.items() if said & own and kind != "integer"]
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
            low, high = self._bound(schema, "inimum", max, refuse), self._bound(schema, "aximum", min, refuse)
            try:
                return number(low, high, whole=kind == "integer")
            except Mistake as mistake:
                raise refuse(str(mistake)) from None
        return either("true", "false") if kind == "boolean" else Text("null")

    def _referred(self, reference: str, path: tuple, refuse: Callable) -> Expression:
        if reference != "#" and not reference.startswith("#/"):
            raise refuse(f"{reference} is not in this file; copy it here", "$ref")
        if reference in self.inside:
            raise refuse(f"{reference} refers to itself, so it has no longest document", "$ref")
        found: Any = self.root
        parts = [part.replace("~1", "/").replace("~0", "~") for part in reference[1:].split("/")[1:]]
        try:
            for part in parts:
                found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise refuse(f"{reference} is not there", "$ref") from None
        self.inside.append(reference)
        expression = self.value(found, tuple(parts))
        self.inside.pop()
        return expression

    def _any_of(self, options: list, path: tuple, refuse: Callable) -> Expression:
        return either(*(self.value(option, (*path, "anyOf", i)) for i, option in enumerate(options)))

    def _enumerated(self, schema: Schema, refuse: Callable) -> Expression:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        fitting = [value for value in values if self.validator.evolve(schema=schema).is_valid(value)]
        if not fitting:
            raise refuse("none of its values fits what else is said here", "enum" if "enum" in schema else "const")
        return either(*(self._written(value) for value in fitting))

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
        return series("{", Joined(members, tuple(name in required for name in properties), Text(", ")), "}")

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
        more = Repeat(series(", ", item), max(least, 1) - 1, None if most is None else most - 1)
        return series("[", series(item, more) if least else Repeat(series(item, more), 0, 1), "]")

    def _string(self, schema: Schema, refuse: Callable) -> Expression:
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < least:
            raise refuse(f"no text has at least {least} and at most {most} characters", "maxLength")
        content: Expression = Repeat(CHARACTER, least, None if most is None else int(most))
        if "pattern" in schema:
            try:
                found = escaped(pattern(schema["pattern"]))
                content = Both(found, content) if "minLength" in schema or "maxLength" in schema else found
                build_automaton(content)  # whether there is any such text
            except Mistake as mistake:
                raise refuse(str(mistake), "pattern") from None
        return series('"', content, '"')

    @staticmethod
    def _bound(schema: Schema, name: str, stricter: Callable, refuse: Callable) -> Bound | None:
        """The stricter of `minimum` and `exclusiveMinimum`, or of their opposites."""
        found = []
        for keyword, left_out in ((f"m{name}", False), (f"exclusiveM{name}", True)):
            if keyword in schema:
                value = schema[keyword]
                if isinstance(value, bool) or not abs(value) < FARTHEST:
                    raise refuse(f"need a number nearer to 0 than {FARTHEST}, got {json.dumps(value)}", keyword)
                found.append((Fraction(value), left_out))
        if len(found) == 2 and found[0][0] == found[1][0]:
            return found[1]
        return stricter(found) if found else None
