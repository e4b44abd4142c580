"""What is answered in a measurement: prompts of a file, tasks with one right answer, or one of each kind of work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import Mistake
from ..seam.model import DiffusionModel
from ..terminal.requests import read_requests
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
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


def _prompt(tokenizer: Tokenizer, max_tokens: int, name: str, text: str, right: str | None = None) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt(name, messages, prompt_tokens(tokenizer, messages), max_tokens, right=right)


def from_tasks(tokenizer: Tokenizer, max_tokens: int, each: int) -> list[Prompt]:
    """Makes `each` prompts of every task that the embedded model learnt, the same ones as in the solve rates."""
    return [_prompt(tokenizer, max_tokens, name, *task) for name in LEARNT for task in made(name, each)]


def from_kinds(tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    return [_prompt(tokenizer, max_tokens, *kind) for kind in KINDS.items()]


def from_file(path: Path, model: DiffusionModel, tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    """Reads one JSON object a line, as the command `batch` takes them. Mistake names the line."""
    requests = read_requests(path, model, tokenizer, Ask(max_tokens=max_tokens))
    if any(request.fill for request in requests):
        raise Mistake(f"{path}: its lines are to be filled; what is measured is answers: need prompts")
    return [Prompt(f"prompt {r.number + 1}", r.messages, r.tokens, r.ask.max_tokens, r.thinking) for r in requests]
