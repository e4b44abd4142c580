"""Many texts at once: the rows of a pass are canvases of different texts, each at its own block and step.

A text joins and leaves between any two passes. Long prompts are encoded in pieces between the passes of the others,
and texts that are written left to right go along, a token a pass.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..seam.model import DiffusionModel, Draw, Prediction, Row
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
    """Runs texts, `size` canvases in a call of the model. An error of one text leaves the others as they are."""

    def __init__(self, model: DiffusionModel, size: int = 8):
        self.model, self.size = model, size
        self.texts: list[InProgress] = []
        self.failed: dict[InProgress, Exception] = {}  # texts that the last step ended, and why
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

    def keep(self, texts: Sequence[InProgress]) -> None:
        """Run `texts` and no others: those that are new join, those that are not among them leave."""
        for text in [text for text in self.texts if text not in texts]:
            self.cancel(text)
        for text in texts:
            if text not in self.texts:
                self.add(text)

    def close(self) -> None:
        """Cancel every text."""
        self.texts = []
        for draw in list(self._streams):
            self._stop(draw)

    def step(self) -> dict[InProgress, Step]:
        """One pass over every text -> the step of each, in the order in which they were added. A text whose prompt is
        still being read has none, nor has one that has `failed`."""
        self.failed = {}
        reading = self._encode_prompts()
        ready = [text for text in self.texts if text not in reading and text not in self.failed]
        left_to_right = [text for text in ready if part_of(text).left_to_right]  # before a pass changes the part
        steps = self._denoise([text for text in ready if text not in left_to_right])
        steps |= self._autoregress(left_to_right)
        failed = [part_of(text) for text in self.failed]
        self.texts = [text for text in self.texts if not text.done and text not in self.failed]
        for draw, stream in list(self._streams.items()):
            if any(part.done or part in failed for part in stream.parts):
                self._stop(draw)
        return {text: steps[text] for text in ready if text in steps}

    def steps(self) -> Iterator[Step]:
        """The steps of one pass, one after another. The first error that ended a text is raised."""
        steps = self.step()
        for error in self.failed.values():
            raise error
        yield from steps.values()

    @property
    def reading(self) -> list[InProgress]:
        """The texts whose prompt is long: the next step encodes a piece of it."""
        return [text for text in self.texts if len(part_of(text).pending) > PIECE]

    def _encode_prompts(self) -> list[InProgress]:
        """Encode a piece of each long prompt -> the texts that had one. Texts that share a cache share their prompt."""
        reading = self.reading
        by_cache = {id(text.cache): text for text in reading}.values()
        with self._failing(reading):
            pieces = [part_of(text).pending[:PIECE] for text in by_cache]
            if pieces:
                self.model.encode(pieces, [text.cache for text in by_cache])
        for part in map(part_of, reading):
            part.pending = part.pending[PIECE:]
        return reading

    @contextmanager
    def _failing(self, texts: Iterable[InProgress]) -> Iterator[None]:
        """An error inside fails `texts`: the batch goes on without them."""
        try:
            yield
        except Exception as error:  # noqa: BLE001, whoever called `step` raises or reports it
            self.failed |= dict.fromkeys(texts, error)

    def _denoise(self, texts: list[InProgress]) -> dict[InProgress, Step]:
        steps: dict[InProgress, Step] = {}
        for first in range(0, len(texts), self.size):
            rows: dict[InProgress, Row] = {}
            for text in texts[first : first + self.size]:
                with self._failing([text]):
                    rows[text] = part_of(text).row()
            with self._failing(rows):
                for text, prediction in self._predict(rows).items():
                    with self._failing([text]):
                        steps[text] = text.take(prediction)
        return steps

    def _predict(self, rows: dict[InProgress, Row]) -> dict[InProgress, Prediction]:
        timed = [text for text in rows if isinstance(text, Route) and text.pace is None]
        start = self.model.now() if timed else 0.0
        predictions = self.model.denoise(list(rows.values())) if rows else []
        seconds = (self.model.now() - start) / len(rows) if timed else 0.0
        for text in timed:
            text.pass_seconds = seconds
        return dict(zip(rows, predictions, strict=True))

    def _autoregress(self, texts: list[InProgress]) -> dict[InProgress, Step]:
        """Write one token of each. The same texts go on in the same stream."""
        steps: dict[InProgress, Step] = {}
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
                together = self._start(draw, together)
            with self._failing(together):
                tokens = next(self._streams[draw].tokens)
                if formed:
                    self._stop(draw)
                for text, token in zip(together, tokens, strict=True):
                    with self._failing([text]):
                        steps[text] = text.take(token)
        return steps

    def _start(self, draw: Draw, texts: list[InProgress]) -> list[InProgress]:
        """Start a stream of `texts` -> those that are in it."""
        started = {}
        for text in texts:
            with self._failing([text]):
                started[text] = part_of(text).continuation()
        tokens = self.model.autoregress(list(started.values()), draw)
        self._streams[draw] = Stream([part_of(text) for text in started], tokens)
        return list(started)

    def _stop(self, draw: Draw) -> None:
        self._streams.pop(draw).tokens.close()  # now the caches hold what was yielded


def run(
    model: DiffusionModel, texts: Iterable[InProgress], size: int = 1, ended: Container[int] = ()
) -> Iterator[Step]:
    """The steps of `texts`, at most `size` of them at a time, pass by pass. The next text is asked for when there is
    room for it. `ended`: requests, by number, that are written no further; it may grow between two steps."""
    waiting, batch = iter(texts), Batch(model, size)
    try:
        while True:
            for text in [text for text in batch.texts if text.request in ended]:
                batch.cancel(text)
            while len(batch.texts) < size and (text := next(waiting, None)) is not None:
                batch.add(text)
            if not batch.texts:
                return
            yield from batch.steps()
    finally:
        batch.close()
