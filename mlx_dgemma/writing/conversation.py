"""Turns of a user and a model, and the cache that holds what was encoded of them.

A template writes an answer into the history otherwise than the model wrote it: without its thinking, without the empty
channel that an answer without thinking starts behind. So when an answer is done, the cache goes back to where the two
part, and the next turn encodes what differs.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Text
from ..tokens.messages import generated_text
from ..tokens.stream import open_channel
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import ToolCall, response_tokens
from . import saved
from .answer import Answer, Piece
from .ask import Ask
from .batch import Batch, InProgress
from .diffuse import begin
from .saved import Turns
from .writing import check_room


@dataclass
class Conversation:
    """`ask`, and `respond` to tool calls; or `say`, `read` and `write`, which may be left between any two passes."""

    model: DiffusionModel
    tokenizer: Tokenizer
    how: Ask = field(default_factory=Ask)  # of every answer
    system: str | None = None
    thinking: bool = False
    tools: list[dict] | None = None  # that the model may call, as `Tokenizer.chat` takes them
    stops: Sequence[str] = ()  # texts before which an answer ends

    _batch: Batch | None = field(default=None, init=False)  # writes the answer, from its first piece of prompt on
    _unfinished: Answer | None = field(default=None, init=False)  # the answer that is being written

    def __post_init__(self) -> None:
        self.reset()

    @property
    def tokens(self) -> list[int]:
        """The turn that is open and all before it: the text that the model goes on from."""
        return self.prompt + self.written

    @property
    def unread(self) -> int:
        """Tokens that the cache lacks."""
        return len(self.tokens) - (self.cache.length if self.cache else 0)

    def reset(self) -> None:
        """Forget all turns."""
        self._stop_batch()
        self._unfinished = None
        self.messages: list[dict] = []
        self.answer: Answer | None = None  # the last one
        self.waiting: list[ToolCall] = []  # calls whose results the model waits for
        self.prompt: list[int] = []  # of the turn that is open, up to the model's part
        self.written: list[int] = []  # the model's part of it so far, with the results of its tools
        self.cache: Cache | None = self.model.new_cache()  # None: a pass was broken off, and it is of no use
        self.prompt_cache: Cache | None = None  # a fork of it, from the end of `prompt`
        self.encoded: list[int] = []  # tokens: the cache holds the first `cache.length` of them

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
        check_room(self.model, len(prompt), self.model.facts.canvas_length)
        self.messages, self.prompt, self.answer = messages, prompt, None
        self._rewind(prompt)

    def respond(self, result: Any) -> None:
        """The result of the first of the calls that are `waiting`: anything that JSON can hold."""
        tokens = response_tokens(self.tokenizer, self.waiting[0].name, result)
        check_room(self.model, len(self.tokens) + len(tokens), self.model.facts.canvas_length)
        self.written, self.answer = self.written + tokens, None
        self.waiting.pop(0)

    def read(self) -> Iterator[int]:
        """Encode what the cache lacks, except what the first pass over a canvas takes along: tokens left, after each
        pass."""
        while self._begin() in self._batch.reading:
            cache, self.cache = self.cache, None
            list(self._batch.steps())
            self.cache, self.encoded = cache, self.tokens
            yield self.unread

    def write(self) -> Iterator[Piece]:
        """The model's turn, or what follows in it: a Piece a pass. Left early, its finished blocks are kept."""
        answer = Answer(self.model.facts, self.tokenizer, self.how.max_tokens, self.tokens, self.stops)
        self.answer = self._unfinished = answer
        try:
            cache, self.encoded = self._begin().cache, self.tokens
            while self._unfinished is answer and answer.finish_reason is None:  # else it was closed meanwhile
                self.cache = None
                steps = list(self._batch.steps())
                self.cache = cache
                for step in steps:
                    thinking, text = answer.add(step)
                    self.encoded += step.draft.tolist() if step.final else []
                    if step.final and not step.reason:
                        self._fork_prompt()
                    yield Piece(text=text, thinking=thinking, step=step, finish_reason=answer.finish_reason)
        finally:
            if self._unfinished is answer:
                self._end(answer)

    def close(self) -> None:
        """The open turn is over, whatever it lacks; a question without an answer is taken back."""
        self._leave()
        if not self.prompt:
            return
        if self.written or (self.answer and self.answer.steps_per_block):
            content = generated_text(self.tokenizer, open_channel(self.tokenizer, self.prompt) + self.written)
            self.messages = [*self.messages, {"role": "assistant", "content": content}]
        else:
            self.messages = self.messages[:-1]
        self._rewind(self._render(self.messages, add_generation_prompt=False) if self.messages else [])
        self.prompt, self.written, self.waiting, self.prompt_cache = [], [], [], None

    def undo(self) -> str:
        """Takes back the last question and all that followed, and returns it. Mistake where there is none."""
        self.close()
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise Mistake("nothing was asked yet")
        question, self.messages = self.messages[asked[-1]]["content"], self.messages[: asked[-1]]
        self.answer = None
        self._rewind(self._render(self.messages, add_generation_prompt=False) if self.messages else [])
        return question

    def turns(self) -> Turns:
        """The turns that are closed, for `saved.write`."""
        closed = self.messages[:-1] if self.prompt else self.messages
        return Turns(system=self.system, thinking=self.thinking, tools=self.tools, messages=closed)

    def save(self, folder: str | Path) -> None:
        """The turns and the cache. Mistake, and nothing has changed, where they cannot be saved there."""
        if self.waiting:
            raise Mistake(f"the model waits for the result of {self.waiting[0].name}: give it, then save")
        self.close()
        cache = self._present_cache()
        saved.save(Path(folder), replace(self.turns(), tokens=self.encoded), cache)

    def load(self, path: str | Path) -> None:
        """Go on with what `save` wrote to a folder, or `saved.write` to a file. Mistake, and nothing has changed, where
        that is damaged or another model's."""
        path, cache = Path(path), self.model.new_cache()
        file = path if os.path.isfile(path) else path / saved.FILE
        turns = saved.read(file, self.tokenizer)
        if turns.cache is not None:
            try:
                cache.load(file.parent / turns.cache)
            except (OSError, ValueError) as error:
                raise Mistake(f"the chat in {path} needs the --model it was saved with, undamaged: {error}") from None
        if cache.length != len(turns.tokens):
            raise Mistake(f"{path} is damaged: {len(turns.tokens)} tokens, but a cache of {cache.length}")
        self.reset()
        self.cache, self.encoded = cache, list(turns.tokens)
        self.messages, self.system = list(turns.messages), turns.system
        self.thinking, self.tools = turns.thinking, turns.tools

    def _render(self, messages: list[dict], *, add_generation_prompt: bool) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.tokenizer.chat(
            system + messages,
            thinking=self.thinking,
            tools=self.tools,
            add_generation_prompt=add_generation_prompt,
        )

    def _begin(self) -> InProgress:
        """The answer in progress, which the batch writes."""
        if self._batch is None:
            cache, batch = self._present_cache(), Batch(self.model, 1)
            batch.add(begin(self.model, Text(self.tokens[cache.length :]), self.how, cache=cache))
            self._batch = batch
        return self._batch.texts[0]

    def _end(self, answer: Answer) -> None:
        """The model's part is over: its tools are waited for, or the turn is closed."""
        self._leave()
        if answer.finish_reason == "stop" and answer.calls:
            self.waiting = list(answer.calls)
            self._fork_prompt()
            self._rewind(self.tokens)  # the cache may hold the stop token, and results follow in its place
        else:
            self.close()

    def _leave(self) -> None:
        """Write no further: what is finished of the answer is `written`, and the cache holds what was yielded."""
        self._stop_batch()
        answer, self._unfinished = self._unfinished, None
        if answer:
            tokens = answer.tokens_before_stop
            stopped = tokens and tokens[-1] in self.model.facts.stop_ids
            self.written = self.written + (tokens[:-1] if stopped else tokens)

    def _stop_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch:
            batch.close()

    def _present_cache(self) -> Cache:
        """The cache, and `encoded` no longer than it is."""
        if self.cache is None:
            self.cache = self.model.new_cache()
        self.encoded = self.encoded[: self.cache.length]
        return self.cache

    def _rewind(self, tokens: list[int]) -> None:
        """Keep of the cache what `tokens` begin with, at most all but one: from something the model must go on."""
        for cache in filter(None, (self.cache, self.prompt_cache)):
            both = zip(self.encoded[: cache.length], tokens[:-1], strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            try:
                cache.trim(cache.length - same)
            except ValueError:  # further back than the sliding layers remember
                continue
            self.cache = cache
            break
        else:
            self.cache = None
        self._present_cache()

    def _fork_prompt(self) -> None:
        """Fork the cache at the end of the prompt: what is further back than a canvas cannot be reached by trimming."""
        if self.prompt_cache is None:
            self.prompt_cache = self.cache.copy()
            self.prompt_cache.trim(self.cache.length - len(self.prompt))
