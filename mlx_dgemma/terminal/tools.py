"""The flag --tools, of commands whose model may call something."""

import json

from ..errors import Mistake
from ..tokens.messages import hears_tools
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import read_tools
from .command import note, read


def add_tools(add, more: str = "") -> None:
    functions = f"functions that the model may call, as OpenAI, Anthropic or MCP list them{more}"
    add("--tools", metavar="FILE.json", help=functions)


def read_tool_file(path: str | None) -> list[dict] | None:
    """Returns the tools of a file, or None without one. Mistake names the file and what is wrong in it."""
    if path is None:
        return None
    text = read(path)
    try:
        return read_tools(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Mistake(f"--tools {path}: {error}") from None


def tell_unheard(name: str, tokenizer: Tokenizer, tools: list[dict] | None) -> None:
    if tools and not hears_tools(tokenizer, tools):
        note(f"{name}: this model's chat template has no place for tools: it is not told of them")
