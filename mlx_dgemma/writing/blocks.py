"""The blocks of a text: which canvases there are, and what is given in each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import Mistake
from ..seam.model import Facts, Prediction, Text, TokenSet


@dataclass(frozen=True, kw_only=True)
class Block:
    """A canvas before its first pass, or a whole text that a layout divides into canvases. Arrays are of its length."""

    tokens: np.ndarray  # int32: what the canvas starts from, -1 for noise
    fixed: np.ndarray | None = None  # bool: tokens that stay
    hint: np.ndarray | None = None  # int32: a one-hot self-conditioning for the first pass, -1 for none
    allowed: np.ndarray | None = None  # int32: indices into `token_sets`, -1 for all
    token_sets: Sequence[TokenSet] = ()
    max_steps: int | None = None  # passes it may take; None: as the sampling says
    before: Text = field(default_factory=Text)  # given text between the block before and this: encoded, not denoised
    again: bool = False  # the same block is written again: its last draft does not stand
    note: str | None = None  # why, for the user to know

    @property
    def free(self) -> np.ndarray:
        """[L] bool: the positions that are denoised."""
        return np.ones(len(self.tokens), bool) if self.fixed is None else ~self.fixed

    def may_stand(self, position: int, token: int) -> bool:
        """True if `token` is among those allowed at `position`."""
        number = -1 if self.allowed is None else int(self.allowed[position])
        return number < 0 or token in self.token_sets[number].ids


class Layout(ABC):
    """The blocks of one text, and the drafts that are allowed in them. It keeps the state of that text."""

    @abstractmethod
    def first(self) -> Block:
        """The first block."""

    @abstractmethod
    def after(self, draft: np.ndarray) -> Block | str:
        """The block behind one that ended as `draft`, or the reason why none follows: "stop" or "length"."""

    def content(self, draft: np.ndarray) -> np.ndarray:
        """The beginning of the present block's draft that is text; what is behind it nobody reads."""
        return draft

    def revise(self, prediction: Prediction, block: Block) -> Prediction:
        """The prediction with the draft, as `argmax`, that this layout takes from it."""
        return prediction

    def narrow(self, block: Block, accepted: np.ndarray, late: bool) -> Block:
        """The block for the next pass, which may fix more of it. `accepted` [L] bool is of the pass that was revised
        last; `late`: more than half of the block's passes are over."""
        return block

    def rewrite(self, block: Block, draft: np.ndarray, start: int, expected: int | None) -> Block:
        """The same block again: `draft` stands up to `start`, there stands `expected` if it may, the rest is noise."""
        known, tokens = np.arange(len(draft)) < start, draft.copy()
        if expected is not None and block.may_stand(start, expected):
            tokens[start], known[start] = expected, True
        known |= ~block.free
        return replace(block, tokens=np.where(known, tokens, -1), fixed=known, hint=None, before=Text(), again=True)

    def finish(self, draft: np.ndarray) -> np.ndarray:
        """The draft of a block that ends the text too early, with the tokens that make it a valid text."""
        return draft


class Open(Layout):
    """Canvases of nothing but noise, block after block, until a stop token or until canvases cover `max_tokens`."""

    def __init__(self, facts: Facts, room: int, max_tokens: int, canvas_length: int | str | None = None):
        """`room`: tokens of the context that are left."""
        self.facts, self.room, self.left = facts, room, max_tokens
        self.canvas_length = check_width(facts, canvas_length)

    def width(self) -> int:
        """Tokens of the next canvas: as asked; "auto": the narrowest of a quarter, a half and the whole that covers
        what is left; by default the whole, which is what the checkpoint was trained on."""
        full = self.facts.canvas_length
        if self.canvas_length != "auto":
            return int(self.canvas_length or full)
        return next((n for n in (full // 4, full // 2) if n >= self.left), full)

    def first(self) -> Block:
        return Block(tokens=np.full(self.width(), -1, np.int32))

    def after(self, draft: np.ndarray) -> Block | str:
        self.left, self.room = self.left - len(draft), self.room - len(draft)
        if np.isin(draft, self.facts.stop_ids).any():
            return "stop"
        return "length" if self.left <= 0 or self.room < self.width() else self.first()

    def content(self, draft: np.ndarray) -> np.ndarray:
        return until_stop(draft, self.facts.stop_ids)


class Single(Layout):
    """One block and no other."""

    def __init__(self, block: Block):
        self.block = block

    def first(self) -> Block:
        return self.block

    def after(self, draft: np.ndarray) -> str:
        return "stop"


def check_width(facts: Facts, canvas_length: int | str | None) -> int | str | None:
    """`canvas_length` itself. Mistake where it is more than the model's."""
    if isinstance(canvas_length, int) and canvas_length > facts.canvas_length:
        raise Mistake(f"need canvas_length <= {facts.canvas_length}, the model's, got {canvas_length}")
    return canvas_length


def until_stop(tokens: np.ndarray, stop_ids: Sequence[int]) -> np.ndarray:
    """The tokens up to the first stop token, that included; all of them where there is none."""
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    return tokens[: stops[0] + 1] if len(stops) else tokens
