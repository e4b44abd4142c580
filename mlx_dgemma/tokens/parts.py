"""Text and control tokens, kept apart: `<turn|>` that somebody typed is seven characters, the token is an id.

A prompt is made of parts. Where parts must pass through code that knows only strings, as a chat template does, each
token travels as a mark: two surrogates, in the order in which they make no character, that carry its id. Valid text
holds no surrogate, and text that does is refused (`check_unicode`), so no text can be a mark or complete one.
"""

import re
from collections.abc import Iterable

from ..errors import Mistake

Parts = list[str | int]  # text, and control tokens by their ids
_MARK = re.compile("([\udc00-\udfff][\ud800-\udbff])")


class GeneratedText(str):
    """Text that the model wrote, with the ids it wrote it in.

    As a str it spells its control tokens out; `tokens` tells them from text that looks alike. JSON makes no object of
    this type, so no client's record can claim to be one.
    """

    tokens: list[int]

    def __new__(cls, text: str, tokens: Iterable[int] = ()):
        made = super().__new__(cls, text)
        made.tokens = list(tokens)
        return made


def check_unicode(text: str) -> None:
    """Raises Mistake where `text` holds half a character (a surrogate)."""
    if surrogate := re.search("[\ud800-\udfff]", text):
        where = f"{surrogate.group()!a} at character {surrogate.start()}"
        raise Mistake(f"text must be valid Unicode, got half a character, {where}: remove it")


def marked(parts: Parts) -> str:
    """Joins parts to one string; ids must be below 2**20."""
    return "".join(part if isinstance(part, str) else _mark(part) for part in parts)


def unmarked(text: str) -> Parts:
    """Splits what `marked` joined."""
    pieces = _MARK.split(text)  # text and marks in turn
    return [_token(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def _mark(token: int) -> str:
    return chr(0xDC00 + (token >> 10)) + chr(0xD800 + (token & 0x3FF))


def _token(mark: str) -> int:
    return (ord(mark[0]) - 0xDC00) << 10 | ord(mark[1]) - 0xD800
