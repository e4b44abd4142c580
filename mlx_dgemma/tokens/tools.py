"""Tool calls as the model writes them, and what it is told came of them.

    <|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>   answered by
    <|tool_response>response:weather{degrees:4}<tool_response|>

`<|tool_response>` is a stop token: the model writes no further until somebody has run the tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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


def response(name: str, result: Any) -> str:
    """The text that tells the model what `result`, of the kinds JSON has, came of a call of `name` (Gemma 4's chat
    template: format_tool_response_block)."""
    body = result if isinstance(result, dict) else {"value": result}
    return f"{RESPONSE_OPEN}response:{name}{_written(body)}{RESPONSE_CLOSE}"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: item[0].lower())  # jinja2: dictsort
        return "{" + ",".join(f"{key}:{_written(own)}" for key, own in ordered) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return str(value)
