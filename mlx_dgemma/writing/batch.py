"""Many texts at once: the rows of a pass are canvases of different texts, each at its own block and step.

A text joins and leaves between any two passes. Long prompts are encoded in pieces between the passes of the others,
and texts that are written left to right go along, a token a pass.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..seam.model import DiffusionModel, Draw
from .left_to_right import LeftToRight
from .route import Route
from .writing import Step, Writing

PIECE = 512  # tokens of a prompt that are encoded between two passes

InProgress = Writing | LeftToRight | Route


def part_of(text: InProgress) -> Writing | LeftToRight:
    """The text itself; of a Route, which writes one part after another, the present part."""
    return text.current if isinstance(text, Route) else text


@dataclass
class Stream:
    """A running `autoregress`, and what it writes."""

    parts: list[LeftToRight]
    tokens: Iterator[list[int]]


class Batch:
    """Runs texts, `size` canvases in a call of the model."""

    def __init__(self, model: DiffusionModel, size: int = 8):
        self.model, self.size = model, size
        self.texts: list[InProgress] = []
        self._streams: dict[Draw, Stream] = {}

    def add(self, text: InProgress) -> None:
        """It takes part from the next step on."""
        self.texts.append(text)

    def cancel(self, text: InProgress) -> None:
        """It takes part no more. Its cache holds what was encoded of it."""
        self.texts.remove(text)
        for draw, stream in list(self._streams.items()):
            if part_of(text) in stream.parts:
                self._stop(draw)

    def close(self) -> None:
        """Cancel every text."""
        self.texts = []
        for draw in list(self._streams):
            self._stop(draw)

    def step(self) -> list[Step]:
        """One pass over every text -> a step of each, in the order in which they were added. A text whose prompt is
        still being read has none."""
        reading = self._read()
        ready = [text for text in self.texts if text not in reading]
        left_to_right = [text for text in ready if part_of(text).left_to_right]  # now: a pass may change the part
        steps = self._denoise([text for text in ready if text not in left_to_right])
        steps |= self._autoregress(left_to_right)
        self.texts = [text for text in self.texts if not text.done]
        for draw, stream in list(self._streams.items()):
            if any(part.done for part in stream.parts):
                self._stop(draw)
        return [steps[text] for text in ready]

    @property
    def reading(self) -> list[InProgress]:
        """The texts whose prompt is long: the next step encodes a piece of it."""
        return [text for text in self.texts if len(part_of(text).pending) > PIECE]

    def _read(self) -> list[InProgress]:
        """Encode a piece of each long prompt -> the texts that had one. Texts that share a cache share their prompt."""
        reading = self.reading
        by_cache = {id(text.cache): text for text in reading}.values()
        if by_cache:
            self.model.encode([part_of(text).pending[:PIECE] for text in by_cache], [text.cache for text in by_cache])
        for part in map(part_of, reading):
            part.pending = part.pending[PIECE:]
        return reading

    def _denoise(self, texts: list[InProgress]) -> dict[InProgress, Step]:
        steps = {}
        for first in range(0, len(texts), self.size):
            together = texts[first : first + self.size]
            timed = [text for text in together if isinstance(text, Route) and text.pace is None]
            start = self.model.now() if timed else 0.0
            predictions = self.model.denoise([part_of(text).row() for text in together])
            seconds = (self.model.now() - start) / len(together) if timed else 0.0
            for text in timed:
                text.pass_seconds = seconds
            steps |= {text: text.take(p) for text, p in zip(together, predictions, strict=True)}
        return steps

    def _autoregress(self, texts: list[InProgress]) -> dict[InProgress, Step]:
        """One token of each. Texts go on in the same stream as long as they are the same ones."""
        steps = {}
        for draw in {text.draw: None for text in texts} | dict.fromkeys(self._streams):
            together = [text for text in texts if text.draw == draw]
            parts = [part_of(text) for text in together]
            # A form allows tokens that depend on the token before: each is a stream's first and only one.
            formed = any(part.form is not None for part in parts)
            if draw in self._streams and (formed or self._streams[draw].parts != parts):
                self._stop(draw)
            if not parts:
                continue
            if draw not in self._streams:
                continuations = [part.continuation() for part in parts]
                self._streams[draw] = Stream(parts, self.model.autoregress(continuations, draw))
            tokens = next(self._streams[draw].tokens)
            if formed:
                self._stop(draw)
            steps |= {text: text.take(token) for text, token in zip(together, tokens, strict=True)}
        return steps

    def _stop(self, draw: Draw) -> None:
        self._streams.pop(draw).tokens.close()  # now the caches hold what was yielded


def run(model: DiffusionModel, texts: Iterable[InProgress], size: int = 1) -> Iterator[Step]:
    """The steps of `texts`, at most `size` of them at a time, pass by pass. The next text is asked for when there is
    room for it."""
    waiting, batch = iter(texts), Batch(model, size)
    try:
        while True:
            while len(batch.texts) < size and (text := next(waiting, None)) is not None:
                batch.add(text)
            if not batch.texts:
                return
            yield from batch.step()
    finally:
        batch.close()
