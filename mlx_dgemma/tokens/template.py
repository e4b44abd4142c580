"""The chat template of a checkpoint folder, which writes a conversation as a prompt."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mistake
from .parts import Parts, marked, unmarked

if TYPE_CHECKING:
    import jinja2


class ChatTemplate:
    """A jinja2 template. It is foreign code and runs in a sandbox, with the helpers that transformers gives it.

    `special_tokens` maps the names that it may use ("bos_token", ...) to their text; `split` finds the special tokens
    in a string.
    """

    def __init__(self, source: str, folder: Path, special_tokens: dict[str, str], split: Callable[[str], Parts]):
        self._source, self._folder, self._split = source, folder, split
        self._special_tokens = special_tokens
        self._compiled: dict[bool, jinja2.Template] = {}

    def text(self, messages: list[dict], flags: dict[str, Any]) -> str:
        """Renders the prompt as one string, as the reference does. Mistake: as `parts`."""
        return self._render(messages, flags, marks=False)

    def parts(self, messages: list[dict], flags: dict[str, Any]) -> Parts:
        """Renders the prompt as text and control tokens.

        The tokens are those that the template's literals spell whole. Messages are text, save the marks in them; a
        token that the template would put together from pieces is text too. Mistake: the template refuses these
        messages, is broken, or does what its sandbox forbids.
        """
        return unmarked(self._render(messages, flags, marks=True))

    def _render(self, messages: list[dict], flags: dict[str, Any], *, marks: bool) -> str:
        import jinja2  # here, because it takes longer to import than all else in this room

        names = self._special_tokens
        if marks:
            names = {name: self._marked(text) for name, text in names.items()}
        try:
            if marks not in self._compiled:
                self._compiled[marks] = self._compile(marks)
            return self._compiled[marks].render(messages=messages, documents=None, **flags, **names)
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            # Its own complaint, a fault in it, what the sandbox forbids, or what one of its expressions raised.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise Mistake(f"the chat template in {self._folder} failed, {reason}") from error

    def _compile(self, marks: bool) -> "jinja2.Template":
        from jinja2 import nodes

        environment = _sandbox()
        tree = environment.parse(self._source)
        if marks:
            for literal in tree.find_all(nodes.TemplateData):
                literal.data = self._marked(literal.data)
            for literal in tree.find_all(nodes.Const):
                if isinstance(literal.value, str):
                    literal.value = self._marked(literal.value)
        return environment.from_string(tree)

    def _marked(self, text: str) -> str:
        return marked(self._split(text))


def _sandbox() -> "jinja2.Environment":
    import jinja2.ext
    import jinja2.sandbox

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # jinja2's escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Reads chat_template.jinja, or the template in `config` (of tokenizer_config.json); None where there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise Mistake(f"{path} is not UTF-8 text ({error}): fetch the file again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None
