"""How far a conversion is, on disk: what a killed run left is gone on with, not begun again.

One JSON object a line, in `journal.jsonl` of the unfinished folder: first which plan it is of, then how many rows of
which tensor are written, with what checksum. A line is written when what it tells of is on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import Mistake

NAME = "journal.jsonl"


@dataclass
class Progress:
    """Of one job."""

    rows: int = 0
    sums: list[int] = field(default_factory=list)  # CRC-32 of what was written of each output
    error: tuple[float, float] = (0.0, 0.0)  # of the rows looked at: squared, of the difference and of the weights


class Journal:
    """Use with `with`: holds the folder against a second run, and lets go of it however the first one ends."""

    def __init__(self, folder: Path, fingerprint: str, made: str):
        self.path = folder / NAME
        self.head = {"fingerprint": fingerprint, "made": made}
        self.jobs: dict[int, Progress] = {}
        self.hashed: set[str] = set()  # source files whose SHA-256 is as the hub says
        self._pending: dict[int, Progress] = {}

    def __enter__(self) -> Journal:
        self.file: BinaryIO = self.path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise Mistake(f"{self.path.parent} is being written by another conversion; wait for it") from None
        try:
            self._read()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *failure) -> None:
        self.file.close()

    def _read(self) -> None:
        self.file.seek(0)
        *lines, torn = self.file.read().split(b"\n")
        if torn:  # killed while it was written
            self.file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append(self.head)
            return
        head, *entries = map(json.loads, lines)
        if head.get("fingerprint") != self.head["fingerprint"]:
            raise Mistake(
                f"{self.path.parent} is left from another conversion ({head.get('made')}), or its source has changed; "
                "finish that one with its own options, or remove the folder"
            )
        for entry in entries:
            if "hashed" in entry:
                self.hashed.add(entry["hashed"])
            elif "again" in entry:
                for job in entry["again"]:
                    self.jobs.pop(job, None)
            else:
                self.jobs[entry["job"]] = Progress(entry["rows"], entry["sums"], tuple(entry["error"]))

    def _append(self, *entries: dict) -> None:
        self.file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self.file.flush()
        os.fsync(self.file.fileno())

    @property
    def errors(self) -> dict[int, tuple[float, float]]:
        """By job."""
        return {job: progress.error for job, progress in self.jobs.items()}

    def note(self, job: int, progress: Progress) -> None:
        """To be told of in the next line."""
        self.jobs[job] = self._pending[job] = progress

    def commit(self) -> None:
        """What was noted is on the disk."""
        if self._pending:
            self._append(
                *({"job": job, "rows": p.rows, "sums": p.sums, "error": p.error} for job, p in self._pending.items())
            )
            self._pending.clear()

    def add_hashed(self, file: Path) -> None:
        self.hashed.add(file.name)
        self._append({"hashed": file.name})

    def again(self, jobs: list[int]) -> None:
        """What was written of these cannot be trusted."""
        for job in jobs:
            self.jobs.pop(job, None)
        self._append({"again": jobs})
