"""Steps -> text: the stop token, the length, the thinking channel, tool calls, and the numbers of a run."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..seam.model import DiffusionModel, Facts
from ..tokens.messages import prompt_tokens
from ..tokens.stops import Stops
from ..tokens.stream import TextStream
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import CallStream, ToolCall
from .ask import Ask
from .blocks import until_stop
from .diffuse import diffuse
from .writing import Step


@dataclass
class Answer:
    """One request's text as it grows. Time runs from when it is made."""

    facts: Facts
    tokenizer: Tokenizer
    max_tokens: int
    prompt: Sequence[int] = ()  # what it answers: a thinking channel that it opened goes on in the answer
    stops: Sequence[str] = ()  # texts before which it ends
    tokens: list[int] = field(default_factory=list)  # up to the stop token, that included
    text: str = ""
    thinking: str = ""
    calls: list[ToolCall] = field(default_factory=list)  # of tools; no part of the text
    notes: list[str] = field(default_factory=list)  # what was decided on the way
    steps_per_block: list[int] = field(default_factory=list)  # of finished blocks
    finish_reason: str | None = None
    seconds: float = 0.0
    seconds_to_first_block: float | None = None

    def __post_init__(self) -> None:
        self._start = time.perf_counter()
        self._stream, self._calls = TextStream(self.tokenizer, self.prompt), CallStream(self.tokenizer)
        self._stops, self._filled, self._block = Stops(self.stops), 0, -1
        self._passes, self._first_pass = 0, 0.0  # seconds until the first was done, which read the prompt, too

    @property
    def steps(self) -> int:
        return sum(self.steps_per_block)

    @property
    def found_stop(self) -> str:
        """The one of `stops` that ended it; "" where a token did."""
        return self._stops.found

    @property
    def tokens_before_stop(self) -> list[int]:
        """The tokens of what is shown: `tokens`, less what one of `stops` cut off, which may cut a token in two."""
        if not self.found_stop:
            return self.tokens
        stream, length, whole = TextStream(self.tokenizer, self.prompt), 0, 0  # whole: tokens that are shown as a whole
        for count, token in enumerate(self.tokens, start=1):
            thinking, text = stream.push([token])
            if length + len(text) > len(self.text):
                return self.tokens[:whole] + self.tokenizer.encode(self.text[length:])
            length += len(text)
            if thinking or text or self.tokenizer.piece(token) is None:
                whole = count
        return self.tokens

    @property
    def tokens_per_forward(self) -> float:
        """Tokens over decoder passes, as transformers counts: of whole canvases, up to the stop token, without pads."""
        return self._filled / self.steps if self.steps else 0.0

    def _rates(self, prompt_length: int) -> dict[str, float | None]:
        """Tokens a second, of the prompt and of the answer behind it. The prompt took the time until the first pass was
        done, less a pass as long as the others; None where there is no other."""
        prompt = rate = None
        if self._passes > 1:
            prompt = max(0.0, self._first_pass - (self.seconds - self._first_pass) / (self._passes - 1))
            rate = len(self.tokens) / (self.seconds - prompt)
        return {"prompt_tokens_per_second": prompt_length / prompt if prompt else None, "tokens_per_second": rate}

    def statistics(self, prompt_length: int) -> dict[str, Any]:
        """For --json. Seconds; `tool_calls` as OpenAI has them."""
        return {
            "text": self.text,
            "thinking": self.thinking,
            "tool_calls": [call.to_openai(f"call_{i}") for i, call in enumerate(self.calls)],
            "notes": self.notes,
            "tokens": len(self.tokens),
            "prompt_tokens": prompt_length,
            "blocks": len(self.steps_per_block),
            "steps": self.steps,
            "tokens_per_forward": self.tokens_per_forward,
            "seconds": self.seconds,
            "seconds_to_first_block": self.seconds_to_first_block,
            **self._rates(prompt_length),
            "finish_reason": self.finish_reason,
        }

    def add(self, step: Step) -> tuple[str, str]:
        """(thinking, text) that are new; both empty until a block is final."""
        self.seconds = time.perf_counter() - self._start
        self._passes += 1
        self._first_pass = self._first_pass or self.seconds
        self.notes += [step.note] if step.note else []
        if not step.final:
            return "", ""
        self._count(step)
        content = until_stop(step.draft, self.facts.stop_ids)
        self._filled += int((content != self.facts.pad_id).sum())
        kept = content[: self.max_tokens - len(self.tokens)].tolist()
        self.finish_reason = "length" if step.reason and len(kept) < len(content) else step.reason
        return self._decode(kept)

    def finish(self, tokens: Sequence[int], reason: str) -> tuple[str, str]:
        """End the text with `tokens`, for `reason`. -> as `add`."""
        self.finish_reason = reason
        return self._decode(list(tokens))

    def _count(self, step: Step) -> None:
        if step.block == self._block:  # a block in parts, as it is left to right
            self.steps_per_block.pop()
        self.steps_per_block.append(step.step + 1)
        self._block = step.block
        if self.seconds_to_first_block is None:
            self.seconds_to_first_block = self.seconds

    def _decode(self, tokens: list[int]) -> tuple[str, str]:
        self.tokens += tokens
        plain, calls = self._calls.push(tokens)
        self.calls += calls
        if self.finish_reason:
            plain += self._calls.finish()
        thinking, text = self._stream.push(plain)
        if self.finish_reason:
            rest = self._stream.finish()
            thinking, text = thinking + rest[0], text + rest[1]
        text = self._stops.push(text, last=self.finish_reason is not None)
        self.finish_reason = "stop" if self._stops.found else self.finish_reason
        self.thinking += thinking
        self.text += text
        return thinking, text


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One pass of `stream_generate`, and the text that it finished."""

    text: str  # empty until a block is done
    thinking: str
    step: Step
    finish_reason: str | None  # of the last piece: "stop", "length" or "deadline"


def stream_generate(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[dict],
    ask: Ask | None = None,
    *,
    thinking: bool = False,
    tools: list[dict] | None = None,
) -> Iterator[Piece]:
    """Answer a question, or a conversation [{"role", "content"}, …]: one Piece a pass; text comes as blocks finish.

    Messages may be as clients record them, and `tools` as `read_tools` takes them: see `tokens.messages.prompt_tokens`.

    >>> model, tokenizer, sampling = load()
    >>> for piece in stream_generate(model, tokenizer, "Sort: Lima, Kyiv", Ask(sampling=sampling)):
    ...     print(piece.text, end="")
    """
    ask = ask or Ask()
    tokens = prompt_tokens(tokenizer, prompt, thinking=thinking, tools=tools)
    answer = Answer(model.facts, tokenizer, ask.max_tokens, tokens)
    for step in diffuse(model, tokens, ask):
        thought, text = answer.add(step)
        yield Piece(text=text, thinking=thought, step=step, finish_reason=answer.finish_reason)
