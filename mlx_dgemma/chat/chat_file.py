"""Files of chats, written as they go, so that none is lost: one for each of the last chats, for this user alone."""

import re
import time
from pathlib import Path

from ..errors import NotFound
from ..terminal.keyboard import state_folder
from ..writing import saved
from ..writing.conversation import Conversation

MOST = 20  # chats
_NAME = re.compile(r"\d{8}-\d{6}-\d+\.json")


def _folder() -> Path:
    """Returns the folder of all chats. OSError where there can be none."""
    folder = state_folder() / "chats"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _files() -> list[Path]:
    """Returns the files of all chats, the last one first."""
    files = [path for path in _folder().iterdir() if _NAME.fullmatch(path.name)]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def last() -> Path:
    """Returns the file of the chat that was kept last. NotFound where there is none."""
    try:
        return _files()[0]
    except (OSError, IndexError):
        raise NotFound("no chat was kept yet, so there is none to go on with: leave out --continue") from None


class ChatFile:
    """The file of the present chat, made when it has a first turn."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._messages: list[dict] = []  # as they are in the file

    def write(self, conversation: Conversation) -> None:
        """Writes the turns, where they have changed. OSError where that cannot be."""
        turns = conversation.turns()
        if list(turns.messages) == self._messages:
            return
        if self._path is None:
            self._path = _folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns()}.json"
        saved.write(self._path, turns)
        self._messages = list(turns.messages)
        for old in _files()[MOST:]:
            old.unlink(missing_ok=True)

    def switch(self, path: Path | None = None, messages: list[dict] | None = None) -> None:
        """Turns to another chat, in a new file unless it is in `path` already. The one before stays as it was."""
        self._path, self._messages = path, list(messages or [])
