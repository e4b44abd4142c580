"""Many texts at once: the rows of a pass are canvases of different requests, each at its own block and step.

A request is admitted as soon as a place is free, at any pass, and leaves with its last one. Its prompt, and the blocks
it commits, are encoded in passes that denoise the others' canvases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..seam.model import DiffusionModel
from .writing import Step, Writing


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
