"""A text with slots, "Dear {name}, you are {age:integer}.", -> the expression of that text, filled in.

Slots are written as in `str.format`, {{ and }} standing for braces: {name} takes a line, {name:text} lines,
{name:integer}, {name:number}, {name:boolean}, and {name:red|green|blue} one of these.
"""

import re
from dataclasses import dataclass
from string import Formatter

import numpy as np

from ..errors import Mistake
from ..tokens.parts import check_unicode
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


@dataclass(frozen=True)
class Part:
    """A part of a template: a slot, or text between two."""

    name: str | None  # of the slot
    kind: str = ""
    texts: tuple[str, ...] = ()  # one of which stands there; () for any text that is not empty

    @property
    def expression(self) -> Expression:
        return either(*self.texts) if self.texts else KINDS[self.kind]


def template(text: str) -> Expression:
    """Reads a template. Mistake where there is no slot, or one is not as above."""
    return series(*(part.expression for part in _parts(text)))


def filled(text: str, output: str) -> dict[str, str]:
    """Returns slot -> what `output`, which is the template `text` filled in, has there; {} where it is not that. Where
    it can be read in several ways, the first slots are short. Takes time in proportion to the output's length."""
    parts = _parts(text)
    matches = _matches(parts, output)
    if not matches[0][0]:
        return {}
    slots, at = {}, 0
    for part, after in zip(parts, matches[1:], strict=True):
        if part.texts:
            fitting = (at + len(each) for each in part.texts if output.startswith(each, at))
            end = next(end for end in fitting if after[end])
        else:
            end = at + 1 + int(np.argmax(after[at + 1 :]))
        if part.name is not None:
            slots[part.name] = output[at:end]
        at = end
    return slots


def _matches(parts: list[Part], output: str) -> list[np.ndarray]:
    """[parts + 1] of [length of output + 1] bool: whether the parts from here on match the output from there on."""
    after = np.arange(len(output) + 1) == len(output)
    matches = [after]
    for part in reversed(parts):
        here = np.zeros(len(output) + 1, bool)
        for each in part.texts:
            starts = [match.start() for match in re.finditer(f"(?={re.escape(each)})", output)]
            here[starts] |= after[np.array(starts, int) + len(each)]
        if not part.texts and after.any():
            here[: np.flatnonzero(after)[-1]] = True
        matches.append(after := here)
    return matches[::-1]


def _parts(text: str) -> list[Part]:
    check_unicode(text)
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise Mistake(f"the template {text!r} cannot be read ({error}): write braces that are text twice") from None
    parts: list[Part] = []
    for literal, name, kind, conversion in parsed:
        if literal:
            parts.append(Part(None, texts=(literal,)))
        if name is None:
            continue
        if not name.isidentifier() or conversion or name in [part.name for part in parts]:
            raise Mistake(f"each slot of a template needs a name that no other has, like {{name}}, got {{{name}}}")
        if kind not in KINDS and "|" not in kind:
            kinds = ", ".join(filter(None, KINDS))
            raise Mistake(f"slot {name} is of no kind that there is, {kind}: give {kinds}, or a|b|c")
        parts.append(Part(name, kind, tuple(kind.split("|")) if "|" in kind else ()))
    if all(part.name is None for part in parts):
        raise Mistake(f"the template {text!r} has no slots: write {{name}} where the model is to")
    return parts
