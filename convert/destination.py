"""The folder that a conversion makes. It is written as NAME.part, which is renamed once it is whole."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ..checkpoint import inside, memory
from ..checkpoint.hub import cache_folder
from ..checkpoint.memory import check_disk, gigabytes
from ..errors import Mistake, NotFound
from . import card, stream
from .journal import NAME as JOURNAL
from .journal import Errors, Journal
from .plan import Plan

MEMORY = 1_000_000_000  # bytes that a conversion takes at most
Show = Callable[[Iterator[int], int, str], None]  # runs through steps in bytes, of so many, and names what is done


def unfinished(destination: Path) -> Path:
    """Return the folder's name while it is written."""
    return destination.with_name(destination.name + ".part")


def check(destination: Path) -> None:
    """Raise Mistake unless the folder can be made, or a run was killed just before it ended."""
    if os.path.lexists(destination) and not (destination / JOURNAL).is_file():
        raise Mistake(f"{destination} exists: need a new folder for --mlx-path")
    if not (parent := destination.parent).is_dir():
        raise NotFound(f"{parent} is no folder: make it first, {destination.name} is to be in it")
    if not os.access(parent, os.W_OK):
        raise Mistake(f"{parent} cannot be written to: no permission")


def check_room_to_fetch(plan: Plan, destination: Path) -> None:
    """Raise Mistake unless the disk has room for the output and, if the hub's cache is on it, for the source."""
    shared = cache_folder().stat().st_dev == destination.parent.stat().st_dev
    what = f"{destination} and its source, which is to be fetched" if shared else str(destination)
    check_disk(destination.parent, plan.nbytes + shared * plan.source_bytes, what)


def _check_room(plan: Plan, copied: list[Path], part: Path, destination: Path) -> None:
    """Raise Mistake unless there is room for what is left to write, and memory for a piece of it."""
    written = sum(file.stat().st_blocks * 512 for file in part.glob("*"))
    needed = plan.nbytes + sum(file.stat().st_size for file in copied) + 1_000_000 * (len(plan.shards) + 1)
    check_disk(destination.parent, needed - written, str(destination))
    if (free := memory.available()) < min(MEMORY, 2 * plan.source_bytes):
        raise Mistake(f"too little memory: needs {gigabytes(MEMORY)}, {gigabytes(free)} are free")


def make(plan: Plan, command: str, destination: Path, show: Show) -> Errors:
    """Make the folder, or go on where a run ended, and return the errors of its weights. Mistake: the source is wrong,
    and nothing is kept; or there is too little room, and the same command goes on."""
    part = unfinished(destination)
    if destination.is_dir():  # a run was killed before it removed its journal
        with Journal(destination, plan.fingerprint, command, plan.changed) as journal:
            os.unlink(destination / JOURNAL)
            return journal.errors
    copied = inside.copied(plan.source)
    _check_room(plan, copied, part, destination)
    if part.is_dir() and any(part.iterdir()) and not (part / JOURNAL).is_file():
        raise Mistake(f"{part} exists, and no conversion left it; remove it")
    part.mkdir(exist_ok=True)
    try:
        with Journal(part, plan.fingerprint, command, plan.changed) as journal:
            _write(plan, part, journal, copied, show)
            part.rename(destination)
            os.unlink(destination / JOURNAL)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = os.strerror(error.errno)
        raise Mistake(f"{part}: {reason}; make room and give the same command again, it goes on from there") from error
    return journal.errors


def _write(plan: Plan, part: Path, journal: Journal, copied: list[Path], show: Show) -> None:
    """Write every file to the disk."""
    try:
        show(stream.write(plan, part, journal), plan.source_bytes, "converting")
    except Mistake:  # the source is wrong, so its conversion is worth nothing
        shutil.rmtree(part)
        raise
    show(stream.verify(plan, part, journal), plan.nbytes, "verifying")
    for file in copied:
        shutil.copyfile(file, part / file.name)
    card.write(plan, journal.errors, journal.head["made"], part)
    stream.write_configs(plan, part)
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
