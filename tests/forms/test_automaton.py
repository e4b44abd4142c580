"""Expressions against Python's own regular expressions."""

from __future__ import annotations

import random
import re

import pytest

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms.automaton import Budget, minimised
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
    (Repeat(either("a", "b"), 1, 3, Text(",")), "[ab](,[ab]){0,2}"),
    (Repeat(Chars(((97, 98),)), 0, None, Text(",")), "([ab](,[ab])*)?"),
    (Repeat(Text("b"), 0, 0, Text(",")), ""),
    (Repeat(optional("b"), 3, None, Text(",")), "b?,b?(,b?)+"),
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


def random_expression(draw: random.Random, depth: int, parts: list):
    """An expression, and the regular expression of Python's that says the same. Takes earlier `parts` again."""
    if parts and draw.random() < 0.3:
        return draw.choice(parts)
    kind = draw.randrange(5 if depth else 2)
    inner = [random_expression(draw, depth - 1, parts) for _ in range(draw.randint(1, 3))] if kind > 1 else []
    (expressions, same) = zip(*inner, strict=True) if inner else ((), ())
    if kind == 0:
        made = Text(text := draw.choice(["a", "ab", "é", ""])), text
    elif kind == 1:
        made = draw.choice([(Chars(((97, 98),)), "[ab]"), (Chars(((233, 0x10FFFF), (97, 97))), "[é-\U0010ffffa]")])
    elif kind == 2:
        made = series(*expressions), "".join(same)
    elif kind == 3:
        made = either(*expressions), "(?:" + "|".join(same) + ")"
    else:
        least, most = draw.choice([(0, None), (1, None), (2, 3), (0, 2), (3, 3)])
        made = Repeat(expressions[0], least, most), f"(?:{same[0]}){{{least},{'' if most is None else most}}}"
    parts.append(made)
    return made


def test_random_expressions_match_what_re_matches():
    matched = 0
    for seed in range(300):
        draw = random.Random(f"expression {seed}")
        expression, same = random_expression(draw, 3, [])
        automaton, compiled = build_automaton(expression), re.compile(same)
        assert minimised(automaton, Budget()).size == automaton.size  # it is minimal already
        for _ in range(60):
            text = "".join(draw.choice("aabbé🙂") for _ in range(draw.randint(0, 7)))
            found = compiled.fullmatch(text) is not None
            assert automaton.matches(text.encode()) == found, (same, text)
            matched += found
    assert matched > 1500


def test_what_is_beyond_reach_costs_nothing():
    item = series("a", optional("b"))
    cut = build_automaton(Repeat(item, 2, 10**9), Budget(reach=50))
    assert cut.size < 10
    exact = build_automaton(Repeat(item, 2, 49), Budget(reach=50))
    for n in range(51):
        assert cut.matches(b"a" * n) == (n >= 2) and exact.matches(b"a" * n) == (2 <= n <= 49)


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
    [
        (Repeat(Repeat(ANY, 0, 400), 0, 400), "states"),
        (Repeat(Text(""), 10**9), "states"),
        pytest.param(series(Repeat(ANY), "a", Repeat(ANY, 30, 30), "b"), "work|states", marks=pytest.mark.slow),
        (Both(Text("a"), Text("b")), "nothing fits"),
        (Chars(()), "nothing fits"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_too_large_or_empty(expression, words):
    with pytest.raises(Mistake, match=words):
        build_automaton(expression)


@pytest.mark.parametrize("text", ["((((a{9}){9}){9}){9})", "a.{30}b", "(a?){99}(b?){99}(a?){99}x{9999}", "(.*a){300}"])
@pytest.mark.sample(2)
def test_a_pattern_takes_no_more_work_than_its_budget(text):
    with pytest.raises(Mistake, match=r"work|states"):
        build_automaton(pattern(text))


@pytest.mark.parametrize(
    "text", ["(x+x+)+y", ".*" * 50 + "x", "^((((a{9}){9}){9}){9})$", "(a|aa)+$", "^(a?){99}(b?){99}$"]
)
def test_patterns_that_take_little_work(text):
    assert build_automaton(pattern(text)).size < 7000


PATTERNS = ["^a|b$", "^(a|b)$", "^a$|^b$", "x", "^\\w+@\\w+\\.com$", "[^\\d]", "^[^a-c]*$", "a{2,3}?", "(?:ab)+$"]
PATTERNS += [
    "^$",
    ".",
    "^(?:$|abx)$",
    "(^|,)a(,|$)",
    "[\\s\\S]b",
    "^[^\\W]+\\S$",
    "(a|^b)x",
    "[a\\-b]{2,}",
    "^a{2}b{0,1}$",
    "x{",
]
PATTERNS += ["(?P<name>a)b", "\\x61\\u0062", "[ab\\]^]$", "^^a", "b$$", "a|", "()", "@\\.", "[\\b]|a"]


@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_is_found_where_re_finds_it(text):
    automaton, draw = build_automaton(pattern(text)), random.Random(text)
    for _ in range(2000):
        tried = "".join(draw.choice("abx@.com1 \u0661é\n") for _ in range(draw.randint(0, 7)))
        if automaton.matches(tried.encode()):
            assert re.search(text, tried), tried
        elif re.search(text, tried):  # narrower only in what "." and classes are, and before a last line end
            assert not tried.isascii() or "\n" in tried, tried


def test_random_patterns_are_found_where_re_finds_them():
    held = matched = 0
    for seed in range(600):
        draw = random.Random(f"pattern {seed}")
        pieces = [
            "a",
            "b",
            "x",
            ".",
            "|",
            "(",
            ")",
            "(?:",
            "^",
            "$",
            "*",
            "+?",
            "{2}",
            "[ab]",
            "[^a]",
            "\\d",
            "\\W",
            "-",
        ]
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 8)))
        try:
            compiled = re.compile(text)
        except re.error:
            with pytest.raises(Mistake):  # (or what is ECMA-262's alone, which is not among the pieces)
                pattern(text)
            continue
        try:
            automaton = build_automaton(pattern(text))
        except Mistake:
            continue
        held += 1
        for _ in range(80):
            tried = "".join(draw.choice("aabx1-") for _ in range(draw.randint(0, 6)))
            found = compiled.search(tried) is not None
            assert automaton.matches(tried.encode()) == found, (text, tried)
            matched += found
    assert held > 150 and matched > 3000


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        (r"^[\w-\.]+@([\w-]+\.)+[\w-]{2,4}$", ["a-b.c@d.org"], ["a b@d.org"]),
        (r"^(?<year>\d{4})-(?<month>\d{2})$", ["2024-05"], ["24-05"]),
        (r"^\p{L}+$", ["aéЖ天"], ["a1", ""]),
        (r"^[\p{Lu}\d]\P{Lu}$", ["Éa", "1é"], ["aa", "ÉÉ"]),
        (r"^\u{1F600}$", ["😀"], ["u"]),
        (r"^\ud83d\ude00$", ["😀"], ["\ude00".encode("utf-8", "replace").decode()]),
        (r"^\cJ$", ["\n"], ["J"]),
        (r"^[+\-\d-x]$", ["+", "-", "x", "7"], ["k"]),
    ],
)
def test_patterns_of_ecma_262_alone(text, matching, others):
    automaton = build_automaton(pattern(text))
    assert all(automaton.matches(each.encode()) for each in matching)
    assert not any(automaton.matches(each.encode()) for each in others)


REFUSED = [
    ("a(?=b)", "look-around"),
    ("(?<!a)b", "look-around"),
    ("(a)\\1", "reference"),
    ("(?<n>a)\\k<n>", "reference"),
    ("\\bx", "word boundary"),
    ("a^b", "^ can be held only"),
    ("(a$)*", "$ can be held only"),
    ("(?i)a", "flags"),
    ("[a", "not closed"),
    ("(a", "not closed"),
    ("a)", "not opened"),
    ("[]", "empty class"),
    ("[^]", "empty class"),
    ("a++", "nothing that it could repeat"),
    ("^*", "nothing that it could repeat"),
    ("a{2}{3}", "nothing that it could repeat"),
    ("a{,3}", "{0,"),
    ("a{3,2}", "at least 3 and at most 2"),
    ("[z-a]", "wrong way round"),
    ("\\A", "escape"),
    ("\\p{Greek}", "general categories"),
    ("\\u{110000}", "no character"),
    ("\\", "escape"),
    ("(?:^|^)" * 30, "work"),
    ("a{99999999999}", "too large"),
    ("a" * 20_000, "10000 characters at most"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=lambda value: value[:20])
def test_patterns_that_cannot_be_held(text, words):
    with pytest.raises(Mistake) as caught:
        pattern(text)
    assert words in str(caught.value) and len(str(caught.value)) < 300


def test_complement():
    assert without(((97, 99), (98, 200))) == ((0, 96), (201, 0x10FFFF))
