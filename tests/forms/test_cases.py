"""What schemas allow, keyword by keyword: which texts are documents, which are not, and that all that is written is
valid."""

from __future__ import annotations

import time

import pytest
from schema_coverage import wrong

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.automaton import Budget

STRING, WHOLE = {"type": "string"}, {"type": "integer"}


def members(**properties) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties)}


TREE = members(value=STRING, kids={"type": "array", "items": {"$ref": "#"}, "maxItems": 3})
DEFS = {"Base": members(x=STRING), "a b%": {"type": "null"}, "named": {"$anchor": "here", "const": 7}}
CASES = {  # what is said -> documents, and texts that are none
    "allOf": (
        {"allOf": [{"$ref": "#/$defs/Base"}, members(y=WHOLE)], "$defs": DEFS},
        ['{"x": "a", "y": 1}'],
        ['{"x": "a"}'],
    ),
    "allOf that closes": (
        {
            "allOf": [
                members(x=WHOLE) | {"additionalProperties": False},
                {"properties": {"x": {"maximum": 3}, "y": STRING}},
            ]
        },
        ['{"x": 3}'],
        ['{"x": 4}', '{"x": 3, "y": ""}'],
    ),
    "beside $ref": (
        {"$ref": "#/$defs/Base", "description": "d", "maxProperties": 1, "$defs": DEFS},
        ['{"x": ""}'],
        ["{}"],
    ),
    "oneOf by a tag": (
        {"oneOf": [members(k={"const": "a"}), members(k={"const": "b"}, z=WHOLE)]},
        ['{"k": "b", "z": 0}'],
        [],
    ),
    "oneOf by members": (
        {
            "type": "object",
            "properties": {name: WHOLE for name in "abcdef"},
            "oneOf": [{"properties": {name: True}, "required": [name]} for name in "abcdef"],
            "dependentRequired": {"a": ["b"]},
        },
        ['{"b": 1}', '{"f": 1}'],
        ['{"b": 1, "c": 1}', "{}", '{"a": 1}'],
    ),
    "oneOf by bounds": ({"oneOf": [WHOLE, {"type": "number", "minimum": 2}]}, ["1", "-3"], ["2", "3", "1.5"]),
    "anyOf beside properties": (
        {
            "type": "object",
            "properties": {"a": STRING, "b": STRING},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        ['{"a": ""}', '{"b": ""}', '{"a": "", "b": ""}'],
        ["{}"],
    ),
    "not a type": ({"type": ["string", "null"], "not": {"type": "string"}}, ["null"], ['""']),
    "not a member": (
        {"type": "object", "properties": {"a": WHOLE, "b": WHOLE}, "not": {"required": ["a"]}},
        ['{"b": 1}'],
        ['{"a": 1}'],
    ),
    "not not": ({"not": {"not": {"const": 0}}}, ["0"], ["1", '""']),
    "if": (
        members(kind={"enum": ["x", "y"]}, n=WHOLE)
        | {"if": {"properties": {"kind": {"const": "x"}}}, "then": {"properties": {"n": {"minimum": 5}}}},
        ['{"kind": "x", "n": 5}'],
        ['{"kind": "x", "n": 4}'],
    ),
    "if and else": (
        members(country={"enum": ["US", "NL"]}, zip=STRING)
        | {
            "if": {"properties": {"country": {"const": "US"}}},
            "then": {"properties": {"zip": {"pattern": "^[0-9]{5}$"}}},
            "else": {"properties": {"zip": {"pattern": "^[0-9]{4} [A-Z]{2}$"}}},
        },
        ['{"country": "US", "zip": "12345"}', '{"country": "NL", "zip": "1234 AB"}'],
        ['{"country": "NL", "zip": "12345"}', '{"country": "US", "zip": "1234 AB"}'],
    ),
    "a chain of if": (
        members(k={"enum": [*"abcdefgh"]})
        | {
            "allOf": [
                {"if": {"properties": {"k": {"const": letter}}, "required": ["k"]}, "then": {"required": [letter]}}
                for letter in "abcdefg"
            ],
            "properties": {"k": {"enum": [*"abcdefgh"]}, **{letter: WHOLE for letter in "abcdefg"}},
        },
        ['{"k": "a", "a": 1}', '{"k": "g", "g": 1}', '{"k": "h"}'],
        ['{"k": "a"}', '{"k": "g", "a": 1}', '{"k": "i"}'],
    ),
    "if, of free texts": (
        {
            "type": "object",
            "properties": {"k": STRING, "v": WHOLE},
            "required": ["k"],
            "if": {"properties": {"k": {"enum": ["x", 'é"']}}},
            "then": {"required": ["v"]},
            "else": {"properties": {"v": False}},
        },
        ['{"k": "x", "v": 1}', '{"k": "xx"}', '{"k": ""}', '{"k": "é\\"", "v": 1}'],
        ['{"k": "x"}', '{"k": "xx", "v": 1}', '{"k": "é\\""}'],
    ),
    "not one of these": (
        {"not": {"enum": [1, 2.5, "a", None, True]}},
        ['"b"', "2", "false", "{}", "[]"],
        ["1", "1.0", "2.5", '"a"', "null", "true"],
    ),
    "tags behind what refers to itself": (
        {
            "$ref": "#/$defs/Node",
            "$defs": {
                "A": members(next={"$ref": "#/$defs/Node"}, kind={"const": "a"}),
                "B": members(next={"$ref": "#/$defs/Node"}, kind={"const": "b"}),
                "Node": {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}, {"type": "null"}]},
            },
        },
        ['{"next": null, "kind": "b"}', '{"next": {"next": null, "kind": "a"}, "kind": "b"}', "null"],
        ['{"next": null, "kind": "c"}'],
    ),
    "dependentRequired": (
        {"type": "object", "properties": {"a": WHOLE, "b": WHOLE}, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 1}'],
        ['{"a": 1}'],
    ),
    "a tree": (TREE, ['{"value": "", "kids": [{"value": "", "kids": []}]}'], ['{"value": ""}']),
    "a list in itself": ({"type": "array", "items": {"$ref": "#"}}, ["[]", "[[], [[]]]"], ["[1]"]),
    "a tuple": (
        {"type": "array", "prefixItems": [STRING, WHOLE], "items": False, "minItems": 2},
        ['["a", 1]'],
        ['["a"]', '["a", 1, 2]'],
    ),
    "a tuple that goes on": (
        {"type": "array", "prefixItems": [STRING], "items": WHOLE},
        ["[]", '["a", 1, 2]'],
        ['["a", "b"]'],
    ),
    "a tuple of draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "items": [STRING],
            "additionalItems": False,
        },
        ['["a"]', "[]"],
        ['["a", 1]'],
    ),
    "a set": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
        ['["a", "c"]', "[]"],
        ['["a", "a"]'],
    ),
    "a set of a size": (
        {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 2},
        ["[1, 3]"],
        ["[1]", "[1, 1]"],
    ),
    "a set of few whole numbers": (
        {"type": "array", "items": {"type": "integer", "minimum": 1, "exclusiveMaximum": 4}, "uniqueItems": True},
        ["[1, 3]", "[]"],
        ["[1, 1]", "[4]"],
    ),
    "an option that nothing fits": ({"anyOf": [{"enum": []}, WHOLE]}, ["3"], ['""']),
    "contains": ({"type": "array", "items": WHOLE, "contains": {"const": 7}}, ["[7]", "[7, 1]"], ["[]", "[1]"]),
    "multipleOf": ({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}, ["0", "95"], ["7", "105"]),
    "multipleOf without bounds": ({"type": "integer", "multipleOf": 12}, ["0", "-144", "123456"], ["2", "-13"]),
    "multipleOf a fraction": ({"type": "number", "multipleOf": 0.01, "minimum": 0}, ["0.25", "3"], ["0.255"]),
    "a map": (
        {"type": "object", "additionalProperties": WHOLE},
        ["{}", '{"Tess": 40, "Omar": 31}'],
        ['{"Tess": "40"}'],
    ),
    "a map beside members": (
        members(a=STRING) | {"additionalProperties": WHOLE},
        ['{"a": "", "b": 3}'],
        ['{"a": "", "b": ""}', '{"a": "", "a": 3}'],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^x-": STRING}, "additionalProperties": False},
        ['{"x-a": ""}'],
        ['{"x-a": 1}', '{"a": ""}'],
    ),
    "names that another dialect would find": (
        {"type": "object", "patternProperties": {"^.*$": WHOLE, "^\\w+$": {"minimum": 3}}},
        ['{"a b": 1}'],
        ['{"a\\r": ""}', '{"\u2028": ""}', '{"a": 1}'],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": WHOLE},
        ['{"ab": 1}'],
        ['{"aB": 1}'],
    ),
    "minProperties": (
        {"type": "object", "properties": {"a": WHOLE, "b": WHOLE}, "minProperties": 1},
        ['{"b": 1}', '{"a": 1}'],
        ["{}"],
    ),
    "any value": (members(data={}), ['{"data": [1, {"a": "b"}]}', '{"data": null}'], ["{}"]),
    "anything at all": (True, ["[[1], {}]", '"a"', "{}", '{"a": {"b": 1}}'], ["[", "nan"]),
    "an object of which nothing is said": ({"type": "object"}, ['{"a": 1, "b": [true]}'], ["[]"]),
    "a list of which nothing is said": ({"type": "array"}, ["[1, null]"], ["{}"]),
    "a member of which nothing is said": ({"type": "object", "required": ["x"]}, ['{"x": 1}'], ["{}"]),
    "unknown words": (
        {"type": "null", "example": 1, "id": "x", "minLenght": 3, "x-order": 1, "format": "odd"},
        ["null"],
        ["1"],
    ),
    "a date": ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-02-30"', '"0000-01-01"', '"x"']),
    "a time": (
        {"type": "string", "format": "date-time"},
        ['"2024-12-31T23:59:59Z"', '"2024-01-01T00:00:00.5+02:00"'],
        ['"2024-12-31"'],
    ),
    "an id": ({"type": "string", "format": "uuid"}, ['"12345678-1234-1234-1234-1234567890ab"'], ['"1234"']),
    "an address": ({"type": "string", "format": "email"}, ['"a.b@example.org"'], ['"a@b@c.d"', '"a"']),
    "a machine": (
        {"type": "string", "format": "ipv4", "maxLength": 9},
        ['"127.0.0.1"'],
        ['"256.0.0.1"', '"192.168.10.1"'],
    ),
    "nullable": ({"type": "string", "nullable": True, "maxLength": 2}, ["null", '"ab"'], ['"abc"']),
    "an id that is none": (members(a={"id": "x", "$ref": "#/$defs/Base"}) | {"$defs": DEFS}, ['{"a": {"x": ""}}'], []),
    "a reference in percents": ({"$ref": "#/$defs/a%20b%25", "$defs": DEFS}, ["null"], ["1"]),
    "an anchor": ({"$ref": "#here", "$defs": DEFS}, ["7"], ["null"]),
    "its own $id": (
        {"$id": "https://example.org/s", "$ref": "https://example.org/s#/$defs/named", "$defs": DEFS},
        ["7"],
        ["8"],
    ),
    "an $id inside": ({"$ref": "item.json", "$defs": {"i": {"$id": "item.json", "type": "boolean"}}}, ["true"], ["1"]),
    "definitions": ({"$ref": "#/definitions/x", "definitions": {"x": {"type": "boolean"}}}, ["false"], ["null"]),
    "an enum that must fit": (
        {"enum": [1, "a", None], "allOf": [{"type": ["string", "integer"]}]},
        ["1", '"a"'],
        ["null"],
    ),
    "a property named like a keyword": (
        members(items=WHOLE, enum=STRING, **{"$ref": STRING}),
        ['{"items": 1, "enum": "", "$ref": ""}'],
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_documents_of(name):
    made, documents, others = CASES[name]
    automaton = schema.automaton(made)
    assert [text for text in documents if not automaton.matches(text.encode())] == []
    assert [text for text in others if automaton.matches(text.encode())] == []
    assert name == "nullable" or wrong(made, automaton) == []


@pytest.mark.parametrize(
    "inner",
    [{"if": {"not": {"const": "a"}}, "then": False}, {"format": "date"}, {"pattern": "b"}],
    ids=str,
)
def test_what_is_held_too_narrowly_to_be_excluded_is_refused(inner):
    """Each of them allows more than the cases that are written of it."""
    with pytest.raises(Mistake, match="#/not cannot be held: nothing that an automaton can hold is left"):
        schema.automaton({"enum": ["a", "b", 1], "not": inner})


@pytest.mark.parametrize(
    "pattern", [r"^[\w-\.]+@([\w-]+\.)+[\w-]{2,4}$", r"^(?<year>\d{4})-(?<month>\d{2})$", r"^\p{L}+$", r"^\u{1F600}$"]
)
def test_patterns_are_those_of_ecma(pattern):
    assert schema.automaton({"type": "string", "pattern": pattern}).size > 3


@pytest.mark.parametrize("pattern", [r"^[^]*$", r"^(?!\.)[a-z.]+$", r"\bcat\b", r"(?i)^abc$"])
def test_patterns_that_no_automaton_holds_are_refused_as_such(pattern):
    with pytest.raises(Mistake, match="#/pattern cannot be held"):
        schema.automaton({"type": "string", "pattern": pattern})


@pytest.mark.slow
def test_a_tree_is_as_deep_as_it_is_small_enough():
    def deep(levels: int) -> bytes:
        return b'{"value": "", "kids": [' * levels + b'{"value": "", "kids": []}' + b"]}" * levels

    assert schema.automaton(TREE).matches(deep(3)) and not schema.automaton(TREE).matches(deep(9))
    endless = members(value=STRING, kids={"type": "array", "items": {"$ref": "#"}})
    automaton = schema.automaton(endless)
    assert automaton.matches(deep(15)) and not automaton.matches(deep(20))
    wide = {"type": "object", "properties": {f"m{i}": {"$ref": "#"} for i in range(20)}}
    assert schema.automaton(wide).matches(b'{"m3": {}}')


@pytest.mark.slow
def test_a_deployment_takes_two_seconds():
    """As large as Kubernetes' own: 40,000 states."""
    leaf = {f"leaf{i}": {"anyOf": [STRING, {"type": "null"}]} for i in range(12)}
    middle = {f"middle{i}": {"type": "object", "properties": leaf} for i in range(12)}
    made = {"type": "object", "properties": {f"top{i}": {"type": "object", "properties": middle} for i in range(8)}}
    start = time.process_time()
    assert schema.automaton(made, Budget(reach=10**6)).size > 20_000
    assert time.process_time() - start < 2
