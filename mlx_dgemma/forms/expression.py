"""Regular expressions as values, each equal to itself alone.

`schema.py`, `pattern.py`, `numeral.py` and `template.py` put texts together from these; `construction.py` makes an
automaton of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .automaton import Automaton

LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Chars:
    """One character of these ranges of code points, both ends included. Surrogates are no characters."""

    ranges: Ranges


@dataclass(frozen=True, eq=False)
class Text:
    """These characters, or bytes."""

    text: str | bytes


@dataclass(frozen=True, eq=False)
class Series:
    """All parts, one after another."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Either:
    """One of the options."""

    options: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """`content`, from `least` to `most` times (None: any number), with `between` two of them."""

    content: Expression
    least: int = 0
    most: int | None = None
    between: Expression = Text("")


@dataclass(frozen=True, eq=False)
class Joined:
    """The parts in their order, with `between` two of them; those that are not `needed` may be left out."""

    parts: tuple[Expression, ...]
    needed: tuple[bool, ...]
    between: Expression


@dataclass(frozen=True, eq=False)
class Both:
    """A text that both describe."""

    left: Expression
    right: Expression


Expression: TypeAlias = "Chars | Text | Series | Either | Repeat | Joined | Both | Automaton"  # the last: built already
ANY = Chars(((0, LAST),))


def children(expression: Expression) -> tuple[Expression, ...]:
    """The expressions that this one is put together from."""
    match expression:
        case Series(parts) | Either(parts):
            return parts
        case Repeat(content, _, _, between):
            return content, between
        case Joined(parts, _, between):
            return (*parts, between)
        case Both(left, right):
            return left, right
    return ()


def series(*parts: Expression | str | bytes) -> Expression:
    return Series(tuple(map(_expression, parts)))


def either(*options: Expression | str | bytes) -> Expression:
    return Either(tuple(map(_expression, options)))


def _expression(part: Expression | str | bytes) -> Expression:
    return Text(part) if isinstance(part, str | bytes) else part


def optional(part: Expression | str) -> Expression:
    return Repeat(series(part), 0, 1)


def between(first: str, last: str) -> Chars:
    return Chars(((ord(first), ord(last)),))


def overlap(left: Ranges, right: Ranges) -> Ranges:
    """The code points that are in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return tuple((low, high) for low, high in pairs if low <= high)


def without(ranges: Ranges) -> Ranges:
    """Every code point that is not in `ranges`."""
    outside, after = [], 0
    for low, high in sorted(ranges):
        if low > after:
            outside.append((after, low - 1))
        after = max(after, high + 1)
    return (*outside, (after, LAST)) if after <= LAST else tuple(outside)
