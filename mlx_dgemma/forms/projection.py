"""JSON that a model wrote unaided -> the document of a schema with the same content: members that the schema does not
know are left out, the others come in its order. The schema's automaton alone decides what fits.
"""

import json
from typing import Any

from .automaton import Automaton

MOST_WORK = 50_000  # bytes looked at: some ten milliseconds


class _Unfit(Exception):
    """A value that does not fit, or takes too much work."""


def first_json(text: str) -> dict | list | None:
    """The first object or list in `text`; None where it cannot be read, or is not whole."""
    start = min((at for at in map(text.find, "{[") if at >= 0), default=0)
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def projected(automaton: Automaton, value: dict | list | None) -> str | None:
    """The document with the content of `value`; None where it does not fit, or is None."""
    if value is None:
        return None
    try:
        document, state = _Projection(automaton).value(value, 0)
        return document.decode() if automaton.accepting[state] else None
    except (ValueError, RecursionError, _Unfit):
        return None


class _Projection:
    """Each method goes on from a state -> the text that it writes there, and the state behind it."""

    def __init__(self, automaton: Automaton):
        self.table, self.left = automaton.table, MOST_WORK

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
        return self.literal(_written(value), state)

    def items(self, values: list, state: int) -> tuple[bytes, int]:
        text, state = self.literal(b"[", state)
        for number, value in enumerate(values):
            between, state = self.literal(b", " if number else b"", state)
            item, state = self.value(value, state)
            text += between + item
        end, state = self.literal(b"]", state)
        return text + end, state

    def members(self, members: dict[str, Any], state: int) -> tuple[bytes, int]:
        text, state = self.literal(b"{", state)
        names, between = {name: _written(name) + b": " for name in members}, b""
        while ways := {
            name: self.member(between + written, members[name], state)
            for name, written in names.items()
            if self.fits(between + written, state)
        }:
            between = b", "
            # The first in the schema's order is the one behind which most of the others can still come.
            first = max(ways, key=lambda name: sum(self.fits(between + names[n], ways[name][1]) for n in names))
            written, state = ways[first]
            text += written
            del names[first]
        end, state = self.literal(b"}", state)
        return text + end, state

    def member(self, name: bytes, value: Any, state: int) -> tuple[bytes, int]:
        begin, state = self.literal(name, state)
        written, state = self.value(value, state)
        return begin + written, state


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
