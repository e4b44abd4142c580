"""How a document is written: as JSON, or as the arguments of a tool's call, between control tokens (`tokens/tools.py`).

Among the bytes of a text each control token is one that UTF-8 never has, so no text can spell it.
"""

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from ..errors import Mistake
from ..tokens import tools
from ..tokens.stream import CHANNEL_CLOSE, CHANNEL_OPEN
from .automaton import Automaton, Budget, trimmed
from .construction import build_automaton
from .expression import ANY, Both, Chars, Either, Expression, Repeat, Series, Text, optional, overlap, series, without

CALL, END, QUOTE, THOUGHT, THOUGHT_END = (bytes([0xF8 + i]) for i in range(5))
CONTROLS = {tools.CALL_OPEN: CALL, tools.CALL_CLOSE: END, tools.QUOTE: QUOTE}
CONTROLS |= {CHANNEL_OPEN: THOUGHT, CHANNEL_CLOSE: THOUGHT_END}
ESCAPED = ((0, 31), (34, 34), (92, 92))  # control characters, quote, backslash
SPACES = tuple((code, code) for code in range(0x3001) if chr(code).isspace())
MARKS = tuple((ord(mark), ord(mark)) for mark in ":,{}[]")


class Json:
    """As `json.dumps` writes it."""

    comma, colon = b", ", b": "
    closing = b"]}"  # one of these bytes ends a document

    def written(self, value: Any) -> bytes:
        """Mistake where it cannot be written: Python reads 1e400 as infinite."""
        text = _json(value)
        try:
            return text.encode()
        except UnicodeEncodeError:  # half a character, which JSON can name but not write
            return json.dumps(value).encode()

    def ways(self, value: Any) -> list[bytes]:
        """All ways to write it that a reader takes for the same."""
        return [self.written(value)]

    def key(self, name: str) -> bytes:
        """The name of a member."""
        return self.written(name)

    def keys(self, strings: Automaton, budget: Budget) -> Automaton:
        """`strings`, as they are written, as names of members. Empty where none can be one."""
        return strings

    def order(self, names: Iterable[str]) -> Iterable[str]:
        """Members in the order in which they are written."""
        return names

    def escaped(self, expression: Expression) -> Expression:
        """The expression of a text as it is written inside a string."""
        match expression:
            case Text(text):
                return Text(json.dumps(text, ensure_ascii=False)[1:-1])
            case Chars(ranges):
                return _escaped_class(ranges)
            case Series(parts):
                return Series(tuple(map(self.escaped, parts)))
            case Either(options):
                return Either(tuple(map(self.escaped, options)))
            case Repeat(content, least, most, between):
                return Repeat(self.escaped(content), least, most, self.escaped(between))
        raise TypeError(expression)

    @cached_property
    def character(self) -> Expression:
        """One character inside a string."""
        return build_automaton(self.escaped(ANY))

    def string(self, content: Expression) -> Expression:
        return series('"', content, '"')

    def pieces(self, text: bytes) -> list | None:
        """The first document in what a model wrote, as bytes and values one after another; None where it cannot be
        read, or is not whole."""
        read = text.decode("utf-8", "ignore")
        start = min((at for at in map(read.find, "{[") if at >= 0), default=0)
        try:
            return [json.JSONDecoder().raw_decode(read, start)[0]]
        except (ValueError, RecursionError):
            return None

    def begins(self, text: bytes) -> bool:
        """Whether more of what was written may make it a document."""
        return text.lstrip()[:1] in (b"", b"{", b"[", b"`")


class Calls:
    """As a chat template writes the arguments of a call. A name that a reader would not find bare is a string."""

    comma, colon = b",", b":"
    closing = b""  # other calls may follow

    def written(self, value: Any) -> bytes:
        _json(value)
        return self._joined(tools.written(value, [QUOTE[0]], self._name))

    def _name(self, name: str) -> list[str | int]:
        return [name] if _bare().matches(name.encode()) else [QUOTE[0], name, QUOTE[0]]

    def _joined(self, parts: Iterable[str | int]) -> bytes:
        try:
            return b"".join(part.encode() if isinstance(part, str) else bytes([part]) for part in parts)
        except UnicodeEncodeError:
            raise Mistake("half a character cannot be written") from None

    def ways(self, value: Any) -> list[bytes]:
        return [b"null", b"None"] if value is None else [self.written(value)]  # templates of different dates

    def key(self, name: str) -> bytes:
        return self._joined(self._name(name))

    def keys(self, strings: Automaton, budget: Budget) -> Automaton:
        [(_, _, start)] = strings.rows[0]  # behind the quote
        accepting = [any(low == QUOTE[0] for low, _, _ in row) for row in strings.rows]
        rows = [[arc for arc in row if arc[0] != QUOTE[0]] for row in strings.rows]
        rows[0], accepting[0] = rows[start], accepting[start]
        return build_automaton(Both(trimmed(rows, accepting), _bare()), budget)

    def order(self, names: Iterable[str]) -> Iterable[str]:
        return sorted(names, key=str.lower)  # jinja2: dictsort

    def escaped(self, expression: Expression) -> Expression:
        return expression

    character = ANY

    def string(self, content: Expression) -> Expression:
        return series(QUOTE, content, QUOTE)

    def pieces(self, text: bytes) -> list | None:
        before, *calls = text.split(CALL)
        pieces: list = [before[before.find(THOUGHT) : before.rfind(THOUGHT_END) + 1]]  # thoughts, and no other words
        for each in calls:
            inside, end, _ = each.partition(END)
            call = tools.parsed_call(*(part.decode("utf-8", "surrogateescape") for part in (inside, QUOTE)))
            if not end or call is None:
                return None
            pieces += [call_open(call.name), call.arguments, END]
        return pieces if calls else None

    def begins(self, text: bytes) -> bool:
        return CALL in text


Notation: TypeAlias = Json | Calls
JSON, CALLS = Json(), Calls()


def call_open(name: str) -> bytes:
    """What stands before the arguments of a call."""
    return CALL + f"call:{name}".encode("utf-8", "replace")


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise Mistake("JSON has no number so large") from None


@lru_cache(maxsize=1000)
def _escaped_class(ranges: tuple[tuple[int, int], ...]) -> Expression:
    plain = Chars(overlap(ranges, without(ESCAPED)))
    special = (chr(c) for a, b in overlap(ranges, ESCAPED) for c in range(a, b + 1))
    return Either((plain, *(Text(json.dumps(character)[1:-1]) for character in special)))


@lru_cache
def _bare() -> Automaton:
    """Names that `tools.parsed_call` finds bare: neither a string nor trimmed."""
    first, inside, last = (Chars(without((*MARKS, *more))) for more in ((*SPACES, (34, 34)), (), SPACES))
    return build_automaton(series(first, optional(series(Repeat(inside), last))))
