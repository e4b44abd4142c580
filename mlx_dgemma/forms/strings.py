"""Texts as JSON writes them between quotes, and the automata of patterns and formats."""

import json
from functools import cache, lru_cache
from typing import Any

from ..errors import Mistake
from .automaton import Automaton, Budget
from .construction import build_automaton
from .expression import ANY, Chars, Either, Expression, Ranges, Repeat, Series, Text, overlap, series, without
from .pattern import pattern

ESCAPED: Ranges = ((0, 31), (34, 34), (92, 92))  # control characters, quote, backslash
DATE = (
    r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
BYTE = r"(?:25[0-5]|2[0-4]\d|1\d{2}|[1-9]?\d)"
WORD = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
FORMATS = {  # those that are cheap to hold; each has only texts that are surely right
    "date": f"^{DATE}$",
    "date-time": f"^{DATE}T{TIME}$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "email": rf"^[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{WORD}(?:\.{WORD})+$",
    "ipv4": rf"^{BYTE}(?:\.{BYTE}){{3}}$",
}


class Strings:
    """The automata of one schema's patterns and formats, each made once."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.made: dict[tuple[str, bool], Automaton] = {}

    def plain(self, text: str) -> Automaton:
        """The texts in which the pattern `text` is found."""
        return self._made(text, False)

    def content(self, text: str) -> Automaton:
        """The texts of `plain`, as they are written between quotes."""
        return self._made(text, True)

    def _made(self, text: str, inside: bool) -> Automaton:
        if (text, inside) not in self.made:
            found = pattern(text)
            self.made[text, inside] = build_automaton(escaped(found) if inside else found, self.budget)
        return self.made[text, inside]


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


@lru_cache(maxsize=1000)
def _escaped_class(ranges: Ranges) -> Expression:
    plain = Chars(overlap(ranges, without(ESCAPED)))
    special = (chr(c) for a, b in overlap(ranges, ESCAPED) for c in range(a, b + 1))
    return Either((plain, *(Text(json.dumps(character)[1:-1]) for character in special)))


@cache
def character() -> Automaton:
    """One character of a JSON string."""
    return build_automaton(escaped(ANY))


def quoted(content: Expression) -> Expression:
    return series('"', content, '"')


def written(value: Any) -> str:
    """`value` as JSON. Mistake where it is not JSON: Python reads 1e400 as infinite."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise Mistake("JSON has no number so large") from None
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # half a character, which JSON can name but not write
        return json.dumps(value)
