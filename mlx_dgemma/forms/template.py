"""A text with slots, "Dear {name}, you are {age:integer}.", -> the expression for it, filled in.

Slots are written as in `str.format`, {{ and }} standing for braces: {name} takes a line, {name:text} lines,
{name:integer}, {name:number}, {name:boolean}, and {name:red|green|blue} one of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Formatter

from ..errors import Mistake
from .expression import Chars, Expression, Ranges, Repeat, either, series, without
from .numeral import number

CONTROLS: Ranges = ((0, 31), (127, 159), (0x2028, 0x2029))
LINE = without(CONTROLS)
KINDS = {
    "": Repeat(Chars(LINE), 1),
    "text": Repeat(Chars((*LINE, (10, 10))), 1),
    "integer": number(None, None, whole=True),
    "number": number(None, None, whole=False),
    "boolean": either("true", "false"),
}


def template(text: str) -> Expression:
    """Mistake where there is no slot, or one is not as above."""
    return series(*(_slot(kind) if name else part for part, name, kind in _parts(text)))


def filled(text: str, output: str) -> dict[str, str]:
    """Slot -> what `output`, which is `text` filled in, has there. Where it could be read in several ways, the first
    slots are short."""
    pieces = ((re.escape(part) if not name else f"({_choices(kind) or '.+?'})") for part, name, kind in _parts(text))
    found = re.fullmatch("".join(pieces), output, re.DOTALL)
    return dict(zip((name for _, name, _ in _parts(text) if name), found.groups(), strict=True)) if found else {}


def _slot(kind: str) -> Expression:
    return either(*kind.split("|")) if "|" in kind else KINDS[kind]


def _choices(kind: str) -> str:
    return "|".join(map(re.escape, kind.split("|"))) if "|" in kind else ""


def _parts(text: str) -> Iterator[tuple[str, str | None, str]]:
    """(literal, None, "") and ("", slot, kind), in order."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise Mistake(f"the template {text!r} cannot be read ({error}): write braces that are text twice") from None
    seen: set[str] = set()
    for literal, name, kind, conversion in parsed:
        if literal:
            yield literal, None, ""
        if name is None:
            continue
        if not name.isidentifier() or name in seen or conversion:
            raise Mistake(f"each slot of a template needs a name of its own, like {{name}}, got {{{name}}}")
        if kind not in KINDS and "|" not in kind:
            kinds = ", ".join(filter(None, KINDS))
            raise Mistake(f"slot {name} is of no kind that there is, {kind}: give {kinds}, or a|b|c")
        seen.add(name)
        yield "", name, kind
    if not seen:
        raise Mistake(f"the template {text!r} has no slots: write {{name}} where the model is to")
