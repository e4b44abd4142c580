"""Templates with slots."""

from __future__ import annotations

import pytest

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms.construction import build_automaton
from mlx_dgemma.forms.template import filled, template

LETTER = "Dear {name},\nyou are {age:integer} {{years}} {old:old|young}.\n{body:text}"


def test_slots_take_what_they_say():
    automaton = build_automaton(template(LETTER))
    assert automaton.matches("Dear Zoë B.,\nyou are 31 {years} young.\na\nb".encode())
    for wrong in ("Dear \n,\nyou are 31 {years} old.\nx", "Dear A,\nyou are 3x {years} old.\nx", LETTER):
        assert not automaton.matches(wrong.encode())


def test_slots_are_read_again():
    text = "Dear Zoë, B.,\nyou are -31 {years} old.\na, b\nc"
    assert filled(LETTER, text) == {"name": "Zoë, B.", "age": "-31", "old": "old", "body": "a, b\nc"}


@pytest.mark.parametrize("wrong", ["no slots", "{", "{}", "{a} {a}", "{a:colour}", "{a!r}", "{0}", '{"a": "{b}"}'])
def test_templates_that_are_none(wrong):
    with pytest.raises(Mistake, match=r"template|slot"):
        template(wrong)
