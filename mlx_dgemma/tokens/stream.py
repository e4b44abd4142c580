"""Tokens -> text as it grows: the thinking channel apart from the answer, and no character cut in two."""

import codecs
from collections.abc import Iterable, Sequence

from .tokenizer import BYTE_PIECE, Tokenizer, byte_of_letter

CHANNEL_OPEN, CHANNEL_CLOSE = "<|channel>", "<channel|>"
CHANNEL_LABEL = "thought\n"  # the first line of a thinking channel names it and is no part of the thinking


def split_thinking(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[list[int], list[int]]:
    """Splits generated ids -> (thinking, answer), each in order, without the channels' delimiters and label lines.

    A channel that was never closed is all thinking; a vocabulary without channels has only answers.
    """
    return _Channels(tokenizer).push(ids)


def open_channel(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """Returns the end of a prompt that opened a thinking channel for the answer, from `<|channel>` on; else nothing."""
    opening = tokenizer.token_id(CHANNEL_OPEN)
    for i in range(len(prompt) - 1, -1, -1):
        if prompt[i] == opening:
            return list(prompt[i:])
        if tokenizer.piece(prompt[i]) is None:  # the channel is closed, or the turn is another
            break
    return []


class TextStream:
    """Decodes ids as they are generated: the pieces of the answer, joined, are the answer decoded at once.

    A character is never cut: bytes that a later id may still join are held back. The cost of a push is that of the
    ids pushed, however much went before. What follows on a `prompt` that opened a channel is thinking until that is
    closed.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        text = _ByteLevelText if tokenizer.is_byte_level else _PieceText
        self._channels = _Channels(tokenizer)
        self._channels.push(open_channel(tokenizer, prompt))
        self._thinking, self._answer = text(tokenizer), text(tokenizer)

    def push(self, ids: Iterable[int]) -> tuple[str, str]:
        """Returns (thinking, answer), the text that these ids complete; either may be empty."""
        thinking_ids, answer_ids = self._channels.push(ids)
        thinking = self._thinking.push(thinking_ids)
        if not self._channels.inside:
            thinking += self._thinking.finish()  # or its last character would come after the answer
        return thinking, self._answer.push(answer_ids)

    def finish(self) -> tuple[str, str]:
        """Returns (thinking, answer) that was held back; a character that stayed unfinished comes as U+FFFD."""
        return self._thinking.finish(), self._answer.finish()


class _Channels:
    """Sorts ids, as they come, into thinking and answer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        ends = tokenizer.token_id(CHANNEL_OPEN), tokenizer.token_id(CHANNEL_CLOSE)
        self._open, self._close = (None, None) if None in ends else ends  # half a channel would never close
        self.inside = False
        self._label: list[int] | None = None  # ids that may yet become the label line; None once that is decided

    def push(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        thinking, answer = [], []
        for token in map(int, ids):
            if token in (self._open, self._close):
                self.inside = token == self._open
                self._label = [] if self.inside else None
            elif not self.inside:
                answer.append(token)
            elif self._label is None or self._tokenizer.piece(token) is None:
                thinking.append(token)
            else:
                thinking += self._after_label(token)
        return thinking, answer

    def _after_label(self, token: int) -> list[int]:
        """Takes one more id of the first line; returns those now known to be thinking."""
        label = [*self._label, token]
        text = self._tokenizer.decode(label)
        if text != CHANNEL_LABEL and CHANNEL_LABEL.startswith(text):
            self._label = label
            return []
        self._label = None
        if not text.startswith(CHANNEL_LABEL):
            return label
        # A piece may cross the end of the label ("\n\n"): what it holds beyond is thinking, under other ids.
        return self._tokenizer.encode(text[len(CHANNEL_LABEL) :])


class _PieceText:
    """Decodes pieces that hold whole characters, apart from runs of byte pieces.

    A run is held until it ends: the decoder takes all of it for UTF-8 or, if one byte is wrong, none of it. The piece
    before is decoded along and cut off again, because some decoders trim the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the last id that went out and is no byte
        self._held: list[int] = []  # byte pieces

    def push(self, ids: list[int]) -> str:
        settled, last = 0, []
        for token in ids:
            if (piece := self._tokenizer.piece(token)) is not None:
                self._held.append(token)
                if not BYTE_PIECE.fullmatch(piece):
                    settled, last = len(self._held), [token]
        text = self._release(settled)
        self._before = last or self._before
        return text

    def finish(self) -> str:
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        if count == 0:  # and nothing is copied, or a long run would cost its square
            return ""
        ready, self._held = self._held[:count], self._held[count:]
        return self._tokenizer.decode(self._before + ready)[len(self._tokenizer.decode(self._before)) :]


class _ByteLevelText:
    """Decodes pieces that spell bytes, one letter a byte, and so may end inside a character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        letters = byte_of_letter()
        text = bytearray()
        for piece in filter(None, map(self._tokenizer.piece, ids)):
            # Not all letters of the alphabet: an added token, written as it is.
            text += bytes(map(letters.get, piece)) if letters.keys() >= set(piece) else piece.encode()
        return self._utf8.decode(text)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)
