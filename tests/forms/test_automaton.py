"""Expressions against Python's own regular expressions."""

from __future__ import annotations

import random
import re

import pytest

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms.construction import build_automaton, utf8
from mlx_dgemma.forms.expression import ANY, Both, Chars, Joined, Repeat, Text, either, optional, series, without
from mlx_dgemma.forms.pattern import pattern

CASES = [
    (series("a", optional("b"), Repeat(Text("é"), 1)), "ab?é+"),
    (either("a", series("ab", Repeat(Chars(((0x20, 0x10FFFF),)), 2, 3)), ""), "a|ab[^\x00-\x1f]{2,3}|"),
    (Repeat(either("ab", "a"), 0, 3), "(ab|a){0,3}"),
    (Repeat(Repeat(Text("b"), 0, 2)), "(b{0,2})*"),
    (Both(Repeat(ANY, 2, 4), series(Repeat(ANY), "b", Repeat(ANY))), "(?=.{2,4}$).*b.*"),
    (Joined((Text("a"), Text("b"), Text("é")), (False, True, False), Text(",")), "(a,)?b(,é)?"),
    (Joined((Text("a"), Text("b")), (False, False), Text(",")), "(a(,b)?|b)?"),
]


@pytest.mark.parametrize(("expression", "same"), CASES)
def test_matches_what_re_matches(expression, same):
    automaton, draw, matched = build_automaton(expression), random.Random(0), 0
    for _ in range(4000):
        text = "".join(draw.choice("aabb,é🙂") for _ in range(draw.randint(0, 6)))
        found = re.fullmatch(same, text) is not None
        assert automaton.matches(text.encode()) == found, text
        matched += found
    assert matched > 20


def test_every_character_is_one_way_of_bytes_and_nothing_else_is_a_character():
    automaton = build_automaton(ANY)
    for code in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF):
        assert automaton.matches(chr(code).encode())
    for wrong in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x82", b"\xff"):
        assert not automaton.matches(wrong)
    assert sum(len(product) for product in utf8(0, 0x10FFFF)) < 40


def test_what_only_one_byte_can_follow_is_known():
    automaton = build_automaton(series("ab", either("c", "d")))
    assert [chr(byte) if byte >= 0 else None for byte in automaton.only] == ["a", "b", None, None]


@pytest.mark.parametrize(
    ("expression", "words"),
    [(Repeat(Repeat(ANY, 0, 400), 0, 400), "states"), (Both(Text("a"), Text("b")), "nothing fits")],
)
def test_too_large_or_empty(expression, words):
    with pytest.raises(Mistake, match=words):
        build_automaton(expression)


PATTERNS = ["^a|b$", "^(a|b)$", "^a$|^b$", "x", "^\\w+@\\w+\\.com$", "[^\\d]", "^[^a-c]*$", "a{2,3}?", "(?:ab)+$"]
PATTERNS += ["^$", "."]


@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_is_found_where_re_finds_it(text):
    automaton, draw = build_automaton(pattern(text)), random.Random(text)
    for _ in range(2000):
        tried = "".join(draw.choice("abx@.com1 \u0661é\n") for _ in range(draw.randint(0, 7)))
        if automaton.matches(tried.encode()):
            assert re.search(text, tried), tried
        elif re.search(text, tried):  # narrower only in what "." and classes are, and before a last line end
            assert not tried.isascii() or "\n" in tried, tried


@pytest.mark.parametrize("text", ["a(?=b)", "(a)\\1", "\\bx", "a^b", "(?i)a", "[a"])
def test_patterns_that_cannot_be_held(text):
    with pytest.raises(Mistake):
        pattern(text)


def test_complement():
    assert without(((97, 99), (98, 200))) == ((0, 96), (201, 0x10FFFF))
