"""Texts before which an answer is cut, wherever its pieces part them."""

from collections.abc import Sequence


class Stops:
    """Cuts a text that comes in pieces before the first of some texts. What may become one is held back."""

    def __init__(self, texts: Sequence[str]):
        self.texts, self._held, self.found = texts, "", ""  # found: the one

    def push(self, piece: str, *, last: bool = False) -> str:
        """Returns what of the text is certain with `piece`; all of it where that is the `last`."""
        text, self._held = self._held + piece, ""
        if self.found:
            return ""
        places = [(place, stop) for stop in self.texts if (place := text.find(stop)) >= 0]
        if places:
            place, self.found = min(places)
            return text[:place]
        kept = 0 if last else max((_begun(text, stop) for stop in self.texts), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _begun(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
