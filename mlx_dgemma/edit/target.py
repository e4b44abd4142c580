"""The file that is edited. It is changed whole or not at all, and keeps its names, links, permissions and owner."""

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ..errors import Mistake, NotFound, reason

PREFIX = ".mlx_dgemma-"  # of a new file's name, until it takes the old one's place


def check(path: Path, *, to_write: bool) -> None:
    """Mistake where `path` is no regular file, or where it is `to_write` and protected. Changes nothing."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise Mistake(f"{path} is {kind}: give a text file")
        if to_write and not mode & 0o222:  # root could write it all the same
            raise Mistake(f"{path} is write-protected: make it writable (chmod u+w), or leave out --write")
        os.close(os.open(path, os.O_WRONLY if to_write else os.O_RDONLY))
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        verb = "changed" if to_write else "read"
        raise Mistake(f"{path} cannot be {verb}: {reason(error)}") from None


def write(path: Path, old: str, new: str) -> None:
    """Writes `new` where `old` stands. A file with other names, or of another owner, is written over in place, behind a
    copy of the new text that stays beside it if this is broken off; any other is replaced at once."""
    path = path.resolve()
    try:
        info, part = path.stat(), _part(path, new.encode())
        try:
            if info.st_nlink == 1 and _copy_metadata(part, path, info):
                os.replace(part, path)
            else:
                _overwrite(path, old.encode(), new.encode())
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Mistake(f"{path} cannot be changed, and is as it was: {reason(error)}") from None


def _part(path: Path, data: bytes) -> Path:
    """Returns a new file that holds `data`, beside `path` or, where its folder is protected, among temporary files."""
    folder = path.parent if os.access(path.parent, os.W_OK) else None
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=PREFIX)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _copy_metadata(part: Path, path: Path, info: os.stat_result) -> bool:
    """Gives `part` the owner, mode and attributes of `path`. False where that, or taking its place, is not allowed."""
    if part.parent != path.parent:
        return False
    try:
        os.chown(part, info.st_uid, info.st_gid)
        shutil.copystat(path, part)
        os.utime(part)
    except OSError:
        return False
    return True


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        try:
            _write_all(file.fileno(), new)
        except OSError:
            with suppress(OSError):
                _write_all(file.fileno(), old)
            raise


def _write_all(descriptor: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], done)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)
