"""Examples: mlx-lm's files of JSON lines, or a data set of the hub, as tokens."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Mistake, NoRoom, NotFound
from ..fill.line_ends import BOM
from ..seam.model import Facts
from ..terminal.command import read
from ..tokens.messages import template_messages
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import RESPONSE_OPEN, read_tools
from .loss import Example

SPLITS = ("train", "valid", "test")
Record = tuple[str, dict]  # where it stands, and the line


@dataclass
class Examples:
    """What of a file can be learnt, and how much cannot and why."""

    name: str
    examples: list[Example] = field(default_factory=list)
    where: list[str] = field(default_factory=list)  # of each example
    dropped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def report(self) -> str:
        lost = "; ".join(f"{count} left out: {why}" for why, count in self.dropped.items())
        tokens = sum(example.length for example in self.examples)
        return f"{self.name}: {len(self)} examples, {tokens} tokens" + (f"; {lost}" if lost else "")

    def split(self, count: int) -> tuple[Examples, Examples]:
        """The examples but `count` of them, and those, taken from all over the file."""
        aside = set(np.linspace(0, len(self) - 1, min(count, len(self) // 2)).astype(int).tolist())
        parts = [i for i in range(len(self)) if i not in aside], sorted(aside)
        return tuple(
            Examples(self.name, [self.examples[i] for i in part], [self.where[i] for i in part]) for part in parts
        )

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for example in self.examples:
            for tokens in (example.prompt, example.answer):
                digest.update(len(tokens).to_bytes(4, "little") + tokens.tobytes())
        return digest.hexdigest()[:16]


class Encoder:
    """Examples of one model: prompts as its chat template writes them, answers with the token that ends a turn."""

    def __init__(self, tokenizer: Tokenizer, facts: Facts, longest: int):
        self.tokenizer, self.facts = tokenizer, facts
        self.longest = min(longest, facts.max_position_embeddings - facts.canvas_length)
        self.fill = facts.pad_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.end = self.fill
        if tokenizer.has_chat_template:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            ids = tokenizer.chat(turns, add_generation_prompt=False)
            self.end = next((token for token in reversed(ids) if token in facts.stop_ids), self.fill)

    def examples(self, name: str, records: Sequence[Record]) -> Examples:
        """Mistake names the line that is no example."""
        made, first = Examples(name), ""
        for where, record in records:
            try:
                example = self.example(record)
                length = example.length
            except NoRoom:  # so long that nobody counted its tokens
                length = inf
            except Mistake as mistake:
                raise Mistake(f"{where}: {mistake}") from None
            if length > self.longest:
                first = first or f" ({where}{'' if length == inf else f', {length} tokens'}, first)"
                made.dropped[f"longer than {self.longest} tokens{first}"] += 1
            else:
                made.examples.append(example)
                made.where.append(where)
        return made

    def example(self, record: dict) -> Example:
        tools = record.get("tools")
        if "messages" in record:
            messages = record["messages"]
            if not isinstance(messages, list):
                raise Mistake(f"messages must be a list of turns, got {messages!r:.80}")
        elif {"prompt", "completion"} <= record.keys():
            messages = [{"role": "user", "content": record["prompt"]}]
            messages += [{"role": "assistant", "content": record["completion"]}]
        elif "text" in record:
            return self._text(record["text"])
        else:
            raise Mistake(
                f"need messages, prompt and completion, or text; got {', '.join(record) or 'an empty object'}"
            )
        messages, tools = template_messages(messages), read_tools(tools) if tools else None  # as what is asked later
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise Mistake("the last turn must be the assistant's, behind a prompt: it is the answer that is learnt")
        prompt = self.tokenizer.chat(messages[:-1], tools=tools)
        return Example(np.array(prompt, np.int32), np.array(self._answer(messages, tools), np.int32))

    def _text(self, text: Any) -> Example:
        if not isinstance(text, str) or not text:
            raise Mistake(f"text must be a text that is not empty, got {text!r:.80}")
        begin = self.tokenizer.bos_token_id
        return Example(
            np.array([self.fill if begin is None else begin], np.int32),
            np.array([*self.tokenizer.encode(text), self.fill], np.int32),
        )

    def _answer(self, messages: list[dict], tools: list[dict] | None) -> list[int]:
        if messages[-1].get("tool_calls"):
            return self._called(messages, tools)
        content = messages[-1]["content"]
        if not content.strip():
            raise Mistake(f"the answer is empty: nothing can be learnt from {content!r:.80}")
        return [*self.tokenizer.encode(content), self.end]

    def _called(self, messages: list[dict], tools: list[dict] | None) -> list[int]:
        """A turn with tool calls, as the template writes it behind what opens a turn."""
        before = self.tokenizer.chat(messages[:-1], tools=tools, add_generation_prompt=False)
        opening = self.tokenizer.chat(messages[:-1], tools=tools)[len(before) :]
        written = self.tokenizer.chat(messages, tools=tools, add_generation_prompt=False)[len(before) :]
        same = (i for i, pair in enumerate(zip(opening, written, strict=False)) if pair[0] != pair[1])
        answer = written[next(same, len(opening)) :]
        ends = [i for i, token in enumerate(answer) if token in self.facts.stop_ids]
        called = self.tokenizer.token_id(RESPONSE_OPEN)
        if ends:
            return answer[: ends[0] + 1]
        return [*answer, called if called in self.facts.stop_ids else self.end]


def read_split(data: str, split: str) -> list[Record] | None:
    """The lines of a split; None where there is none of that name."""
    folder = Path(data).expanduser()
    if folder.is_dir():
        file = folder / f"{split}.jsonl"
        return read_lines(file) if file.exists() else None
    if folder.exists():
        raise Mistake(f"--data {data} is a file: need a folder with train.jsonl")
    return _from_hub(data, split)


def read_lines(file: Path) -> list[Record]:
    records = []
    for number, line in enumerate(read(str(file)).removeprefix(BOM).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise Mistake(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise Mistake(f"{where} must be a JSON object, got {line:.80}")
        records.append((where, record))
    return records


def _from_hub(data: str, split: str) -> list[Record] | None:
    try:
        import datasets
    except ModuleNotFoundError:
        what = f"--data {data}: no such folder; for data sets of the hub: pip install datasets"
        raise NotFound(what) from None
    try:
        found = datasets.load_dataset(data)
    except (OSError, ValueError) as error:
        raise NotFound(f"--data {data} cannot be fetched: {' '.join(str(error).split())[:200]}") from None
    names = [split, {"valid": "validation"}.get(split, split)]
    rows = next((found[name] for name in names if name in found), None)
    return rows and [(f"{data} {split}, row {number}", dict(row)) for number, row in enumerate(rows)]


def batches(examples: Examples, size: int, seed: int) -> Iterator[list[int]]:
    """Places of the examples of each batch, without end. An epoch has each example once, its last batch is filled up
    with some of the first. A batch has all lengths, and so all kinds of examples: what is forgotten in a step of one
    kind is not made good by the next of another."""
    number, epoch = len(examples), 0
    if size > number:
        raise Mistake(f"{examples.name} has {number} examples, fewer than a batch's {size}: give fewer, or more data")
    while size:
        order = np.random.default_rng([seed, epoch]).permutation(number).tolist()
        order += order[: -number % size]
        for first in range(0, len(order), size):
            yield order[first : first + size]
        epoch += 1
    while True:
        yield []
