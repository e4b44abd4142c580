"""The lines of a file of requests: one JSON object each, which asks for an answer or for gaps to be filled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import Mistake
from ..fill.infill import Infill, around, check_fill, fill_prompt, gap_lengths
from ..seam.model import DiffusionModel
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
from ..writing.blocks import Open
from ..writing.writing import check_room
from .command import read_file, read_stdin

FIELDS = {"prompt", "messages", "system", "thinking", "max_tokens", "seed"}
FILL_FIELDS = {"fill", "prefix", "suffix", "gap", "heal"}
KINDS = dict.fromkeys(["prompt", "fill", "prefix", "suffix"], (str, "a text"))
KINDS |= dict.fromkeys(["thinking", "heal"], (bool, "true or false"))
KINDS |= {"system": (str | None, "a text"), "messages": (list, "a list")}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line as it was read. Without messages, it says what holds for lines that say nothing else."""

    where: str = ""  # "FILE, line 3", for mistakes
    messages: list[dict] = field(default_factory=list)
    system: str | None = None
    thinking: bool = False
    max_tokens: int = Ask.max_tokens
    seed: int = 0
    texts: Sequence[str] = ()  # around the gaps; none: it asks for an answer
    lengths: Sequence[int] | None = None  # tokens of each gap; None: searched
    heal: bool = False


@dataclass(frozen=True)
class Request:
    """A line in a model's tokens."""

    number: int  # among those of the file, from 0
    messages: list[dict]  # the text of `tokens`
    thinking: bool
    tokens: list[int]
    ask: Ask
    fill: Infill | None  # the text to fill; None: it asks for an answer


def read_lines(path: str, default: Line) -> list[Line]:
    """Reads a file, or standard input for "-". Mistake names the line that cannot be a request."""
    name = "standard input" if path == "-" else path
    text = read_stdin() if path == "-" else read_file(path)
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                lines.append(_parse(line, replace(default, where=where)))
                if bool(lines[-1].texts) != bool(lines[0].texts):
                    raise Mistake("some lines ask for an answer, and some are to be filled: make two files of them")
            except Mistake as mistake:
                raise Mistake(f"{where}: {mistake}") from None
    if not lines:
        raise Mistake(f"{name} holds no requests: need one JSON object a line")
    return lines


def _parse(line: str, default: Line) -> Line:
    given = _object(line)
    texts, lengths = _gaps(given) if FILL_FIELDS & set(given) else ([], None)
    prompt = given.get("prompt", fill_prompt(texts))
    options = {name: given[name] for name in ("system", "thinking", "max_tokens", "seed") if name in given}
    parsed = replace(default, texts=texts, lengths=lengths, heal=given.get("heal", False), **options)
    if texts and parsed.thinking:
        raise Mistake("what fills a gap is not thought about: leave out thinking")
    return replace(parsed, messages=given.get("messages", [{"role": "user", "content": prompt}]))


def _object(line: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise Mistake(f"not JSON: {error}") from None
    prompts = isinstance(given, dict) and ("prompt" in given) + ("messages" in given)
    if not isinstance(given, dict) or prompts > 1 or not (prompts or FILL_FIELDS & set(given)):
        raise Mistake(f'need an object with "prompt" or "messages", or with a text to fill, got {line[:60]}')
    if unknown := set(given) - FIELDS - FILL_FIELDS:
        raise Mistake(f"{sorted(unknown)[0]} is not one of {', '.join(sorted(FIELDS | FILL_FIELDS))}")
    for name, (kind, words) in KINDS.items():
        if name in given and not isinstance(given[name], kind):
            raise Mistake(f'"{name}" is {words}, got {given[name]!r}')
    for name, smallest in (("max_tokens", 1), ("seed", 0)):
        value = given.get(name, smallest)
        if type(value) is not int or value < smallest:
            raise Mistake(f"need {name} >= {smallest}, got {value!r}")
    return given


def _gaps(given: dict[str, Any]) -> tuple[list[str], list[int] | None]:
    """Returns the texts around the gaps of a line, and the lengths of the gaps."""
    if "fill" in given and {"prefix", "suffix"} & set(given):
        raise Mistake('"fill" and "prefix" or "suffix" are two ways to say what is there: give one')
    texts = around(*(given.get(name) for name in ("fill", "prefix", "suffix")))
    gap = given.get("gap")
    lengths = gap if isinstance(gap, list) or gap is None else [gap]
    if lengths is not None and (not lengths or not all(type(n) is int and n >= 1 for n in lengths)):
        raise Mistake(f"need gap to be tokens, 1 or more, or a list of such numbers, got {gap!r}")
    return texts, gap_lengths(lengths, len(texts) - 1)


def to_requests(lines: Sequence[Line], model: DiffusionModel, tokenizer: Tokenizer, ask: Ask) -> list[Request]:
    """Encodes all lines. Mistake names the line that this model has no room for."""
    requests = []
    for number, line in enumerate(lines):
        try:
            requests.append(_request(line, number, model, tokenizer, ask))
        except Mistake as mistake:
            raise Mistake(f"{line.where}: {mistake}") from None
    return requests


def _request(line: Line, number: int, model: DiffusionModel, tokenizer: Tokenizer, ask: Ask) -> Request:
    tokens = prompt_tokens(tokenizer, line.messages, system=line.system, thinking=line.thinking)
    system = [] if line.system is None else [{"role": "system", "content": line.system}]
    ask, fill = replace(ask, max_tokens=line.max_tokens, seed=line.seed), None
    if line.texts:
        fill = Infill(prompt=tokens, texts=line.texts, lengths=line.lengths, heal=line.heal, ask=ask)
        check_fill(model, tokenizer, fill)
    else:
        check_room(model, len(tokens), _narrowest(model, ask))
    return Request(number, system + line.messages, line.thinking, tokens, ask, fill)


def _narrowest(model: DiffusionModel, ask: Ask) -> int:
    """Returns the tokens that an answer needs room for, as `diffuse.begin` does."""
    width = Open(model.facts, 0, ask.max_tokens, ask.sampling.canvas_length).width()
    return {"ar": 1, "auto": model.facts.canvas_length}.get(ask.mode, width)


def read_requests(path: Path, model: DiffusionModel, tokenizer: Tokenizer, ask: Ask) -> list[Request]:
    """Reads a file and encodes its lines, with `ask` for those that say nothing else."""
    return to_requests(read_lines(str(path), Line(max_tokens=ask.max_tokens, seed=ask.seed)), model, tokenizer, ask)
