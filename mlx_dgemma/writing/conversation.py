"""Turns of a user and a model, and the cache that holds what was encoded of them.

A template writes an answer into the history otherwise than the model wrote it: without its thinking, without the empty
channel that an answer without thinking starts behind. So when an answer is done, the cache goes back to where the two
part, and the next turn encodes what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import Mistake, NotFound
from ..seam.model import Cache, DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import ToolCall, response
from . import left_to_right
from .answer import Answer, Piece
from .route import Router
from .sampling import Sampling
from .writing import Step, begin, check_request, steps

CHUNK = 512  # tokens encoded at a time: whoever reads may stop in between
FILE = "conversation.json"
SAVED = ("system", "thinking", "tools", "messages")


def denoise(
    model: DiffusionModel, tokens: Sequence[int], *, cache: Cache, max_tokens: int, sampling: Sampling, seed: int
) -> Generator[Step, None, None]:
    """Write behind `tokens`, of which `cache` holds the first `cache.length`, block by block."""
    writing = begin(model, tokens, max_tokens=max_tokens, sampling=sampling, seed=seed)
    writing.cache, writing.pending = cache, tokens[cache.length :]
    return steps(model, writing)


def tell(
    model: DiffusionModel, tokens: Sequence[int], *, cache: Cache, max_tokens: int, sampling: Sampling, seed: int
) -> Iterator[Step]:
    """As `denoise`, left to right."""
    telling = left_to_right.begin(model, tokens, max_tokens=max_tokens, sampling=sampling, seed=seed)
    telling.cache, telling.pending = cache, tokens[cache.length :]
    return left_to_right.batch(model, [telling])


def route(
    model: DiffusionModel, tokens: Sequence[int], *, cache: Cache, max_tokens: int, sampling: Sampling, seed: int
) -> Iterator[Step]:
    """As `denoise`, each block in the way that costs less."""
    router = Router(model, tokens, max_tokens=max_tokens, sampling=sampling, seed=seed)
    router.cache, router.pending = cache, tokens[cache.length :]
    return router.steps()


# How an answer is written. Once closed, the cache holds the first `cache.length` of `tokens` and of what final steps
# drafted behind them; at the first final step, no more than a canvas of the latter.
MODES = {"diffusion": denoise, "ar": tell, "auto": route}


@dataclass
class Conversation:
    """`ask`, and `answer` what is told; or `say`, `read` and `write`, which may be left between any two passes."""

    model: DiffusionModel
    tokenizer: Tokenizer
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    thinking: bool = False
    tools: list[dict] | None = None  # that the model may call, as `Tokenizer.chat` takes them
    max_tokens: int = 2048  # of an answer
    seed: int = 0  # of each answer
    mode: str = "diffusion"

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.messages: list[dict] = []
        self.answer: Answer | None = None  # the last one
        self.waiting: list[ToolCall] = []  # for their results, before the model goes on
        self.prompt: list[int] = []  # of the turn that is open, up to the model's part
        self.said: list[int] = []  # the model's part of it so far, and what its tools said
        self.cache: Cache | None = self.model.new_cache()
        self.before: Cache | None = None  # as it was at the end of `prompt`
        self.text: list[int] = []  # begins with what the cache holds

    @property
    def tokens(self) -> list[int]:
        """All that the model goes on from."""
        return self.prompt + self.said

    @property
    def unread(self) -> int:
        """Tokens that the cache lacks."""
        return len(self.tokens) - (self.cache.length if self.cache else 0)

    def ask(self, message: str) -> Iterator[Piece]:
        """The user's turn and the model's: a Piece a pass. Where the model called tools (`waiting`), `respond` and
        `write` go on."""
        self.say(message)
        for _ in self.read():
            pass
        yield from self.write()

    def say(self, message: str) -> None:
        """The user's turn. Mistake, and nothing has changed, where it is empty or there is no room for it."""
        self.close()
        if not message.strip():
            raise Mistake("the prompt is empty: say what you want")
        messages = [*self.messages, {"role": "user", "content": message}]
        prompt = self._render(messages, add_generation_prompt=True)
        check_request(self.model, prompt, self.max_tokens)
        self.messages, self.prompt, self.answer = messages, prompt, None
        self._return_to(prompt)

    def respond(self, result: Any) -> None:
        """What came of the first of the calls that are `waiting`: anything that JSON can hold."""
        said = self.tokenizer.encode(response(self.waiting[0].name, result))
        check_request(self.model, self.tokens + said, self.max_tokens)
        self.said, self.answer = self.said + said, None
        self.waiting.pop(0)

    def read(self) -> Iterator[int]:
        """Encode what the cache lacks, except what the first pass over a canvas takes along: tokens left, after each
        pass."""
        tokens = self.tokens
        while self.unread > CHUNK:
            cache, self.cache = self._held(), None  # a pass that is broken off leaves a cache of no use
            self.model.encode([tokens[cache.length : cache.length + CHUNK]], [cache])
            self.cache, self.text = cache, tokens
            yield self.unread

    def write(self) -> Iterator[Piece]:
        """The model's turn, or what follows in it: a Piece a pass. Left early, the finished blocks are what it said."""
        self.answer = answer = Answer(self.model.config, self.tokenizer, self.max_tokens)
        cache, self.text = self._held(), self.tokens
        options = {"max_tokens": self.max_tokens, "sampling": self.sampling, "seed": self.seed}
        passes = None
        try:
            passes = MODES[self.mode](self.model, self.tokens, cache=cache, **options)
            while answer.finish_reason is None:
                self.cache = None
                step = next(passes)
                self.cache = cache
                thinking, text = answer.add(step)
                self.text += step.draft.tolist() if step.final else []
                if step.final and not step.reason:
                    self._keep_before()
                yield Piece(text=text, thinking=thinking, step=step, finish_reason=answer.finish_reason)
        finally:
            if passes:
                passes.close()  # then the cache holds what was yielded
            self._end()

    def close(self) -> None:
        """The open turn is over, whatever it lacks; a question that nothing was said to is taken back."""
        if not self.prompt:
            return
        if self.said or (self.answer and self.answer.steps_per_block):
            content = self.tokenizer.decode(self.said, skip_special_tokens=False)
            self.messages = [*self.messages, {"role": "assistant", "content": content}]
        else:
            self.messages = self.messages[:-1]
        self._return_to(self._render(self.messages, add_generation_prompt=False) if self.messages else [])
        self.prompt, self.said, self.waiting, self.before = [], [], [], None

    def save(self, folder: str | Path) -> None:
        """The turns and the cache, in two files that never disagree, whenever the writing is broken off."""
        if self.waiting:
            raise Mistake(f"the model waits for what {self.waiting[0].name} says: tell it, then save")
        self.close()
        folder, cache = Path(folder), self._held()
        digest = hashlib.sha256(json.dumps(self.text).encode()).hexdigest()
        saved = {key: getattr(self, key) for key in SAVED}
        saved |= {"tokens": self.text, "cache": f"cache-{digest[:16]}.safetensors"}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()) and not (folder / FILE).exists():
                raise Mistake(f"{folder} holds other things: give a new folder, or one that a chat was saved to")
            cache.save(folder / saved["cache"])
            part = folder / f"{FILE}.{os.getpid()}"
            part.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
            part.replace(folder / FILE)
            for other in set(folder.glob("cache-*.safetensors")) - {folder / saved["cache"]}:
                other.unlink()
        except OSError as error:
            raise Mistake(f"the chat cannot be saved: {error}; give another folder") from None

    def load(self, folder: str | Path) -> None:
        """Go on with what `save` wrote. Mistake, and nothing has changed, where that is damaged or another model's."""
        cache, path = self.model.new_cache(), Path(folder) / FILE
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            own, text, file = {key: saved[key] for key in SAVED}, saved["tokens"], path.parent / saved["cache"]
        except OSError as error:
            raise NotFound(f"{folder} holds no saved chat ({error.strerror}): need one that /save wrote") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Mistake(f"{path} is damaged ({error!r}): need one that /save wrote") from None
        try:
            cache.load(file)
        except (OSError, ValueError) as error:
            raise Mistake(f"the chat in {folder} needs the --model it was saved with, undamaged: {error}") from None
        if cache.length != len(text):
            raise Mistake(f"{folder} is damaged: {len(text)} tokens, but a cache of {cache.length}")
        self.reset()
        self.cache, self.text = cache, text
        vars(self).update(own)

    def _render(self, messages: list[dict], *, add_generation_prompt: bool) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        options = {"thinking": self.thinking, "tools": self.tools, "add_generation_prompt": add_generation_prompt}
        return self.tokenizer.chat(system + messages, **options)

    def _held(self) -> Cache:
        """The cache, and `text` no longer than it is."""
        if self.cache is None:
            self.cache = self.model.new_cache()
        self.text = self.text[: self.cache.length]
        return self.cache

    def _return_to(self, tokens: list[int]) -> None:
        """Of the cache, keep what `tokens` begin with, at most all but one: from something the model must go on."""
        for cache in filter(None, (self.cache, self.before)):
            both = zip(self.text[: cache.length], tokens[:-1], strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            try:
                cache.trim(cache.length - same)
            except ValueError:  # further back than the sliding layers remember
                continue
            self.cache = cache
            break
        else:
            self.cache = None
        self._held()

    def _keep_before(self) -> None:
        """What is further back than a canvas cannot be returned to by forgetting: a fork can."""
        if self.before is None:
            self.before = self.cache.copy()
            self.before.trim(self.cache.length - len(self.prompt))

    def _end(self) -> None:
        """Of a part of the model's turn."""
        answer = self.answer
        said = answer.tokens
        self.said = self.said + (said[:-1] if said and said[-1] in self.model.config.stop_ids else said)
        if answer.finish_reason == "stop" and answer.calls:
            self.waiting = list(answer.calls)
            self._keep_before()
        else:
            self.close()
