"""The sandbox of chat templates: jinja2's, which keeps them from all but their arguments, with bounds on time and text.

Loops and calls look at the clock. What makes long texts of short ones (operators, filters, methods,
the joining of output) looks at lengths, before it works where that may be too late afterwards.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

SECONDS, EACH = 1.0, 2e-5  # of the processor; and for each pair of messages, as Gemma's looks back from each to all
SPARE = 200_000  # characters beyond four times those of the messages; the longest template known writes 30,000
GROWS = (
    "batch", "center", "indent", "join", "replace", "slice", "sum", "tojson", "truncate", "urlize", "wordwrap",
    "xmlattr",
)  # fmt: skip
_WIDE = re.compile(r"\d{6}")  # a field as wide as that in a format
_bounds: ContextVar[tuple[float, int]] = ContextVar("bounds")  # this thread's time when it ends; longest text


@contextmanager
def bounded(messages: list[dict], flags: dict[str, Any]) -> Iterator[None]:
    """Ends what is rendered in this block when its time is over, or when a text is much longer than those given."""
    end = time.thread_time() + SECONDS + EACH * len(messages) ** 2
    token = _bounds.set((end, 4 * len(json.dumps([messages, flags])) + SPARE))
    try:
        yield
    finally:
        _bounds.reset(token)


class _Generator(CodeGenerator):
    """Python of a template, whose loops and `~` look at the bounds."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates have the helpers that transformers gives them. SecurityError: one goes beyond what it may."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        self.filters["tojson"] = _tojson
        self.filters |= {name: _growing(self.filters[name]) for name in GROWS}
        self.filters["format"] = _format
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]

    @staticmethod
    def tick() -> None:
        if time.thread_time() > _bounds.get()[0]:
            raise SecurityError("it goes on without end")

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Goes through what a loop is over."""
        for number, item in enumerate(items):
            if number % 64 == 0:
                self.tick()
            yield item

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        longest, length, texts = _bounds.get()[1], 0, []
        for piece in pieces:
            length += len(piece)
            _check(length, longest)
            texts.append(piece)
        return "".join(texts)

    def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        self.tick()
        if isinstance(text := getattr(function, "__self__", None), str):
            arguments = tuple(map(_listed, arguments))
            _check_growth(text, *arguments)
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = {"+": 1, "*": right.bit_length(), "**": left.bit_length() * abs(right)}.get(operator, 0)
            _check(left.bit_length() + bits, 1024)
        elif operator == "+":
            _check(_size(left) + _size(right), _longest())
        elif operator == "*":
            _check(_size(left) * _size(right), _longest())
        else:
            _check_fields(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        _check_fields(getattr(value, "__self__", None))
        return super().wrap_str_format(value)


def _longest() -> int:
    return _bounds.get()[1]


def _check(length: int, longest: int) -> None:
    if length > longest:
        raise SecurityError("it writes without end")


def _check_growth(*given: Any) -> None:
    """Raises SecurityError where what is made of these, at most the product of two, is far too long."""
    *_, second, first = sorted([0, 0, *map(_size, given)])
    _check(first, _longest())
    _check(first * second, 64 * _longest())


def _check_fields(text: Any) -> None:
    """Raises SecurityError where a field of the format is too wide."""
    if isinstance(text, str) and _WIDE.search(text):
        raise SecurityError("it writes a field that is too wide")


def _size(value: Any) -> int:
    """Returns a number as it is, and the length of all texts in anything else, as far as that matters."""
    if isinstance(value, int):
        return abs(value)
    size, items, longest = 0, [value], _longest()
    while items and size <= longest:
        item = items.pop()
        size += len(item) if isinstance(item, str | list | tuple | dict) else 0
        items += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return size


def _listed(value: Any) -> Any:
    """Returns what can be gone through once as a list."""
    return list(value) if isinstance(value, Iterator) else value


def _growing(function: Callable) -> Callable:
    """Makes a filter look at the lengths of what it is given."""

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        arguments = tuple(map(_listed, arguments))
        _check_growth(*arguments, *named.values())
        return function(*arguments, **named)

    return checked


def _format(value: str, *arguments: Any, **named: Any) -> str:
    _check_fields(value)
    return value % (named or arguments)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    _check_fields(layout)
    return datetime.now().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON as transformers does: jinja2's own escapes HTML."""
    _check(_size(indent), 16)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
