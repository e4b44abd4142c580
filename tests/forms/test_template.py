"""Templates with slots."""

from __future__ import annotations

import random
import re

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


def test_slots_are_read_as_re_reads_them():
    """By the expression that backtracks: each slot takes as little as it can, the first ones first."""
    draw, read_again = random.Random(0), 0
    for _ in range(1500):
        texts = [draw.choice(["a", "ab", "b", "", ","]) for _ in range(draw.randint(2, 5))]
        kinds = [draw.choice(["", ":text", ":a|ab|b", ":ab||a"]) for _ in texts[1:]]
        made = texts[0] + "".join(
            f"{{s{i}{kind}}}{text}" for i, (kind, text) in enumerate(zip(kinds, texts[1:], strict=True))
        )
        slots = [f"({kind[1:] if '|' in kind else '.+?'})" for kind in kinds]
        same = texts[0] + "".join(slot + text for slot, text in zip(slots, texts[1:], strict=True))
        output = "".join(draw.choice("aab,\n") for _ in range(draw.randint(0, 9)))
        match = re.fullmatch(same, output, re.DOTALL)
        expected = {f"s{i}": value for i, value in enumerate(match.groups())} if match else {}
        assert filled(made, output) == expected, (made, output)
        read_again += bool(match)
    assert read_again > 30


def test_slots_of_a_long_text_are_read_in_linear_time():
    """`re` would take years: there are (20,000 / 4)^40 ways to place 40 spaces."""
    made = " ".join(f"{{s{i}}}" for i in range(40))
    assert filled(made + "!", "a b " * 5000) == {}
    assert filled(made + "!", "a b " * 5000 + "!")["s39"].startswith("b a b")


@pytest.mark.parametrize("wrong", ["no slots", "{", "{}", "{a} {a}", "{a:colour}", "{a!r}", "{0}", '{"a": "{b}"}'])
def test_templates_that_are_none(wrong):
    with pytest.raises(Mistake, match=r"template|slot"):
        template(wrong)
