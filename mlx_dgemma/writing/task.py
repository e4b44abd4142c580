"""Work that takes several texts, one after another or side by side, such as a search: it shares a batch with others.

A task is a generator. It yields the texts that are to run, is sent the steps of the next pass over them, and returns
its result. A text that it yields no more leaves the batch; one whose prompt is still being read has no step.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from ..seam.model import DiffusionModel
from .batch import Batch, InProgress
from .writing import Step

T = TypeVar("T")
Task = Generator[Sequence[InProgress], Mapping[InProgress, Step], T]
Show = Callable[[Step], None]  # called with every step


def complete(model: DiffusionModel, task: Task[T], size: int, show: Show = lambda step: None) -> T:
    """The result of a task alone, with `size` canvases in a call of the model."""
    with closing(Batch(model, size)) as batch:
        try:
            batch.keep(next(task))
            while True:
                steps = batch.step()
                for error in batch.failed.values():
                    raise error
                for step in steps.values():
                    show(step)
                batch.keep(task.send(steps))
        except StopIteration as end:
            return end.value


def texts_to_their_end(texts: Sequence[InProgress]) -> Task[None]:
    """Run `texts` until all are done."""
    while running := [text for text in texts if not text.done]:
        yield running
