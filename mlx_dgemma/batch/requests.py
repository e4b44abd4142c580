"""The lines of a file of prompts, and what comes of each: one JSON object a line, in and out.

A line asks for an answer, or it is a text with gaps to be filled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound
from ..fill.infill import Infill, around, check_fill, fill_prompt, gap_lengths, infill
from ..forms.choices import PASSES, chosen
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing import writing as diffusion
from ..writing.answer import Answer, prompt_tokens
from ..writing.batch import batch
from ..writing.sampling import Sampling
from ..writing.writing import Step, check_request

FIELDS = {"prompt", "messages", "system", "thinking", "max_tokens", "seed"}
OF_FILL = {"fill", "prefix", "suffix", "gap", "heal"}


@dataclass(frozen=True)
class Request:
    number: int  # among those of the file, from 0
    tokens: list[int]
    max_tokens: int
    seed: int
    messages: list[dict]  # what `tokens` say
    thinking: bool
    fill: Infill | None = None  # what is to be filled, if it is not to be answered


def _object(line: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise Mistake(f"not JSON: {error}") from None
    asks = isinstance(given, dict) and ("prompt" in given) + ("messages" in given)
    if not isinstance(given, dict) or asks > 1 or not (asks or OF_FILL & set(given)):
        raise Mistake(f'need an object with "prompt" or "messages", or with a text to fill, got {line[:60]}')
    if unknown := set(given) - FIELDS - OF_FILL:
        raise Mistake(f"{sorted(unknown)[0]} is not one of {', '.join(sorted(FIELDS | OF_FILL))}")
    for name in ("prompt", "fill", "prefix", "suffix"):
        if not isinstance(given.get(name, ""), str):
            raise Mistake(f'"{name}" is a text, got {given[name]!r}')
    if not isinstance(given.get("messages", []), list):
        raise Mistake(f'"messages" is a list, got {given["messages"]!r}')
    return given


def _gaps(options: dict[str, Any]) -> tuple[list[str], list[int] | None]:
    """What is around the gaps of a line, and how long they are."""
    if "fill" in options and {"prefix", "suffix"} & set(options):
        raise Mistake('"fill" and "prefix" or "suffix" are two ways to say what is there: give one')
    if options["thinking"]:
        raise Mistake("what fills a gap is not thought about: leave out thinking")
    texts = around(*(options.get(name) for name in ("fill", "prefix", "suffix")))
    gap = options.get("gap")
    lengths = gap if isinstance(gap, list) or gap is None else [gap]
    if lengths is not None and (not lengths or not all(type(n) is int and n >= 1 for n in lengths)):
        raise Mistake(f"need gap to be tokens, 1 or more, or a list of such numbers, got {gap!r}")
    return texts, gap_lengths(lengths, len(texts) - 1)


def _request(line: str, number: int, model: DiffusionModel, tokenizer: Tokenizer, defaults: dict[str, Any]) -> Request:
    given = _object(line)
    options = {**defaults, **given}
    for name, smallest in (("max_tokens", 1), ("seed", 0)):
        if type(options[name]) is not int or options[name] < smallest:
            raise Mistake(f"need {name} >= {smallest}, got {options[name]!r}")
    texts, lengths = _gaps(options) if OF_FILL & set(given) else ([], None)
    prompt = given.get("prompt", fill_prompt(texts))
    messages = given.get("messages", [{"role": "user", "content": prompt}])
    system, thinking = options["system"], bool(options["thinking"])
    tokens = prompt_tokens(tokenizer, messages, system=system, thinking=thinking)
    messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    fill = None
    if texts:
        heal, seed = bool(given.get("heal")), options["seed"]
        fill = Infill(prompt=tokens, texts=texts, lengths=lengths, heal=heal, seed=seed)
        check_fill(model, tokenizer, fill)
    else:
        check_request(model, tokens, options["max_tokens"])
    return Request(number, tokens, options["max_tokens"], options["seed"], messages, thinking, fill)


def read_requests(path: Path, model: DiffusionModel, tokenizer: Tokenizer, defaults: dict[str, Any]) -> list[Request]:
    """One JSON object a line: `prompt` or `messages`, and what else of FIELDS differs from `defaults`; or, if so on all
    lines, something of OF_FILL. All are looked at before the first is answered: Mistake names the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file; --prompts takes one JSON object a line") from None
    except UnicodeDecodeError as error:
        raise Mistake(f"{path} is not UTF-8: {error}") from None
    requests: list[Request] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                request = _request(line, len(requests), model, tokenizer, defaults)
                if requests and (request.fill is None) != (requests[0].fill is None):
                    raise Mistake("some lines ask for an answer, and some are to be filled: make two files of them")
                requests.append(request)
            except Mistake as mistake:
                raise Mistake(f"{path}, line {number}: {mistake}") from None
    if not requests:
        raise Mistake(f"{path} holds no prompts: need one JSON object a line")
    return requests


def answers(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    sampling: Sampling,
    requests: Sequence[Request],
    size: int,
    begin: Callable[..., Any] = diffusion.begin,
    write: Callable[..., Iterator[Step]] = batch,
) -> Iterator[dict[str, Any]]:
    """Answer `requests`, `size` at a time -> one object each, in their order. Text, steps and blocks are those that a
    request has alone; seconds run from its admission. `begin` makes what writes each one, `write` writes them."""
    running: dict[int, tuple[Answer, Request]] = {}
    finished: dict[int, dict[str, Any]] = {}

    def writings() -> Iterator[Any]:
        for request in requests:
            options = {"max_tokens": request.max_tokens, "seed": request.seed, "request": request.number}
            running[request.number] = Answer(model.config, tokenizer, request.max_tokens), request
            yield begin(model, request.tokens, sampling=sampling, **options)

    upcoming = iter(requests)
    awaited = next(upcoming, None)
    for step in write(model, writings(), size):
        answer, request = running[step.request]
        answer.add(step)
        if step.reason is None:
            continue
        del running[step.request]
        numbers = answer.statistics(len(request.tokens))
        finished[step.request] = {"request": step.request, **numbers, "seed": request.seed}
        while awaited and awaited.number in finished:
            yield finished.pop(awaited.number)
            awaited = next(upcoming, None)


def fillings(
    model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling, requests: Sequence[Request], size: int
) -> Iterator[dict[str, Any]]:
    """Fill the gaps of `requests`, `size` texts at a time -> one object each, as each gets it alone. Seconds are those
    of all that were filled together."""
    for first in range(0, len(requests), size):
        own, start = requests[first : first + size], time.perf_counter()
        filled = infill(model, tokenizer, [request.fill for request in own], sampling=sampling, size=size)
        seconds = time.perf_counter() - start
        for request, one in zip(own, filled, strict=True):
            numbers = {"tokens": sum(one.lengths), "steps": sum(one.steps), "seconds": seconds, "seed": request.seed}
            yield {"request": request.number, "text": one.text, **asdict(one), **numbers}


def choices_of(
    model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling, requests: Sequence[Request], choices: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Of each of `requests` the most probable of `choices` -> one object each; those of one are denoised together."""
    for request in requests:
        start = time.perf_counter()
        said = chosen(model, tokenizer, request.tokens, choices, sampling=sampling, seed=request.seed)
        numbers = {"tokens": len(tokenizer.encode(said["text"])), "steps": PASSES, "seed": request.seed}
        yield {"request": request.number, **said, **numbers, "seconds": time.perf_counter() - start}


def answered(path: Path) -> int:
    """How many results of an earlier run `path` holds; a line that was cut short is taken away."""
    if not path.exists():
        return 0
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    return len(whole.splitlines())
