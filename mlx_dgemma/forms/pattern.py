"""A schema's `pattern` -> the expression (`expression.py`) of the texts in which it is found.

Patterns are regular expressions of ECMA-262, as JSON Schema says, without what no finite automaton can hold.
`jsonschema` looks for them with Python's `re` instead. Where the two dialects differ, the expression has only texts in
which both find the pattern: a class such as \\w has ASCII characters alone, a dot is no line end of any kind, and $ is
the very end. Where they disagree more than that (\\A, [], a++) the pattern is refused. Python cannot read (?<name>…),
\\p{L}, \\u{1F600} and [\\w-.] at all: these are ECMA-262's alone.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TypeAlias

from ..errors import Mistake
from .automaton import Budget
from .expression import ANY, LAST, Chars, Either, Expression, Ranges, Repeat, either, overlap, series, without

PLAIN: Ranges = ((32, 126),)  # whether a text of these alone has a pattern is the same in both dialects
MAX_LENGTH = 10_000  # characters of a pattern
SHOWN = 80  # of them, in a message
ASCII: Ranges = ((0, 127),)
AGREED: Ranges = ((0, 27), (32, 127))  # ASCII but 28 to 31, which are spaces to Python alone
DIGIT: Ranges = ((48, 57),)
SPACE: Ranges = ((9, 13), (32, 32))
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
CLASSES = {"d": DIGIT, "s": SPACE, "w": WORD}
CLASSES |= {name.upper(): overlap(without(ranges), AGREED) for name, ranges in CLASSES.items()}
CONTROLS = {"0": "\0", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

GROUP = re.compile(r"\((?:\?:|\?P?<[a-z_$][\w$]*>)?(?!\?)", re.ASCII | re.IGNORECASE)
QUANTIFIER = re.compile(r"([*+?])|\{(\d+)(,?)(\d*)\}", re.ASCII)
CODE = re.compile(r"x([\da-f]{2})|u([\da-f]{4})|u\{0*([\da-f]{1,6})\}", re.IGNORECASE)
LOW_SURROGATE = re.compile(r"\\u(d[c-f][\da-f]{2})", re.IGNORECASE)
PROPERTY = re.compile(r"[pP]\{(?:(?:gc|General_Category)=)?(\w+)\}", re.ASCII)
REFUSED = {  # a beginning -> why
    r"\(\?<?[=!]": "a look-around cannot be held",
    r"\(\?(?!:|P?<)": "flags and Python's own groups cannot be held",
    r"\\[bB]": "a word boundary cannot be held",
    r"\\(?:[1-9]|k)": "a reference to a group cannot be held",
    r"\[\^?\]": "Python reads an empty class otherwise",
    r"\{,\d*\}": "Python reads it otherwise: write {0, for none",
    r"[*+?]|\{\d+,?\d*\}": "there is nothing that it could repeat",
}


@dataclass(frozen=True)
class Anchor:
    sign: str  # ^ or $


@dataclass(frozen=True)
class Anchored:
    """A group with an anchor inside."""

    branches: tuple[tuple[Node, ...], ...]
    sign: str  # of the first anchor


Node: TypeAlias = "Expression | Anchor | Anchored"


def pattern(text: str) -> Expression:
    """Mistake that names what cannot be held, or is no pattern."""
    if len(text) > MAX_LENGTH:
        raise Mistake(f"a pattern has {MAX_LENGTH} characters at most, got {len(text)}")
    reader = _Reader(text)
    group = reader.group()
    if reader.rest:
        raise reader.mistake("a bracket is closed that was not opened")
    try:
        return _searched((group,), False, False, Budget(MAX_LENGTH))
    except Mistake as mistake:
        raise Mistake(f"{_shown(text)}: {mistake}") from None


def dialects_differ(text: str) -> bool:
    """True where Python may find the pattern in other texts, beyond `PLAIN` ones, than ECMA-262."""
    return not {*text}.isdisjoint(".$\\")


def _searched(nodes: tuple[Node, ...], begins: bool, ends: bool, budget: Budget) -> Expression:
    """The texts in which `nodes` are found: at the beginning or the end, where that is so or an anchor says it."""
    budget.spend(len(nodes) + 1)
    while nodes and nodes[0] == Anchor("^"):
        begins, nodes = True, nodes[1:]
    while nodes and nodes[-1] == Anchor("$"):
        ends, nodes = True, nodes[:-1]
    for place in (0, len(nodes) - 1):  # ^a|b$ has anchors in its branches
        if nodes and isinstance(group := nodes[place], Anchored):
            ways = ((*nodes[:place], *branch, *nodes[place + 1 :]) for branch in group.branches)
            return Either(tuple(_searched(way, begins, ends, budget) for way in ways))
    anything = Repeat(ANY)
    return series(*[] if begins else [anything], *map(_expression, nodes), *[] if ends else [anything])


def _expression(node: Node) -> Expression:
    if isinstance(node, Anchor | Anchored):
        raise Mistake(f"{node.sign} can be held only where the whole text begins or ends")
    return node


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, text: str):
        self.text, self.at = text, 0

    @property
    def rest(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def mistake(self, why: str) -> Mistake:
        where = f"at {self.text[self.at : self.at + 8]!r}" if self.rest else "at its end"
        return Mistake(f"{_shown(self.text)}: {why}, {where}")

    def take(self, expected: str | re.Pattern) -> re.Match | None:
        """Goes past `expected`, if it comes next."""
        match = re.compile(expected).match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match

    def group(self) -> Node:
        branches = [self.branch()]
        while self.take(r"\|"):
            branches.append(self.branch())
        signs = [node.sign for branch in branches for node in branch if isinstance(node, Anchor | Anchored)]
        return Anchored(tuple(branches), signs[0]) if signs else either(*(series(*branch) for branch in branches))

    def branch(self) -> tuple[Node, ...]:
        nodes = []
        while self.rest not in ("", "|", ")"):
            for begin, why in REFUSED.items():
                if re.compile(begin).match(self.text, self.at):
                    raise self.mistake(why)
            sign = self.take(r"[\^$]")
            nodes.append(Anchor(sign[0]) if sign else self.repeated(self.atom()))
        return tuple(nodes)

    def repeated(self, atom: Node) -> Node:
        quantifier = self.take(QUANTIFIER)
        if not quantifier:
            return atom
        self.take(r"\?")  # the shortest or the longest match: the same texts
        sign, least, comma, most = quantifier.groups(default="")
        if max(len(least), len(most)) > 9:
            raise self.mistake("a number of repetitions is too large")
        if sign:
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        else:
            low = int(least)
            high = int(most) if most else None if comma else low
        if high is not None and high < low:
            raise self.mistake(f"no text is repeated at least {low} and at most {high} times")
        return Repeat(_expression(atom), low, high)

    def atom(self) -> Node:
        if self.take(GROUP):
            group = self.group()
            if not self.take(r"\)"):
                raise self.mistake("a bracket is not closed")
            return group
        if self.take(r"\."):
            return Chars(without(LINE_ENDS))
        return Chars(self.class_() if self.rest == "[" else self.character()[0])

    def character(self) -> tuple[Ranges, str]:
        """A character as it is or behind a backslash -> its ranges, and the name of its class if it is one."""
        if not self.take(r"\\"):
            return _single(self.take(r"(?s).")[0]), ""
        if code := self.take(CODE):
            return self.coded(int(code[code.lastindex], 16)), ""
        if name := self.take(PROPERTY):
            return _property(name[1]) if name[0][0] == "p" else _without_property(name[1]), "p"
        if name := self.take(r"[dswDSW]"):
            return CLASSES[name[0]], name[0]
        if letter := self.take(r"c([a-zA-Z])"):
            return _single(chr(ord(letter[1]) % 32)), ""
        if escape := self.take(r"[fnrtv]|0(?!\d)|[^\da-zA-Z]"):
            return _single(CONTROLS.get(escape[0], escape[0])), ""
        self.at -= 1
        raise self.mistake("this escape means nothing to ECMA-262, or something else to Python")

    def coded(self, code: int) -> Ranges:
        """The character of a code, or of a pair of surrogates."""
        if 0xD800 <= code < 0xDC00 and (low := self.take(LOW_SURROGATE)):
            code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if code > LAST:
            raise self.mistake(f"there is no character {code:x}")
        return ((code, code),)

    def class_(self) -> Ranges:
        negated, names, ranges = self.take(r"\[\^?")[0] == "[^", set(), []
        while not self.take(r"\]"):
            if not self.rest:
                raise self.mistake("a class of characters is not closed")
            low, name = self.class_character()
            names.add(name)
            if not self.take(r"-(?=[^\]])"):
                ranges += low
                continue
            high, other = self.class_character()
            names.add(other)
            if name or other:  # [\w-x]
                ranges += [*low, *_single("-"), *high]
            elif low[0][0] > high[0][0]:
                raise self.mistake("a range of characters is the wrong way round")
            else:
                ranges.append((low[0][0], high[0][0]))
        if any({name, name.upper()} <= names for name in "dsw"):  # [\s\S]
            ranges = ANY.ranges
        ranges = tuple(dict.fromkeys(ranges))
        outside = overlap(without(ranges), AGREED if names & CLASSES.keys() else ANY.ranges)
        return outside if negated else ranges

    def class_character(self) -> tuple[Ranges, str]:
        return (_single("\b"), "") if self.take(r"\\b") else self.character()


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _single(character: str) -> Ranges:
    return ((ord(character), ord(character)),)


@cache
def _property(name: str) -> Ranges:
    """The characters of a general category ("Lu"), or of all that begin so ("L")."""
    ranges = tuple((low, high) for category, low, high in _categories() if category.startswith(name))
    if not ranges and name != "Any":
        raise Mistake(f"\\p{{{name}}} cannot be held: only general categories can, such as \\p{{L}} or \\p{{Lu}}")
    return ranges or ANY.ranges


@cache
def _without_property(name: str) -> Ranges:
    return without(_property(name))


@cache
def _categories() -> list[tuple[str, int, int]]:
    """Unicode's general categories: (category, first code point, last code point) of each run."""
    runs = groupby(range(LAST + 1), key=lambda code: unicodedata.category(chr(code)))
    return [(category, first, max(run, default=first)) for category, run in runs for first in [next(run)]]
