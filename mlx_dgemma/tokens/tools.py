"""Tool calls as the model writes them, and their results as it reads them.

    <|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>   answered by
    <|tool_response>response:weather{degrees:4}<tool_response|>

`<|tool_response>` is a stop token: the model writes no further until somebody has run the tool.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .parts import Parts
from .tokenizer import Tokenizer

CALL_OPEN, CALL_CLOSE = "<|tool_call>", "<tool_call|>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<|tool_response>", "<tool_response|>"
QUOTE = '<|"|>'  # on both sides of a string
_CALL = re.compile(r"call:([^{}]+)(\{.*\})", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str  # {…} as the model wrote them

    def __str__(self) -> str:
        return self.name + self.arguments.replace(QUOTE, '"')


class CallStream:
    """Sorts generated ids, as they come, into text and tool calls. A vocabulary without calls has only text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        ends = tokenizer.token_id(CALL_OPEN), tokenizer.token_id(CALL_CLOSE)
        self._open, self._close = (None, None) if None in ends else ends
        self._held: list[int] | None = None  # ids of a call that has not ended

    def push(self, ids: Iterable[int]) -> tuple[list[int], list[ToolCall]]:
        text, calls = [], []
        for token in ids:
            if token == self._open:
                text += self.finish()
                self._held = []
            elif self._held is None:
                text.append(token)
            elif token != self._close:
                self._held.append(token)
            elif call := _CALL.fullmatch(self._tokenizer.decode(self._held, skip_special_tokens=False).strip()):
                calls.append(ToolCall(*call.groups()))
                self._held = None
            else:
                text += self.finish()
        return text, calls

    def finish(self) -> list[int]:
        """A call that never ended, or that is none, is text."""
        held, self._held = self._held or [], None
        return held


def response_tokens(tokenizer: Tokenizer, name: str, result: Any) -> list[int]:
    """Encodes for the model that a call of `name` gave `result`, of the kinds JSON has (Gemma 4's chat template:
    format_tool_response_block).

    The tags, and the quotes around strings, are control tokens. A tool's result is text, even where it spells one.
    """
    body = result if isinstance(result, dict) else {"value": result}
    open_, quote, close = map(tokenizer.split, (RESPONSE_OPEN, QUOTE, RESPONSE_CLOSE))
    return tokenizer.encode_parts([*open_, f"response:{name}", *_written(body, quote), *close])


def _written(value: Any, quote: Parts) -> Iterator[str | int]:
    if isinstance(value, str):
        yield from [*quote, value, *quote]
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, dict | list):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        pairs = [("", item) for item in value]
        if isinstance(value, dict):
            pairs = [(f"{key}:", value[key]) for key in sorted(value, key=str.lower)]  # jinja2: dictsort
        yield opening
        for i, (name, item) in enumerate(pairs):
            yield f"{',' if i else ''}{name}"
            yield from _written(item, quote)
        yield closing
    else:
        yield str(value)
