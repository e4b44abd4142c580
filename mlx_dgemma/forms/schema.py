"""A JSON schema -> the automaton of its documents, written as `json.dumps` writes them.

This file decides what a schema allows. Held are objects, arrays, strings, numbers, integers, booleans, null, enum,
const, anyOf, and $ref within the file, nested without a circle: documents of a regular language. Members come in the
order of `properties`; one that is not required may be left out, and none is added. Every other keyword that restricts
is a mistake, named with its path.

What follows: `_Reader` puts the schema together as an expression (`expression.py`; patterns: `pattern.py`, numbers:
`numeral.py`), `construction.py` makes that an automaton (`automaton.py`), `lattice.py` reads it in tokens, and
`language.py` holds a text to it while it is written.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import Draft202012Validator, extend, validator_for

from ..errors import Mistake, NotFound
from .automaton import TOO_LARGE, Automaton, Budget
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
MOST = 2**24  # characters of a schema
Schema = dict[str, Any]


def read(path: str | Path) -> Schema:
    """Reads a schema from a file. Mistake where it cannot be read, or is no JSON."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MOST + 1)  # a device never ends
        if len(text) > MOST:
            raise ValueError(f"it has more than {MOST} characters")
        return json.loads(text, parse_constant=_refuse_constant)
    except OSError as error:
        raise NotFound(f"{path}: {(error.strerror or str(error)).lower()}; --json-schema takes a file") from None
    except RecursionError:
        raise Mistake(f"{path} cannot be held: it is nested too deep") from None
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def automaton(schema: Schema | bool, *, reach: int | None = None) -> Automaton:
    """Builds the automaton of a schema's documents; of those of at most `reach` bytes, where it is given.

    Mistake where it is no JSON schema, or cannot be held: names the keyword and its path.
    """
    if not isinstance(schema, dict | bool):
        raise Mistake(f"no JSON schema: need an object, got {json.dumps(schema)[:40]}")
    if isinstance(schema, dict) and not isinstance(schema.get("$schema", ""), str):
        raise Mistake(f"no JSON schema: $schema is a text, got {json.dumps(schema['$schema'])[:40]}")
    validator = validator_for(schema, default=Draft202012Validator)
    try:
        validator.check_schema(schema, format_checker=None)  # with it, Python's `re` would have to read each pattern
        return _Reader(validator, schema, reach).automaton(schema)
    except SchemaError as error:
        raise Mistake(f"no JSON schema: {error.message}, at {_pointer(error.absolute_path)}") from None
    except RecursionError:
        raise Mistake("the schema cannot be held: it is nested too deep") from None


def _pointer(path) -> str:
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _refusal(path: tuple, why: str) -> Mistake:
    return Mistake(f"{_pointer(path)} cannot be held: {why}")


@contextmanager
def _named(*path: str | int) -> Iterator[None]:
    """A mistake inside names this path."""
    try:
        yield
    except Mistake as mistake:
        raise _refusal(path, str(mistake)) from None


def escaped(expression: Expression) -> Expression:
    """The expression of a text as it is written between the quotes of a JSON string."""
    match expression:
        case Text(text):
            return Text(json.dumps(text, ensure_ascii=False)[1:-1])
        case Chars(ranges):
            return _escaped_class(ranges)
        case Series(parts):
            return Series(tuple(map(escaped, parts)))
        case Either(options):
            return Either(tuple(map(escaped, options)))
        case Repeat(content, least, most, between):
            return Repeat(escaped(content), least, most, escaped(between))
    raise TypeError(expression)


def _keys(value: Any) -> set[str]:
    """The keys of all objects in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(_keys, inner))


@lru_cache(maxsize=1000)
def _escaped_class(ranges: Ranges) -> Expression:
    plain = Chars(overlap(ranges, without(ESCAPED)))
    special = (chr(c) for a, b in overlap(ranges, ESCAPED) for c in range(a, b + 1))
    return Either((plain, *(Text(json.dumps(character)[1:-1]) for character in special)))


@cache
def _character() -> Automaton:
    """One character of a JSON string."""
    return build_automaton(escaped(ANY))


class _Reader:
    """Reads one schema. The work on its patterns and on all of it comes out of one budget."""

    def __init__(self, validator: type, root: Schema | bool, reach: int | None):
        self.root, self.budget = root, Budget(reach=reach)
        self.validator = extend(validator, {"pattern": self._check_pattern})(root)
        self.sizes, self.nodes = Sizes(reach), {}  # nodes: an estimate of how many each path takes
        self.uses = Counter(_references(root))  # a definition that is used more than once is built once
        self.references: dict[str, Expression | None] = {}  # None for those that are being followed
        self.patterns: dict[str, Automaton] = {}
        self.numbers: dict[tuple, Automaton] = {}

    def automaton(self, schema: Schema | bool, path: tuple = ()) -> Automaton:
        """The automaton of the values that `schema`, which stands at `path`, allows. A mistake names the innermost path
        that takes half of the nodes."""
        expression = self.value(schema, path)
        nodes = self.nodes[path]
        inside = (place for place in self.nodes if place[: len(path)] == path and 2 * self.nodes[place] >= nodes)
        with _named(*max(inside, key=len)):
            if nodes > MOST_NODES:
                raise Mistake(TOO_LARGE)
            return build_automaton(expression, self.budget)

    def value(self, schema: Schema | bool, path: tuple) -> Expression:
        """The expression of the values that `schema`, which stands at `path`, allows."""
        expression = self._value(schema, path)
        self.nodes[path] = self.sizes[expression]
        return expression

    def _value(self, schema: Schema | bool, path: tuple) -> Expression:
        if not isinstance(schema, dict):
            raise _refusal(path, f"{json.dumps(schema)} says nothing of what to write; give it a type")
        keywords = {keyword for keyword in schema if keyword not in ANNOTATIONS and not keyword.startswith("x-")}
        if "$id" in schema and path:
            raise _refusal((*path, "$id"), "references inside would count from here; leave it out")
        if unknown := sorted(keywords - HELD):
            raise _refusal((*path, unknown[0]), f"{unknown[0]} is not one of {', '.join(sorted(HELD))}")
        for alone, follow in (("$ref", self._referred), ("anyOf", self._any_of)):
            if alone in keywords:
                if more := sorted(keywords - {alone}):
                    raise _refusal((*path, more[0]), f"it stands beside {alone}; put it inside")
                return follow(schema[alone], (*path, alone))
        if keywords & {"enum", "const"}:
            return self._enumerated(schema, keywords, path)
        options = [self._typed(kind, schema, path) for kind in self._types(schema, keywords, path)]
        return options[0] if len(options) == 1 else either(*options)

    @staticmethod
    def _types(schema: Schema, keywords: set[str], path: tuple) -> list[str]:
        """The types that are given, or else those that a keyword is about."""
        given = schema.get("type")
        types = [given] if isinstance(given, str) else given
        types = types or [kind for kind, known in KEYWORDS.items() if keywords & known and kind != "integer"]
        if not types:
            raise _refusal(path, "it says nothing of what to write; give it a type")
        return [kind for kind in types if not (kind == "integer" and "number" in types)]

    def _typed(self, kind: str, schema: Schema, path: tuple) -> Expression:
        match kind:
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "string":
                return self._string(schema, path)
            case "number" | "integer":
                return self._number(kind, schema, path)
        return either("true", "false") if kind == "boolean" else Text("null")

    def _referred(self, reference: str, path: tuple) -> Expression:
        if reference != "#" and not reference.startswith("#/"):
            raise _refusal(path, f"{reference} is not in this file; copy it here")
        if reference not in self.references:
            target: Any = self.root
            parts = [part.replace("~1", "/").replace("~0", "~") for part in reference[1:].split("/")[1:]]
            try:
                for part in parts:
                    target = target[int(part)] if isinstance(target, list) else target[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise _refusal(path, f"{reference} is not there") from None
            self.references[reference] = None
            follow = self.automaton if self.uses[reference] > 1 else self.value
            self.references[reference] = follow(target, tuple(parts))
        expression = self.references[reference]
        if expression is None:
            raise _refusal(path, f"{reference} refers to itself, so it has no longest document")
        return expression

    def _any_of(self, options: list, path: tuple) -> Expression:
        return either(*(self.value(option, (*path, i)) for i, option in enumerate(options)))

    def _enumerated(self, schema: Schema, keywords: set[str], path: tuple) -> Expression:
        keyword = "enum" if "enum" in schema else "const"
        values = schema["enum"] if keyword == "enum" else [schema["const"]]
        texts = [_written(value) for value in values]
        if (length := sum(map(len, texts))) > MOST_NODES:
            why = f"its values have {length} characters, more than {MOST_NODES}: leave some out"
            raise _refusal((*path, keyword), why)
        if keywords - {keyword}:
            others = {name: value for name, value in schema.items() if name not in (keyword, "$schema")}
            if slow := sorted(_keys(others) & {"patternProperties", "uniqueItems"}):  # exponential, quadratic there
                raise _refusal((*path, keyword), f"its values cannot be checked against {slow[0]}: leave that out")
            valid = self.validator.evolve(schema=others).is_valid
            with _named(*path, "pattern"):
                texts = [text for text, value in zip(texts, values, strict=True) if valid(value)]
        if not texts:
            raise _refusal((*path, keyword), "none of its values fits what else is said here")
        return either(*texts)

    def _check_pattern(self, _: Any, text: str, value: Any, __: Any) -> Iterator[ValidationError]:
        """Checks a value in linear time: Python's `re` can take exponential time, and reads another dialect."""
        if isinstance(value, str):
            if text not in self.patterns:
                self.patterns[text] = build_automaton(pattern(text), self.budget)
            if not self.patterns[text].matches(value.encode("utf-8", "surrogatepass")):
                yield ValidationError(f"{value!r} does not match {text!r}")

    def _object(self, schema: Schema, path: tuple) -> Expression:
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        if missing := [name for name in schema.get("required", ()) if name not in properties]:
            raise _refusal((*path, "required"), f"properties does not say what {missing[0]!r} is")
        members = tuple(
            series(f"{_written(name)}: ", self.value(inner, (*path, "properties", name)))
            for name, inner in properties.items()
        )
        return series("{", Joined(members, tuple(name in required for name in properties), Text(", ")), "}")

    def _array(self, schema: Schema, path: tuple) -> Expression:
        least, most = _counts(schema, "Items", path, "array", "items")
        if most == 0:
            return Text("[]")
        if "items" not in schema:
            raise _refusal(path, "it says nothing of its items; give it items")
        if isinstance(schema["items"], list):
            raise _refusal((*path, "items"), "it is a list; items takes one schema for all of them")
        item = self.value(schema["items"], (*path, "items"))
        return series("[", Repeat(item, least, most, Text(", ")), "]")

    def _string(self, schema: Schema, path: tuple) -> Expression:
        content: Expression = Repeat(_character(), *_counts(schema, "Length", path, "text", "characters"))
        if "pattern" in schema:
            with _named(*path, "pattern"):
                matching = escaped(pattern(schema["pattern"]))
                content = Both(matching, content) if "minLength" in schema or "maxLength" in schema else matching
                content = build_automaton(content, self.budget)
        return series('"', content, '"')

    def _number(self, kind: str, schema: Schema, path: tuple) -> Expression:
        bounds = _bound(schema, "inimum", path), _bound(schema, "aximum", path)
        if (kind, *bounds) not in self.numbers:
            with _named(*path):
                self.numbers[kind, *bounds] = build_automaton(number(*bounds, whole=kind == "integer"), self.budget)
        return self.numbers[kind, *bounds]


def _references(schema: Any) -> Iterator[str]:
    """Every $ref in a schema."""
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    if isinstance(schema, dict | list):
        for inner in schema.values() if isinstance(schema, dict) else schema:
            yield from _references(inner)


def _written(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # half a character, which JSON can name but not write
        return json.dumps(value)


def _counts(schema: Schema, of: str, path: tuple, kind: str, parts: str) -> tuple[int, int | None]:
    """`minItems` and `maxItems`, or `minLength` and `maxLength`."""
    least, most = int(schema.get(f"min{of}", 0)), schema.get(f"max{of}")
    if most is not None and most < least:
        raise _refusal((*path, f"max{of}"), f"no {kind} has at least {least} and at most {int(most)} {parts}")
    return least, None if most is None else int(most)


def _bound(schema: Schema, name: str, path: tuple) -> Bound | None:
    """Returns the stricter of `minimum` and `exclusiveMinimum`, or of their opposites."""
    bounds = []
    for keyword, excluded in ((f"m{name}", False), (f"exclusiveM{name}", True)):
        if keyword in schema:
            value = schema[keyword]
            if isinstance(value, bool) or not abs(value) < FARTHEST:
                raise _refusal((*path, keyword), f"need a number nearer to 0 than {FARTHEST}, got {json.dumps(value)}")
            bounds.append((Fraction(value), excluded))
    sign = 1 if name == "inimum" else -1
    return max(bounds, key=lambda bound: (sign * bound[0], bound[1]), default=None)
