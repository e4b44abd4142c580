"""JSON schemas as languages: what is in them, what is refused, and that outputs validate."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import replace
from fractions import Fraction

import jsonschema
import pytest
import schema_rates

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.automaton import Budget
from mlx_dgemma.forms.construction import build_automaton
from mlx_dgemma.forms.language import Language, begin_within
from mlx_dgemma.forms.lattice import Vocabulary
from mlx_dgemma.forms.numeral import number
from mlx_dgemma.seam.model import Text
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run

RUNS = int(os.environ.get("RUNS", "1"))  # how many times as many random schemas
NESTED = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[A-Z]{2}\\d+$", "maxLength": 5},
        "b": {"type": ["integer", "null"], "minimum": 18, "maximum": 120},
        "c": {"enum": ["x", 'y"z', None, 1.5]},
        "d": {"type": "array", "items": {"$ref": "#/$defs/flag"}, "maxItems": 3},
    },
    "required": ["b"],
    "$defs": {"flag": {"type": "boolean", "title": "A flag"}},
}
DOCUMENTS = [
    {"b": 18},
    {"b": None, "d": []},
    {"a": "AB123", "b": 120, "c": 'y"z', "d": [True, False]},
    {},
    {"a": "AB1234", "b": 120},
    {"b": 17},
    {"b": 20, "d": [True] * 4},
    {"b": 20, "c": "y"},
    {"a": "ab1", "b": 20},
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_holds_what_is_valid(document):
    automaton = build_automaton(schema.automaton(NESTED))
    valid = jsonschema.Draft202012Validator(NESTED).is_valid(document)
    assert automaton.matches(json.dumps(document).encode()) == valid


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 12 + 16 * RUNS), marks=pytest.mark.slow)], ids=str)
def test_whatever_the_automaton_accepts_is_valid(seeds):
    """Random schemas, and random texts of theirs."""
    count = 0
    for seed in seeds:
        draw = random.Random(f"sample {seed}")
        made = schema_rates.random_schema(draw)
        automaton, validator = schema.automaton(made), jsonschema.Draft202012Validator(made)
        for _ in range(20):
            text = schema_rates.sampled(automaton, draw)
            assert automaton.matches(text) and validator.is_valid(json.loads(text)), (made, text)
            count += len(text) > 20
    assert count > 5 * len(seeds)


def test_strings_are_any_text_and_escaped():
    automaton = build_automaton(schema.automaton({"type": "string", "maxLength": 12}))
    for text in ("", 'a "b"', "\\", "\n\t\x00", "Größe 🧑‍🚀 天空", "/" * 12):
        assert automaton.matches(json.dumps(text, ensure_ascii=False).encode()), text
    for wrong in ('"', '"a"b"', '"\n"', '"\\"', '"' + "é" * 13 + '"'):
        assert not automaton.matches(wrong.encode()), wrong


@pytest.mark.parametrize("whole", [True, False])
def test_numbers_between_bounds(whole):
    draw = random.Random(0)
    for _ in range(12):
        low = draw.choice([None, (Fraction(draw.randint(-900, 90)), True), (Fraction(draw.uniform(-9, 9)), False)])
        above = (low[0] if low else 0) + Fraction(draw.uniform(1.5, 900))
        high = draw.choice([None, (above, draw.random() < 0.5)])
        automaton, inside = build_automaton(number(low, high, whole=whole)), 0
        for _ in range(200):
            text = draw.choice([str(draw.randint(-999, 999)), f"{draw.uniform(-15, 15):.{draw.randint(1, 6)}f}"])
            value = Fraction(json.loads(text))
            fits = low is None or (value > low[0] if low[1] else Fraction(text) >= low[0])
            fits = fits and (high is None or (value < high[0] if high[1] else Fraction(text) <= high[0]))
            fits = fits and not (whole and "." in text)
            if float(text) or text[0] != "-":
                assert automaton.matches(text.encode()) == fits, (text, low, high)
                inside += fits
        assert inside


def test_a_bound_left_out_is_so_for_what_the_text_is_read_as():
    automaton = build_automaton(number((Fraction(0.1), True), (Fraction(1e-7) + Fraction(0.1), False), whole=False))
    assert automaton.matches(b"0.1000001") and not automaton.matches(b"0.1000000")
    build_automaton(number((Fraction(10**20), True), None, whole=False))  # doubles are far apart there


NAMES = {"type": "string", "maxLength": 40}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "mail": NAMES,
    },
    "required": ["name", "age", "mail"],
}


def people(number: int) -> dict:
    properties = {f"person {i}": {"$ref": "#/$defs/person"} for i in range(number)}
    return {"type": "object", "properties": properties, "required": list(properties), "$defs": {"person": PERSON}}


def doubling(levels: int) -> dict:
    """Each level has two of the next."""
    pairs = [{"type": "object", "properties": {n: {"$ref": f"#/$defs/{i + 1}"} for n in "ab"}} for i in range(levels)]
    definitions = {str(i): pair | {"required": ["a", "b"]} for i, pair in enumerate(pairs)}
    return {"$ref": "#/$defs/0", "$defs": definitions | {str(levels): {"type": "boolean"}}}


def nested(depth: int, **limits) -> dict:
    made: dict = {"type": "null"}
    for _ in range(depth):
        made = {"type": "array", "items": made, **limits}
    return made


LIGHT = {
    "one definition used 40 times": people(40),
    "200 optional members": {"type": "object", "properties": {f"m{i}": {"type": "integer"} for i in range(200)}},
    "8 levels that double": doubling(8),
    "a pattern that backtracks": {"type": "string", "pattern": "(x+x+)+y", "maxLength": 400},
    "1000 values": {"enum": [f"value {i * i * 7919 % 10007}" for i in range(1000)]},
    "50 levels": nested(50),
    "50 levels of one item": nested(50, minItems=1, maxItems=1),
    "10 levels of two items": nested(10, maxItems=2),
}


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.sample(2)
def test_large_schemas_that_are_held(name):
    assert schema.automaton(LIGHT[name]).size <= 50_000


@pytest.mark.slow
def test_work_grows_with_the_document(monkeypatch):
    budgets = []
    monkeypatch.setattr(schema, "Budget", lambda **given: budgets.append(Budget(**given)) or budgets[-1])
    for uses in (10, 20):
        schema.automaton(people(uses))
    first, second = (Budget().left - budget.left for budget in budgets)
    assert second < 2.2 * first


HEAVY = [
    (doubling(20), "#/$defs/"),
    (people(200), "# cannot be held: it takes more than 50000 states"),
    ({"enum": [f"value number {i}" for i in range(100_000)]}, "#/enum cannot be held: its values have"),
    ({"type": "string", "enum": [f"value {i}" for i in range(100_000)]}, "#/enum"),
    ({"type": "string", "minLength": 10**4, "maxLength": 10**6}, "# cannot be held"),
    ({"type": "object", "properties": {"x": {"type": "string", "minLength": 10**9}}}, "#/properties/x cannot be held"),
    ({"type": "array", "maxItems": 9999, "items": PERSON}, "# cannot be held"),
    (
        {"properties": {"a": NAMES, "x": {"anyOf": [NAMES, nested(1) | {"maxItems": 10**7}]}}},
        "/anyOf/1",
    ),
    pytest.param(
        {"type": "array", "items": {"type": "string", "pattern": "a.{30}b"}},
        "#/items/pattern cannot be held",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"type": "string", "pattern": "((((a{9}){9}){9}){9})"},
        "#/pattern cannot be held: it takes too much work",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"properties": {str(i): {"pattern": "(x+x+)+y", "maxLength": 300 + i} for i in range(99)}},
        "/pattern",
        marks=pytest.mark.slow,
    ),
    (nested(20_000), "nested too deep"),
    ({"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(900)}}, "nested too deep"),
]


@pytest.mark.parametrize(("heavy", "words"), HEAVY, ids=lambda value: value if isinstance(value, str) else "schema")
def test_what_is_too_large_is_refused_by_name(heavy, words):
    with pytest.raises(Mistake) as caught:
        schema.automaton(heavy)
    assert words in str(caught.value)


def texts(**fields: dict) -> dict:
    return {"type": "object", "properties": fields, "required": list(fields)}


MAIL = {"type": "string", "format": "email", "maxLength": 254}
LONG = {  # texts with limits that would take too many states -> characters that are held all the same
    "one": ({"type": "string", "maxLength": 4096}, 2000),
    "one that is long": ({"type": "string", "minLength": 1500, "maxLength": 65_536}, 2000),
    "forty": (texts(**{f"f{i}": {"type": ["string", "null"], "maxLength": 255} for i in range(40)}), 60),
    "in a list": ({"type": "array", "items": {"type": "string", "maxLength": 4000}}, 1000),
    "a pattern": ({"type": "string", "pattern": "^x+$", "maxLength": 4096}, 2000),
    "addresses": (texts(**dict.fromkeys("abcde", MAIL)), 0),
    "a pattern that is long": ({"type": "string", "pattern": "^x{128}$", "maxLength": 128}, 128),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize(("limited", "length"), LONG.values(), ids=LONG)
def test_a_length_is_counted_as_far_as_states_allow(limited, length):
    automaton = build_automaton(schema.automaton(limited, Budget(reach=2**18)))
    text = "x" * length
    written = {"object": dict.fromkeys(limited.get("properties", ()), text), "array": [text], "string": text}
    document = json.dumps(written[limited["type"]])
    assert automaton.matches(document.encode()) or not length
    if limited["type"] == "string":  # never more than are allowed
        assert not automaton.matches(json.dumps("x" * (limited["maxLength"] + 1)).encode())


def test_a_limit_beyond_reach_costs_nothing():
    made = {"type": "array", "maxItems": 5000, "items": {"type": "string", "maxLength": 10**6}}
    assert schema.automaton(made, Budget(reach=4000)).size < 50


def test_values_are_checked_by_our_patterns():
    """Python's would take years over the first, and cannot read the second."""
    with pytest.raises(Mistake, match="none of its values"):
        schema.automaton({"enum": ["x" * 60], "pattern": "(x+x+)+y"})
    automaton = schema.automaton({"enum": ["Ä1", "ä1", "Ö"], "pattern": "^\\p{Lu}\\d$"})
    assert automaton.matches('"Ä1"'.encode()) and not automaton.matches('"Ö"'.encode())
    with pytest.raises(Mistake, match="a look-around cannot be held"):
        schema.automaton({"enum": ["a"], "pattern": "(?!b)a"})


LOOP = {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}]}}}
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
OVERLAP = {
    "type": "array",
    "items": {"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]},
}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "strin"}, "no JSON schema: 'strin'"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "#/maxItems"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "#/maxLength"),
        ({"type": "string", "pattern": "a(?=b)"}, "#/pattern"),
        ({"type": "string", "pattern": "^a{9}$", "maxLength": 3}, "#/pattern cannot be held: nothing fits"),
        ({"type": "integer", "minimum": 0.1, "maximum": 0.9}, "bounds"),
        ({"enum": [1, 2], "type": "string"}, "#/enum"),
        ({"$ref": "https://example.org/x.json"}, "#/$ref"),
        ({"$ref": "#/$defs/none"}, "#/$ref"),
        ({"$ref": "#anchor"}, "#/$ref"),
        ({"type": "number", "exclusiveMinimum": 10**400}, "#/exclusiveMinimum"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 0}, "bounds leave no number"),
        (
            {"type": "object", "properties": {"x/y": {"type": "null", "not": {}}}, "required": ["x/y"]},
            "nothing fits it",
        ),
        ({"not": {"pattern": "a", "type": "string"}, "type": "string"}, "#"),
        (OVERLAP, "#/items/oneOf cannot be held: its options do not exclude each other"),
        (LOOP, "#/$defs/n cannot be held: it refers to itself"),
        (ENDLESS, "it refers to itself, so no document of it ends"),
        (False, "# cannot be held: nothing fits it"),
        ({"$dynamicRef": "#x"}, "#/$dynamicRef"),
        ({"type": "object", "unevaluatedProperties": False}, "#/unevaluatedProperties"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "#/uniqueItems cannot be held: only va"),
        pytest.param(
            {"properties": {"a": {"patternProperties": {f"^(a|b)*a(a|b){{{n}}}$": {} for n in (9, 10, 11)}}}},
            "#/properties/a cannot be held: it takes too much work",
            marks=pytest.mark.slow,
        ),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "#/$schema cannot be held: draft 3"),
        ({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2}, "#/minProperties"),
        ({"enum": [1e400]}, "#/enum cannot be held: JSON has no number so large"),
        ({"type": "string", "pattern": "^(?<a>x)(?=y)"}, "a look-around cannot be held, at '(?=y)'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused_by_name(wrong, words):
    with pytest.raises(Mistake) as caught:
        schema.automaton(wrong)
    assert words in str(caught.value), caught.value


@pytest.mark.parametrize("text", ["nope", '{"const": NaN}'])
def test_a_file_that_is_no_json(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(Mistake, match="is not JSON"):
        schema.read(tmp_path / "s.json")


@pytest.fixture(scope="module")
def models():
    return schema_rates.models()


@pytest.mark.parametrize("name", ["embedded", "bytes, random", "bpe, random"])
@pytest.mark.parametrize("numbers", [range(2), pytest.param(range(2, 2 + 5 * RUNS), marks=pytest.mark.slow)], ids=str)
def test_outputs_validate(models, name, numbers):
    """Seven of the 500 schemas that schema_rates.py tries."""
    found = schema_rates.validity(models[name], numbers, passes=3)
    assert found["valid"] == found["fit"] >= len(numbers) - 1


@pytest.mark.parametrize("passes", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_outputs_validate_after_one_pass_and_after_more(models, passes):
    found = schema_rates.validity(models["bpe, random"], range(12, 15), passes=passes)
    assert found["valid"] == found["fit"] == 3


@pytest.mark.slow
def test_values_are_as_right_as_in_free_text(models):
    found = schema_rates.values(models["embedded"], 12, 1)
    assert found["schema"]["right"] >= found["free"]["right"] - 0.03
    assert found["schema"]["passes"] < found["free"]["passes"] + 1


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "every"), [("diffusion", 3), ("ar", 5)])
def test_values_are_right_where_some_members_are_asked_for_in_any_order(models, mode, every):
    """In every third or fifth of the 36 orders; RUNS=2 takes all of them, twice. Free text is right in 99.5 %."""
    runs = (1, every) if RUNS == 1 else (RUNS, 1)
    assert schema_rates.narrow(models["embedded"], runs[0], mode, runs[1])["right"] >= 0.945


@pytest.mark.parametrize("name", ["embedded", "bpe, random"])
def test_the_shortest_document_fits_exactly_and_no_less(models, name):
    model, tokenizer, sampling = models[name]
    ask = Ask(sampling=replace(sampling, max_denoising_steps=3))
    vocabulary = Vocabulary(tokenizer, model.facts.vocab_size)
    language = Language(model, vocabulary, schema.automaton(NESTED | {"required": ["a", "b", "c"]}))
    shortest = int(language.lattice.left[0])
    for room in (shortest, shortest + 1):
        answer = Answer(model.facts, tokenizer, room)
        for step in run(model, [begin_within(model, Text([2]), replace(ask, max_tokens=room), language)]):
            answer.add(step)
        assert schema_rates.valid(NESTED, answer.text) and answer.finish_reason == "stop"
    with pytest.raises(Mistake, match=f"takes {shortest} tokens, and there is room for {shortest - 1}"):
        begin_within(model, Text([2]), replace(ask, max_tokens=shortest - 1), language)


def test_a_class_that_repeats_itself_is_one():
    made = schema.automaton({"type": "string", "pattern": "^[" + "\\p{L}\\p{N}" * 900 + "]$"})
    assert made.matches('"ä"'.encode()) and made.matches(b'"7"') and not made.matches(b'"-"')


def test_values_are_checked_in_linear_time():
    given = {"enum": [{"x": {"a" * 40 + "!": 1}}], "properties": {"x": {"patternProperties": {"^(a+)+$": False}}}}
    assert schema.automaton(given).matches(json.dumps(given["enum"][0]).encode())
    many = {"enum": [list(range(2000)), [1, 1.0]], "uniqueItems": True}
    assert not schema.automaton(many).matches(b"[1, 1.0]")


@pytest.mark.slow
def test_members_that_all_refer_to_the_whole_take_two_seconds():
    """As ajv's schema of secure schemas: 41 cases, and 40 members of which each is the whole again."""
    names = [f"m{i}" for i in range(40)]
    needs = [{"properties": {name: False}} if i % 2 else {"required": [name]} for i, name in enumerate(names)]
    made = {"properties": {name: {"$ref": "#"} for name in names}, "anyOf": [*needs, {"type": "boolean"}]}
    start = time.process_time()
    schema.automaton(made)
    assert time.process_time() - start < 2


def test_a_number_beyond_json_in_a_file(tmp_path):
    (tmp_path / "s.json").write_text('{"enum": [1e400]}')
    with pytest.raises(Mistake, match="1e400 is too large a number"):
        schema.read(tmp_path / "s.json")
