"""The lines of a file of requests: one JSON object each, which asks for an answer or for gaps to be filled."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import Mistake, need, need_whole
from ..fill.infill import Infill, check_fill, fill_prompt, gap_lengths, texts_around
from ..fill.line_ends import BOM, normalized
from ..seam.model import DiffusionModel
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import read_tools
from ..writing.ask import Ask
from ..writing.diffuse import check_answer
from .command import read

FIELDS = {  # name -> type, words
    **dict.fromkeys(["prompt", "fill", "prefix", "suffix"], (str, "a text")),
    **dict.fromkeys(["thinking", "heal"], (bool, "true or false")),
    **dict.fromkeys(["max_tokens", "seed"], (int, "a whole number")),
    "gap": (int | list | None, "tokens, or a list of such numbers"),
    "system": (str | None, "a text"),
    "messages": (list, "a list"),
    "tools": (list | dict | None, "a list of tools"),
}
FILL_FIELDS = {"fill", "prefix", "suffix", "gap", "heal"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A line of the file; or the default, which has what a line leaves out."""

    number: int = 0  # among those of the file, from 0
    where: str = ""  # "FILE, line 3", for mistakes
    system: str | None = None
    turns: list[dict] = field(default_factory=list)  # behind the system's
    thinking: bool = False
    tools: list[dict] | None = None
    ask: Ask = field(default_factory=Ask)
    texts: Sequence[str] = ()  # around the gaps; none: it asks for an answer
    lengths: Sequence[int] | None = None  # tokens of each gap; None: searched
    heal: bool = False
    tokens: Sequence[int] = ()  # of the messages, once they are encoded

    @property
    def messages(self) -> list[dict]:
        return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self.turns]

    @property
    def fill(self) -> Infill | None:
        """The text to fill; None where it asks for an answer."""
        if not self.texts:
            return None
        return Infill(prompt=self.tokens, texts=self.texts, lengths=self.lengths, heal=self.heal, ask=self.ask)


def read_lines(path: str, default: Request) -> list[Request]:
    """Reads a file, or standard input for "-". Mistake names the line that cannot be a request."""
    name, requests = "standard input" if path == "-" else path, []
    for line_number, line in enumerate(read(path).removeprefix(BOM).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {line_number}"
        try:
            requests.append(_parse(line, replace(default, number=len(requests), where=where)))
            if bool(requests[-1].texts) != bool(requests[0].texts):
                raise Mistake("some lines ask for an answer, and some are to be filled: make two files of them")
        except Mistake as mistake:
            raise Mistake(f"{where}: {mistake}") from None
    if not requests:
        raise Mistake(f"{name} holds no requests: need one JSON object a line")
    return requests


def _parse(line: str, default: Request) -> Request:
    fields = _read_object(line)
    texts, lengths = _gaps(fields) if FILL_FIELDS & set(fields) else ([], None)
    thinking = fields.get("thinking", default.thinking)
    if texts and thinking:
        raise Mistake("what fills a gap is not thought about: leave out thinking")
    prompt = normalized(fields["prompt"]) if "prompt" in fields else fill_prompt(texts)
    turns = [_with_lines(m) for m in fields.get("messages") or []] or [{"role": "user", "content": prompt}]
    system = fields.get("system", default.system)
    return replace(
        default,
        system=system and normalized(system),
        turns=turns,
        thinking=thinking,
        tools=read_tools(fields["tools"]) if fields.get("tools") else None,
        ask=replace(default.ask, **{name: fields[name] for name in ("max_tokens", "seed") if name in fields}),
        texts=texts,
        lengths=lengths,
        heal=fields.get("heal", False),
    )


def _with_lines(message: Any) -> Any:
    r"""Returns a message whose text, if it is one, has lines that end with "\n"."""
    text = message.get("content") if isinstance(message, dict) else None
    return message | {"content": normalized(text)} if isinstance(text, str) else message


def _read_object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"not JSON: {error}") from None
    prompts = isinstance(fields, dict) and ("prompt" in fields) + bool(fields.get("messages"))
    if not isinstance(fields, dict) or prompts > 1 or not (prompts or FILL_FIELDS & set(fields)):
        raise Mistake(f'need an object with "prompt" or "messages", or with a text to fill, got {line[:60]}')
    if unknown := sorted(fields.keys() - FIELDS):
        raise Mistake(f"{unknown[0]} is not one of {', '.join(sorted(FIELDS))}")
    for name, value in fields.items():
        kind, words = FIELDS[name]
        need(isinstance(value, kind), f'"{name}" to be {words}', repr(value))
    need(fields.get("gap") != [], '"gap" to be tokens, or a list of such numbers', "[]")
    for name, least in {"max_tokens": 1, "seed": 0, "gap": 1}.items():
        value = least if fields.get(name) is None else fields[name]
        for number in value if isinstance(value, list) else [value]:
            need_whole(name, number, least)
    return fields


def _gaps(fields: dict[str, Any]) -> tuple[list[str], list[int] | None]:
    """Returns the texts around the gaps of a line, and the lengths of the gaps."""
    if "fill" in fields and {"prefix", "suffix"} & set(fields):
        raise Mistake('"fill" and "prefix" or "suffix" are two ways to say what is there: give one')
    texts, gap = texts_around(*(fields.get(name) for name in ("fill", "prefix", "suffix"))), fields.get("gap")
    return texts, gap_lengths([gap] if isinstance(gap, int) else gap, len(texts) - 1)


def encode(requests: Sequence[Request], model: DiffusionModel, tokenizer: Tokenizer, ask: Ask) -> list[Request]:
    """Gives all requests their tokens, and `ask` in what they leave out. Mistake names the line that this model has no
    room for."""
    encoded = []
    for request in requests:
        asked = replace(ask, max_tokens=request.ask.max_tokens, seed=request.ask.seed)
        try:
            flags = {"system": request.system, "thinking": request.thinking, "tools": request.tools}
            tokens = prompt_tokens(tokenizer, request.turns, **flags)
            encoded.append(replace(request, tokens=tokens, ask=asked))
            if fill := encoded[-1].fill:
                check_fill(model, tokenizer, fill)
            else:
                check_answer(model, len(tokens), asked)
        except Mistake as mistake:
            raise Mistake(f"{request.where}: {mistake}") from None
    return encoded


def read_requests(path: Path, model: DiffusionModel, tokenizer: Tokenizer, ask: Ask) -> list[Request]:
    """Reads a file and encodes its lines, with `ask` for those that say nothing else."""
    return encode(read_lines(str(path), Request(ask=ask)), model, tokenizer, ask)
