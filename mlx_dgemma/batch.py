"""Many texts at once: the rows of a pass are canvases of different requests, each at its own block and step.

A request is admitted as soon as a place is free, at any pass, and leaves with its last one. Its prompt, and the blocks
it commits, are encoded in passes that denoise the others' canvases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import left_to_right, repair
from .answer import Answer, prompt_tokens
from .diffusion import Step, Writing, begin, check_request
from .interface import DiffusionModel
from .mistake import Mistake, NotFound
from .sampling import Sampling
from .tokenizer import Tokenizer

FIELDS = {"prompt", "messages", "system", "thinking", "max_tokens", "seed"}


def batch(model: DiffusionModel, writings: Iterable[Writing], size: int) -> Iterator[Step]:
    """Steps of all of `writings`, at most `size` at a time, pass by pass; within a pass in the order of admission.

    `writings` is asked for the next one only when there is room for it.
    """
    waiting, active = iter(writings), []
    while True:
        while len(active) < size and (new := next(waiting, None)) is not None:
            active.append(new)
        if not active:
            return
        predictions = model.denoise([writing.row() for writing in active])
        for writing, prediction in zip(active, predictions, strict=True):
            yield writing.take(prediction)
        active = [writing for writing in active if not writing.done]


def together(mode: str, verify: bool, begin: Callable[..., Writing] = begin) -> tuple[Callable, Callable]:
    """What begins each of many texts, `begin` where nothing else is asked for, and what writes them."""
    if mode == "ar":
        return left_to_right.begin, left_to_right.batch
    return (repair.begin if verify else begin), batch


@dataclass(frozen=True)
class Request:
    number: int  # among those of the file, from 0
    tokens: list[int]
    max_tokens: int
    seed: int
    messages: list[dict]  # what `tokens` say
    thinking: bool


def _request(line: str, number: int, model: DiffusionModel, tokenizer: Tokenizer, defaults: dict[str, Any]) -> Request:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise Mistake(f"not JSON: {error}") from None
    if not isinstance(given, dict) or ("prompt" in given) == ("messages" in given):
        raise Mistake(f'need an object with "prompt" or "messages", got {line[:60]}')
    if unknown := set(given) - FIELDS:
        raise Mistake(f"{sorted(unknown)[0]} is not one of {', '.join(sorted(FIELDS))}")
    options = {**defaults, **given}
    for name, smallest in (("max_tokens", 1), ("seed", 0)):
        if type(options[name]) is not int or options[name] < smallest:
            raise Mistake(f"need {name} >= {smallest}, got {options[name]!r}")
    prompt = given.get("prompt", given.get("messages"))
    if not isinstance(prompt, str if "prompt" in given else list):
        raise Mistake(f'"prompt" is a text and "messages" a list, got {line[:60]}')
    system, thinking = options["system"], bool(options["thinking"])
    tokens = prompt_tokens(tokenizer, prompt, system=system, thinking=thinking)
    check_request(model, tokens, options["max_tokens"])
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    return Request(number, tokens, options["max_tokens"], options["seed"], messages, thinking)


def read_requests(path: Path, model: DiffusionModel, tokenizer: Tokenizer, defaults: dict[str, Any]) -> list[Request]:
    """One JSON object a line: `prompt` or `messages`, and what else of FIELDS differs from `defaults`. All are looked
    at before the first is answered: Mistake names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file; --prompts takes one JSON object a line") from None
    except UnicodeDecodeError as error:
        raise Mistake(f"{path} is not UTF-8: {error}") from None
    requests: list[Request] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                requests.append(_request(line, len(requests), model, tokenizer, defaults))
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
    begin: Callable[..., Any] = begin,
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


def answered(path: Path) -> int:
    """How many results of an earlier run `path` holds; a line that was cut short is taken away."""
    if not path.exists():
        return 0
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    return len(whole.splitlines())
