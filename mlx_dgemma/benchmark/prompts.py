"""What is written in a measurement: prompts of a file, tasks with one right answer, or a few of each kind of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..batch.requests import read_requests
from ..errors import Mistake
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.answer import prompt_tokens
from .tasks import LEARNT, made

KINDS = {  # name -> prompt, for a model that knows more than the tasks
    "json": "Answer with JSON only, with the keys name, age, job and city: Ivan, a clerk from Kyiv, is 43 years old.",
    "short answer": "What is the capital of Australia? Answer with its name only.",
    "code": "Write a Python function that returns the n-th Fibonacci number without recursion. Code only.",
    "maths": "A train leaves at 9:40, goes at 84 km/h and arrives at 13:05. How far does it go? Think step by step.",
    "explanation": "Explain why the sky is blue to a ten-year-old, in about 150 words.",
    "story": "Write the beginning of a story about a lighthouse keeper who finds a letter, in about 250 words.",
}


@dataclass(frozen=True)
class Prompt:
    name: str
    messages: list[dict[str, str]]  # for a model with another tokenizer and chat template
    tokens: list[int]
    max_tokens: int
    thinking: bool = False
    right: str | None = None  # the one right answer, where there is one

    def solved(self, text: str) -> bool | None:
        return None if self.right is None else text == self.right


def _prompt(tokenizer: Tokenizer, name: str, text: str, max_tokens: int, right: str | None = None) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt(name, messages, prompt_tokens(tokenizer, messages), max_tokens, right=right)


def from_tasks(tokenizer: Tokenizer, max_tokens: int, each: int, names: Sequence[str] = LEARNT) -> list[Prompt]:
    """`each` prompts of every task, the same ones as in the solve rates of README."""
    found = []
    for name in names:
        found += [_prompt(tokenizer, name, text, max_tokens, right) for text, right in made(name, each)]
    return found


def from_kinds(tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    return [_prompt(tokenizer, name, text, max_tokens) for name, text in KINDS.items()]


def from_file(path: Path, model: DiffusionModel, tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    """One JSON object a line, as `generate --prompts` takes them. Mistake names the line."""
    defaults = {"max_tokens": max_tokens, "seed": 0, "system": None, "thinking": False}
    requests = read_requests(path, model, tokenizer, defaults)
    if any(one.fill for one in requests):
        raise Mistake(f"{path}: its lines are to be filled; what is measured is answers: need prompts")
    return [
        Prompt(f"prompt {one.number + 1}", one.messages, one.tokens, one.max_tokens, one.thinking) for one in requests
    ]
