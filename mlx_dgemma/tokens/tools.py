"""Tools: lists of them as programs write them, calls as the model writes them, and results as it reads them.

    <|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>   answered by
    <|tool_response>response:weather{degrees:4}<tool_response|>

`<|tool_response>` is a stop token: the model writes no further until somebody has run the tool.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import Mistake
from .parts import Parts, marked
from .tokenizer import Tokenizer

CALL_OPEN, CALL_CLOSE = "<|tool_call>", "<tool_call|>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<|tool_response>", "<tool_response|>"
QUOTE = '<|"|>'  # on both sides of a string
_CALL = re.compile(r"\s*call:([^{}]+)(\{.*\})\s*", re.DOTALL)
_JSON_STRING, _BARE, _KEY = map(re.compile, (r'"(?:[^"\\]|\\.)*"', r"[^,{}\[\]]+", r"[^:,{}\[\]]+"))
_SCHEMAS = ("parameters", "input_schema", "inputSchema")  # of OpenAI, Anthropic, MCP


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return self.name + self.json()

    def json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)

    def to_openai(self, identifier: str) -> dict[str, Any]:
        """Returns the call as an entry of OpenAI's `tool_calls`, whose arguments are a string."""
        return {"id": identifier, "type": "function", "function": {"name": self.name, "arguments": self.json()}}


def read_tools(given: Any) -> list[dict]:
    """Reads a list of tools as `Tokenizer.chat` takes them: [{"type": "function", "function": {"name", "description",
    "parameters"}}, …].

    It may be in the form of OpenAI's chat completions or responses, of Anthropic's messages, or of MCP's `tools/list`,
    the whole reply included. Mistake names the entry that is none of these.
    """
    while isinstance(given, dict) and (inner := given.get("result", given.get("tools"))) is not None:
        given = inner
    if not isinstance(given, list):
        raise Mistake(f'need a list of tools, {{"type": "function", "function": {{"name": …}}}}, got {_shown(given)}')
    tools = [{"type": "function", "function": _read_function(entry, f"tools[{i}]")} for i, entry in enumerate(given)]
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Mistake(f"tools: {twice} is there twice: give each a name of its own")
    return tools


def _read_function(entry: Any, place: str) -> dict[str, Any]:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise Mistake(f'{place}: need {{"type": "function", "function": {{"name": …}}}}, got {_shown(entry)}')
    kind = entry.get("type") or "function"
    schema = next((function[name] for name in _SCHEMAS if function.get(name) is not None), None)
    if kind != "function" and not (kind == "custom" and schema):
        raise Mistake(f"{place}: a tool of type {kind!r} runs elsewhere; only functions can be called: remove it")
    if not isinstance(schema, dict | None):
        need = f"need a JSON schema of the arguments of {function['name']}"
        raise Mistake(f"{place}: {need}, got {_shown(schema)}")
    description = function.get("description") or function.get("title") or ""
    if not isinstance(description, str):
        raise Mistake(f"{place}: need a description that is text, got {_shown(description)}")
    read = {"name": function["name"], "description": description, "parameters": schema or {"type": "object"}}
    return read | ({"response": function["response"]} if function.get("response") else {})  # Gemma declares it, too


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]


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
            elif call := read_call(self._tokenizer, self._held):
                calls.append(call)
                self._held = None
            else:
                text += self.finish()
        return text, calls

    def finish(self) -> list[int]:
        """Returns, as text, a call that never ended, or that is none."""
        held, self._held = self._held or [], None
        return held


def read_call(tokenizer: Tokenizer, ids: list[int]) -> ToolCall | None:
    """Reads what stands between `<|tool_call>` and `<tool_call|>`; None where it is no call."""
    quote = tokenizer.token_id(QUOTE)
    mark = QUOTE if quote is None else marked([quote])  # which no text can hold
    parts = tokenizer.decode_parts(ids)
    text = "".join(part if isinstance(part, str) else mark if part == quote else "" for part in parts)
    return parsed_call(text, mark)


def parsed_call(text: str, quote: str) -> ToolCall | None:
    """Reads a call from its text, in which strings stand between two `quote`s; None where it is no call."""
    if not (call := _CALL.fullmatch(text)):
        return None
    try:
        return ToolCall(call[1].strip(), _Notation(call[2], quote).read())
    except (ValueError, RecursionError):
        return None


class _Notation:
    """Gemma's notation of a call's arguments, {key:value,…}: strings stand between two `quote`s, keys are bare or
    quoted, all else is as in JSON. A model may slip into JSON's own quotes, and leave a word bare."""

    def __init__(self, text: str, quote: str):
        self._text, self._quote, self._at = text, quote, 0

    def read(self) -> dict[str, Any]:
        value = self._value()
        if self._at != len(self._text):
            raise ValueError("something follows")
        return value

    def _value(self) -> Any:
        if (text := self._string()) is not None:
            return text
        if self._take("{"):
            return dict(self._items("}", self._member))
        if self._take("["):
            return list(self._items("]", self._value))
        return _scalar(self._match(_BARE).strip())

    def _items(self, end: str, read: Callable[[], Any]) -> Iterator[Any]:
        while not self._take(end):
            yield read()
            if not self._take(",") and not self._text.startswith(end, self._skip()):
                raise ValueError(f"need , or {end}")

    def _member(self) -> tuple[str, Any]:
        key = self._string()
        key = self._match(_KEY).strip() if key is None else key
        if not self._take(":"):
            raise ValueError("need :")
        return key, self._value()

    def _string(self) -> str | None:
        if self._take(self._quote):
            end = self._text.index(self._quote, self._at)
            start, self._at = self._at, end + len(self._quote)
            return self._text[start:end]
        if found := _JSON_STRING.match(self._text, self._skip()):
            self._at = found.end()
            return json.loads(found[0], strict=False)
        return None

    def _skip(self) -> int:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        return self._at

    def _take(self, token: str) -> bool:
        if found := self._text.startswith(token, self._skip()):
            self._at += len(token)
        return found

    def _match(self, pattern: re.Pattern) -> str:
        if not (found := pattern.match(self._text, self._skip())):
            raise ValueError("need a value")
        self._at = found.end()
        return found[0]


def _scalar(word: str) -> Any:
    """Returns the number, boolean or null that a bare word is, or the word."""
    try:
        value = None if word == "None" else json.loads(word)  # a template writes null so
    except ValueError:
        return word
    return word if isinstance(value, float) and not math.isfinite(value) else value


def response_tokens(tokenizer: Tokenizer, name: str, result: Any) -> list[int]:
    """Encodes for the model that a call of `name` gave `result`, of the kinds JSON has (Gemma 4's chat template:
    format_tool_response_block).

    The tags, and the quotes around strings, are control tokens. A tool's result is text, even where it spells one.
    """
    body = result if isinstance(result, dict) else {"value": result}
    open_, quote, close = map(tokenizer.split, (RESPONSE_OPEN, QUOTE, RESPONSE_CLOSE))
    return tokenizer.encode_parts([*open_, f"response:{name}", *written(body, quote), *close])


def written(value: Any, quote: Parts, key: Callable[[str], Parts] = lambda name: [name]) -> Iterator[str | int]:
    """Writes a value as the chat template does (format_argument), and names of members as `key` does."""
    if isinstance(value, str):
        yield from [*quote, value, *quote]
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, dict | list):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        pairs: list[tuple[Parts, Any]] = [([], item) for item in value]
        if isinstance(value, dict):
            pairs = [([*key(name), ":"], value[name]) for name in sorted(value, key=str.lower)]  # jinja2: dictsort
        yield opening
        for i, (name, item) in enumerate(pairs):
            yield from [*[","] * bool(i), *name]
            yield from written(item, quote, key)
        yield closing
    else:
        yield str(value)
