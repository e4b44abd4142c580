"""What a model says of itself, as a document of a form."""

from __future__ import annotations

import json
import random
from itertools import permutations

import pytest
import schema_rates

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.construction import build_automaton
from mlx_dgemma.forms.notation import JSON
from mlx_dgemma.forms.projection import projected as projected_pieces
from mlx_dgemma.forms.template import template

SAID = {"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}


def projected(automaton, text: str) -> str | None:
    found = projected_pieces(automaton, JSON.pieces(text.encode()), JSON)
    return found and found.decode()


def form(names: str, optional: str = "") -> dict:
    properties = {name: schema_rates.PERSON[name] for name in f"{names} {optional}".split()}
    return {"type": "object", "properties": properties, "required": names.split()}


@pytest.mark.parametrize("names", ["name age job city", "city name", "age", "job age name"])
def test_members_that_are_asked_for_in_the_order_of_the_form(names):
    found = projected(schema.automaton(form(names)), json.dumps(SAID))
    assert found == json.dumps({name: SAID[name] for name in names.split()})


def test_members_that_may_be_left_out():
    automaton = schema.automaton(form("city", "name age") | {"required": ["age"]})
    assert (
        projected(automaton, '{"name": "Zoe", "age": 3, "city": "Oslo"}') == '{"city": "Oslo", "name": "Zoe", "age": 3}'
    )
    assert projected(automaton, '{"age": 3}') == '{"age": 3}'
    assert projected(automaton, '{"name": "Zoe"}') is None


def test_no_member_is_lost_that_may_stand_before_one_that_must():
    automaton = schema.automaton(form("job") | {"properties": schema_rates.PERSON})
    for order in permutations(SAID):
        assert projected(automaton, json.dumps({name: SAID[name] for name in order})) == json.dumps(SAID)


def test_inside_lists_and_prose():
    automaton = schema.automaton({"type": "array", "items": form("city name")})
    said = f"Sure:\n```json\n{json.dumps([SAID, SAID], indent=1)}\n```"
    one = '{"city": "Kyiv", "name": "Ivan"}'
    assert projected(automaton, said) == f"[{one}, {one}]"


@pytest.mark.parametrize(
    "said",
    ["", "no", "{", '{"city": 3, "name": "x"}', '{"city": NaN, "name": "x"}', "[" * 9000, '{"name": "x"}', "7" * 9000],
)
def test_what_is_no_document(said):
    assert projected(schema.automaton(form("city name")), said) is None


def test_an_object_of_very_many_members_is_given_up():
    said = json.dumps({f"n{i}": i for i in range(20_000)} | SAID)
    assert projected(schema.automaton(form("city name")), said) is None


def test_a_template_that_is_json():
    automaton = build_automaton(template('{{"job": "{job:clerk|vet}", "age": {age:integer}}}'))
    assert projected(automaton, json.dumps(SAID)) == '{"job": "clerk", "age": 43}'


@pytest.mark.parametrize("number", range(40))
@pytest.mark.sample(10)
def test_whatever_is_said_it_is_a_document_or_none(number):
    draw = random.Random(number)
    made = schema_rates.random_schema(draw)
    try:
        automaton = schema.automaton(made)
    except Mistake:
        return
    for _ in range(20):
        found = projected(automaton, json.dumps(schema_rates.random_value(draw, 3)))
        assert found is None or schema_rates.valid(made, found)
