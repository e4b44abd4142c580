"""Regular expressions as values: schemas, templates and patterns are put together from these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .automaton import Automaton

LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Chars:
    """One character of these ranges of code points, both ends included. Surrogates are no characters."""

    ranges: Ranges


@dataclass(frozen=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True)
class Series:
    """All parts, one after another."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Either:
    """One of the options."""

    options: tuple[Expression, ...]


@dataclass(frozen=True)
class Repeat:
    """`what`, from `least` to `most` times (None: any number), with `between` two of them."""

    what: Expression
    least: int = 0
    most: int | None = None
    between: Expression = Text("")


@dataclass(frozen=True)
class Joined:
    """The parts in their order, with `between` two of them; those that are not `needed` may be left out."""

    parts: tuple[Expression, ...]
    needed: tuple[bool, ...]
    between: Expression


@dataclass(frozen=True)
class Both:
    """A text that both describe."""

    one: Expression
    other: Expression


Expression: TypeAlias = "Chars | Text | Series | Either | Repeat | Joined | Both | Automaton"  # the last: built already
ANY = Chars(((0, LAST),))


def children(expression: Expression) -> tuple[Expression, ...]:
    """The expressions that this one is put together from."""
    match expression:
        case Series(parts) | Either(parts):
            return parts
        case Repeat(what, _, _, between):
            return what, between
        case Joined(parts, _, between):
            return (*parts, between)
        case Both(one, other):
            return one, other
    return ()


def series(*parts: Expression | str) -> Expression:
    return Series(tuple(Text(part) if isinstance(part, str) else part for part in parts))


def either(*options: Expression | str) -> Expression:
    return Either(tuple(Text(option) if isinstance(option, str) else option for option in options))


def optional(what: Expression | str) -> Expression:
    return Repeat(series(what), 0, 1)


def between(first: str, last: str) -> Chars:
    return Chars(((ord(first), ord(last)),))


def overlap(one: Ranges, other: Ranges) -> Ranges:
    """The code points that are in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return tuple((low, high) for low, high in pairs if low <= high)


def without(ranges: Ranges) -> Ranges:
    """Every code point that is not in `ranges`."""
    outside, after = [], 0
    for low, high in sorted(ranges):
        if low > after:
            outside.append((after, low - 1))
        after = max(after, high + 1)
    return (*outside, (after, LAST)) if after <= LAST else tuple(outside)
