"""A conversation on disk: a folder with its turns and the cache, or a file with its turns alone.

A file is there whole or not at all, and carries a checksum of what it holds.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.folder import read_json
from ..checkpoint.whole_file import whole_file
from ..errors import Mistake, NotFound, reason
from ..seam.model import Cache
from ..tokens.messages import from_json, to_json
from ..tokens.tokenizer import Tokenizer

FILE = "conversation.json"
_CACHE = re.compile(r"cache-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Turns:
    system: str | None
    thinking: bool
    tools: list[dict] | None
    messages: Sequence[dict]
    tokens: Sequence[int] = ()  # that the cache holds
    cache: str | None = None  # its file, beside this one; None: the turns alone


def save(folder: Path, turns: Turns, cache: Cache) -> None:
    """Writes turns and cache, in two files that never disagree, whenever this is broken off. Mistake, and nothing has
    changed, where the folder holds other things, or cannot be written."""
    name = f"cache-{hashlib.sha256(json.dumps(list(turns.tokens)).encode()).hexdigest()[:16]}.safetensors"
    made = not os.path.lexists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = _check_ours(folder)
        try:
            cache.save(folder / name)
            write(folder / FILE, Turns(**vars(turns) | {"cache": name}))
        except BaseException:
            if name != old:
                _forget(folder, name)
            if made:
                with suppress(OSError):
                    folder.rmdir()
            raise
        if old not in (None, name):
            _forget(folder, old)
    except (OSError, ValueError) as error:
        if isinstance(error, Mistake):
            raise
        raise Mistake(f"the chat cannot be saved in {folder}: {reason(error)}; give another folder") from None


def _forget(folder: Path, name: str) -> None:
    """Removes a cache, and the shares of other ranks beside it."""
    for file in folder.glob(f"{name}*"):
        file.unlink(missing_ok=True)


def _check_ours(folder: Path) -> str | None:
    """Returns the cache's file of the chat that was saved there, if there was one. Mistake where there is anything
    else."""
    if not any(folder.iterdir()):
        return None
    try:
        return read(folder / FILE).cache
    except Mistake:
        raise Mistake(f"{folder} holds other things: give a new folder, or one that a chat was saved in") from None


def write(path: Path, turns: Turns) -> None:
    """Writes the turns to a file of their own. OSError where that cannot be."""
    content = asdict(turns) | {"messages": to_json(turns.messages)}
    with whole_file(path) as part, open(part, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({"checksum": _checksum(content), **content}, file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, tokenizer: Tokenizer | None = None) -> Turns:
    """Reads what `write` or `save` wrote; messages are records unless there is a `tokenizer`. Mistake where there is
    none, or where it is damaged or another tokenizer's."""
    try:
        content = read_json(path)
        if content.pop("checksum") != _checksum(content):
            raise ValueError("its checksum is another")
        turns = Turns(**content)
        if turns.cache is not None and not _CACHE.fullmatch(turns.cache):
            raise ValueError(f"its cache is {turns.cache!r}")
        messages = from_json(tokenizer, turns.messages) if tokenizer else turns.messages
    except OSError as error:
        raise NotFound(f"{path.parent} holds no saved chat ({reason(error)}): need one that /save wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Mistake(f"{path} is damaged ({error}): need one that /save wrote") from None
    if [message["content"] for message in messages] != [record["content"] for record in turns.messages]:
        raise Mistake(f"{path} was written with another model: give the --model it was saved with")
    return Turns(**vars(turns) | {"messages": messages})


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
