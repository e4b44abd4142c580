"""An argument that is a file's name, or a text. What looks like a name that no file has is a mistake."""

import difflib
import mimetypes
import os
import re
from pathlib import Path

from ..errors import Mistake
from .command import read


def is_file(value: str) -> bool:
    """Returns whether there is a file, or a pipe, of that name."""
    try:
        return Path(value).exists() and not Path(value).is_dir()
    except (OSError, ValueError):  # too long for a name, or with a zero byte in it
        return False


def read_file_or_text(name: str, value: str) -> str:
    """Returns the text that argument `name` stands for. Mistake where it looks like the path of a file, and is none."""
    if value == "-" or is_file(value):
        return read(value)
    path = Path(value)
    if not re.fullmatch(r"[\w.~/\\: +@-]*[\w~/.-]", value):
        return value
    folder = value in (".", "..") or value.endswith("/") or (os.sep in value and _is_folder(path))
    near = _neighbours(path)
    if folder or near or value.startswith(("./", "../", "/", "~/")) or mimetypes.guess_type(value)[0]:
        hint = f"; did you mean {near[0]}?" if near else ""
        what = "is a folder" if _is_folder(path) else "looks like a file, and there is none of that name"
        raise Mistake(f"{name} {value} {what}{hint} (a text that looks so is read by -, from standard input)")
    return value


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _neighbours(path: Path) -> list[str]:
    """Returns files whose name is nearly that of `path`."""
    if not path.suffix:
        return []
    try:
        names = [file.name for file in path.parent.iterdir() if file.suffix == path.suffix]
    except (OSError, ValueError):
        return []
    return [str(path.parent / near) for near in difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)]
