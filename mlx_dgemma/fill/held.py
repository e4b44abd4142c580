"""A text of which some is known: that is held in the canvas, and only the rest is denoised.

A clean token among noise is what the model was trained on (a share of every canvas is clean, and unmarked), so fixed
text needs no mask: it stands there, is certain from the first pass on, and spends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..seam.model import DiffusionModel
from ..tokens.tokenizer import BYTE_PIECE, Tokenizer
from ..writing.blocks import Given

TURN_END = "<turn|>"


class Held:
    """A `layout.Layout` of `text`, a Given as long as the text is.

    Where all of it fits into a canvas it stands there, and behind it what fills a canvas whose text has ended.
    Otherwise a canvas begins with the first token that is not known, and what comes before is encoded. What is known
    beyond the canvas of the last gap needs no pass.
    """

    def __init__(self, text: Given, width: int, filling: Sequence[int]):
        """`filling`: [width] ids, what stands behind a text that ends."""
        self.text, self.width, self.filling = text, width, np.asarray(filling, np.int32)
        self.end = 0  # of the last block
        self.starts = [self._start()]  # of each block

    def _start(self) -> int:
        if len(self.text.tokens) - self.end <= self.width:
            return self.end
        return self.end + int(np.argmin(self.text.fixed[self.end :]))

    def first(self) -> Given:
        return self._block()

    def after(self, draft: np.ndarray) -> Given | str:
        if self.text.fixed[self.end :].all():
            return "stop"
        self.starts.append(self._start())
        return self._block()

    def _block(self) -> Given:
        start = self.starts[-1]
        before, own = self.text.tokens[self.end : start], slice(start, start + self.width)
        self.end = own.stop
        rest = self.width - len(self.text.tokens[own])
        return Given(
            tokens=np.append(self.text.tokens[own], self.filling[:rest]),
            fixed=np.append(self.text.fixed[own], np.ones(rest, bool)),
            hint=np.append(self.text.hint[own], np.full(rest, -1, np.int32)),
            allowed=np.append(self.text.allowed[own], np.full(rest, -1, np.int32)),
            before=before,
        )


class Alphabet:
    """What may stand in a gap, and what a gap says."""

    def __init__(self, model: DiffusionModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.pieces = [tokenizer.piece(token) for token in range(model.config.vocab_size)]
        self.anchor = tokenizer.encode("x")

    @cached_property
    def text(self) -> int:
        """The token set of all that is text: nothing special, no stop token."""
        return self._set(lambda piece: True)

    def beginning_with(self, token: int) -> int:
        return self._set(lambda piece: piece.startswith(self.pieces[token]))

    def ending_with(self, token: int) -> int:
        return self._set(lambda piece: piece.endswith(self.pieces[token]))

    def _set(self, belongs) -> int:
        stops = set(self.model.config.stop_ids)
        tokens = enumerate(self.pieces)
        return self.model.token_set(
            [i for i, piece in tokens if piece is not None and i not in stops and belongs(piece)]
        )

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text), np.int32)

    def whole(self, token: int) -> str:
        """What a token says by itself; "" where that is not text, or not whole characters."""
        piece, text = self.pieces[token], self.decode([token])
        return "" if piece is None or BYTE_PIECE.fullmatch(piece) or "\ufffd" in text else text

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens in the middle of a text: some decoders trim what begins one."""
        return self.tokenizer.decode([*self.anchor, *tokens])[len(self.tokenizer.decode(self.anchor)) :]

    def filling(self, width: int) -> np.ndarray:
        """[width] ids: how a canvas goes on where the model's turn ends: training filled it up with end tokens."""
        turn_end, end = self.tokenizer.token_id(TURN_END), self.tokenizer.eos_token_id
        end = self.model.config.stop_ids[0] if end is None else end
        return np.array([end if turn_end is None else turn_end] + [end] * (width - 1), np.int32)
