"""A text of which some is known: that is held in the canvas, and only the rest is denoised.

A clean token among noise is what the model was trained on (a share of every canvas is clean, and unmarked), so fixed
text needs no mask: it stands there, is certain from the first pass on, and spends nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from ..seam.model import DiffusionModel, Text, TokenSet
from ..tokens.tokenizer import BYTE_PIECE, Tokenizer
from ..writing.blocks import Block, Layout

TURN_END = "<turn|>"


class Held(Layout):
    """Divides `text`, whose known tokens are fixed, into canvases.

    Where all of it fits into a canvas it stands there, and behind it the filler of a canvas whose text has ended.
    Otherwise a canvas begins with the first token that is not known, and what comes before is encoded. What is known
    beyond the canvas of the last gap needs no pass.
    """

    def __init__(self, text: Block, filler: np.ndarray):
        """`filler`: [width] ids behind a text that ends; it is as wide as a canvas."""
        self.text, self.filler, self.width = text, filler, len(filler)
        self.end = 0  # of the last block
        self.starts = [self._start()]  # of each block

    def take_before(self) -> np.ndarray:
        """The known tokens in front of the first block, for the caller to encode: the block comes without them."""
        self.end = self.starts[0]
        return self.text.tokens[: self.end]

    def first(self) -> Block:
        return self._block()

    def content(self, draft: np.ndarray) -> np.ndarray:
        return draft[: len(self.text.tokens) - self.starts[-1]]

    def after(self, draft: np.ndarray) -> Block | str:
        if self.text.fixed[self.end :].all():
            return "stop"
        self.starts.append(self._start())
        return self._block()

    def _start(self) -> int:
        if len(self.text.tokens) - self.end <= self.width:
            return self.end
        return self.end + int(np.argmin(self.text.fixed[self.end :]))

    def _block(self) -> Block:
        start = self.starts[-1]
        before, part = self.text.tokens[self.end : start], slice(start, start + self.width)
        self.end = part.stop
        rest = self.width - len(self.text.tokens[part])
        nothing = np.full(rest, -1, np.int32)
        behind = {"tokens": self.filler[:rest], "fixed": np.ones(rest, bool), "hint": nothing, "allowed": nothing}
        arrays = {name: np.append(getattr(self.text, name)[part], array) for name, array in behind.items()}
        return replace(self.text, **arrays, before=Text(before))


class Alphabet:
    """The tokens that may stand in a gap, and their text. Methods that choose tokens return the index of a set."""

    def __init__(self, model: DiffusionModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.pieces = [tokenizer.piece(token) for token in range(model.facts.vocab_size)]
        self.anchor = tokenizer.encode("x")
        self.sets: list[TokenSet] = []  # what `Block.allowed` points to
        self._numbers: dict[tuple[str, int], int] = {}

    @cached_property
    def any_text(self) -> int:
        """All that is text: no special token, no stop token."""
        return self._set("any", -1, lambda piece: True)

    def beginning_with(self, token: int) -> int:
        return self._set("begins", token, lambda piece: piece.startswith(self.pieces[token]))

    def ending_with(self, token: int) -> int:
        return self._set("ends", token, lambda piece: piece.endswith(self.pieces[token]))

    def _set(self, kind: str, token: int, belongs: Callable[[str], bool]) -> int:
        """Make a set of the tokens that belong, once -> its index in `sets`."""
        if (kind, token) not in self._numbers:
            stops = set(self.model.facts.stop_ids)
            ids = [i for i, piece in enumerate(self.pieces) if piece is not None and i not in stops and belongs(piece)]
            self._numbers[kind, token] = len(self.sets)
            self.sets.append(self.model.token_set(ids))
        return self._numbers[kind, token]

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text), np.int32)

    def text_of(self, token: int) -> str:
        """The text of a token by itself; "" where that is not text, or not whole characters."""
        piece, text = self.pieces[token], self.decode([token])
        return "" if piece is None or BYTE_PIECE.fullmatch(piece) or "\ufffd" in text else text

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens in the middle of a text: some decoders trim the start of a text."""
        return self.tokenizer.decode([*self.anchor, *tokens])[len(self.tokenizer.decode(self.anchor)) :]

    def filler(self, width: int) -> np.ndarray:
        """[width] ids: how a canvas goes on where the model's turn ends: training filled it up with end tokens."""
        turn_end, end = self.tokenizer.token_id(TURN_END), self.tokenizer.eos_token_id
        end = self.model.facts.stop_ids[0] if end is None else end
        return np.array([end if turn_end is None else turn_end] + [end] * (width - 1), np.int32)
