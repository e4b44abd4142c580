"""The chat template of a checkpoint folder, which writes a conversation as a prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.description import TOKENIZER_CONFIG
from ..checkpoint.folder import is_file, read_bytes, read_json
from ..errors import Mistake
from .parts import Parts, marked, unmarked

if TYPE_CHECKING:
    import jinja2


LONGEST = 500_000  # characters of a template; the longest known has 20,000


class ChatTemplate:
    """A jinja2 template. It is foreign code and runs in a sandbox, within bounds of time and length.

    `special_tokens` maps the names that it may use ("bos_token", ...) to their text; `split` finds the special tokens
    in a string.
    """

    def __init__(self, source: str, folder: Path, special_tokens: dict[str, str], split: Callable[[str], Parts]):
        if len(source) > LONGEST:
            raise Mistake(f"the chat template in {folder} has {len(source)} characters, at most {LONGEST} are read")
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

        from .sandbox import bounded

        names = self._special_tokens
        if marks:
            names = {name: self._marked(text) for name, text in names.items()}
        try:
            with bounded(messages, flags):
                if marks not in self._compiled:
                    self._compiled[marks] = self._compile(marks)
                return self._compiled[marks].render(messages=messages, documents=None, **flags, **names)
        except (
            jinja2.TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
            RuntimeError, SyntaxError, TypeError, ValueError,
        ) as error:  # fmt: skip
            # Its own complaint, a fault in it, what the sandbox forbids, or what one of its expressions raised.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise Mistake(f"the chat template in {self._folder} failed, {reason:.200}") from error

    def _compile(self, marks: bool) -> "jinja2.Template":
        from jinja2 import nodes

        from .sandbox import Sandbox

        environment = Sandbox()
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


def read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Reads chat_template.jinja, chat_template.json (what processors wrote until 2025), or the template in `config` (of
    tokenizer_config.json); None where there is none."""
    path = folder / "chat_template.jinja"
    if is_file(path):
        try:
            return read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Mistake(f"{path} is not UTF-8 text ({error}): fetch the file again") from None
    if is_file(path := path.with_suffix(".json")):
        config = read_json(path, TOKENIZER_CONFIG)
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
