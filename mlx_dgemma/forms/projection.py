"""What a model wrote unaided -> the document of a schema with the same content: members that the schema does not
know are left out, the others come in its order. The schema's automaton alone decides what fits.
"""

from collections.abc import Sequence
from typing import Any

from .automaton import Automaton
from .notation import Notation

MAX_WORK = 50_000  # bytes looked at: some ten milliseconds


class _Unfit(Exception):
    """A value that does not fit, or takes too much work."""


def projected(automaton: Automaton, pieces: Sequence | None, notation: Notation) -> bytes | None:
    """The document with the content of `pieces` (`Json.pieces`); None where it does not fit, or is None."""
    if pieces is None:
        return None
    projection, document, state = _Projection(automaton, notation), b"", 0
    try:
        for piece in pieces:
            text, state = (projection.literal if isinstance(piece, bytes) else projection.value)(piece, state)
            document += text
    except (ValueError, RecursionError, _Unfit):
        return None
    return document if automaton.accepting[state] else None


class _Projection:
    """Each method goes on from a state -> the text that it writes there, and the state behind it."""

    def __init__(self, automaton: Automaton, notation: Notation):
        self.table, self.notation, self.left = automaton.table, notation, MAX_WORK

    def literal(self, text: bytes, state: int) -> tuple[bytes, int]:
        self.left -= len(text)
        for byte in text:
            state = int(self.table[state, byte])
            if state < 0 or self.left < 0:
                raise _Unfit
        return text, state

    def fits(self, text: bytes, state: int) -> bool:
        try:
            return self.literal(text, state)[1] >= 0
        except _Unfit:
            return False

    def value(self, value: Any, state: int) -> tuple[bytes, int]:
        if isinstance(value, dict):
            return self.members(value, state)
        if isinstance(value, list):
            return self.items(value, state)
        return self.literal(self.notation.written(value), state)

    def items(self, values: list, state: int) -> tuple[bytes, int]:
        text, state = self.literal(b"[", state)
        for number, value in enumerate(values):
            between, state = self.literal(self.notation.comma if number else b"", state)
            item, state = self.value(value, state)
            text += between + item
        end, state = self.literal(b"]", state)
        return text + end, state

    def members(self, members: dict[str, Any], state: int) -> tuple[bytes, int]:
        text, state = self.literal(b"{", state)
        names, between = {name: self.notation.key(name) + self.notation.colon for name in members}, b""
        while ways := {
            name: self.member(between + written, members[name], state)
            for name, written in names.items()
            if self.fits(between + written, state)
        }:
            between = self.notation.comma
            # The first in the schema's order is the one behind which most of the others can still come.
            first = max(ways, key=lambda name: sum(self.fits(between + names[n], ways[name][1]) for n in ways))
            written, state = ways[first]
            text += written
            del names[first]
        end, state = self.literal(b"}", state)
        return text + end, state

    def member(self, name: bytes, value: Any, state: int) -> tuple[bytes, int]:
        begin, state = self.literal(name, state)
        written, state = self.value(value, state)
        return begin + written, state
