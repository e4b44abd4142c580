"""The progress of a conversion, on disk: the same command goes on where a killed run ended.

`journal.jsonl` in the unfinished folder has one JSON object a line: first the plan's fingerprint, then how many rows of
which tensor are written, with what checksum. A line is written once what it describes is on the disk.
"""

import fcntl
import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ..errors import Mistake

NAME = "journal.jsonl"
Errors = dict[int, tuple[float, float]]  # job -> sums of squares over sampled rows: of the difference, of the weights


@dataclass
class Progress:
    """The progress of a job."""

    rows: int = 0  # written
    sums: tuple[int, ...] = (0, 0, 0)  # CRC-32 of what is written of each output
    source: tuple[int, ...] = ()  # CRC-32 of what was read for it: weight, scales, biases, factors
    error: tuple[float, float] = (0.0, 0.0)  # see `Errors`


class Journal:
    """A context manager that locks the folder against a second run, and releases it however the first one ends."""

    def __init__(self, folder: Path, fingerprint: str, command: str, changed: list[int]):
        self.path = folder / NAME
        self.head = {"fingerprint": fingerprint, "made": command, "changed": changed}
        self.changed = False  # the source's files are not those of the run that began, or may not be
        self.jobs: defaultdict[int, Progress] = defaultdict(Progress)
        self.hashed: set[str] = set()  # names of source files whose SHA-256 was right
        self._pending: set[int] = set()

    def __enter__(self) -> Self:
        self.file: BinaryIO = self.path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except Exception as error:
            self.file.close()
            if isinstance(error, BlockingIOError):
                raise Mistake(f"{self.path.parent} is being written by another conversion; wait for it") from None
            raise
        return self

    def __exit__(self, *failure) -> None:
        self.file.close()

    def _read(self) -> None:
        self.file.seek(0)
        *lines, torn = self.file.read().split(b"\n")
        if torn:  # the run was killed while it wrote this line
            self.file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append(self.head)
            return
        try:
            head, *entries = map(json.loads, lines)
            self._take(head, entries)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, Mistake):
                raise
            raise Mistake(f"{self.path} is damaged ({error!r:.80}): remove {self.path.parent}") from None

    def _take(self, head: dict, entries: list[dict]) -> None:
        if head.get("fingerprint") != self.head["fingerprint"]:
            left = f"{self.path.parent} is left from another conversion ({head.get('made')}), or its source has changed"
            raise Mistake(f"{left}; finish that conversion with its options, or remove the folder")
        self.changed = head["changed"] != self.head["changed"]
        for entry in entries:
            if "hashed" in entry:
                self.hashed.add(entry["hashed"])
            else:
                sums, source, error = map(tuple, (entry["sums"], entry["source"], entry["error"]))
                self.jobs[int(entry["job"])] = Progress(int(entry["rows"]), sums, source, error)

    def _append(self, *entries: dict) -> None:
        self.file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self.file.flush()
        os.fsync(self.file.fileno())

    @property
    def errors(self) -> Errors:
        return {job: progress.error for job, progress in self.jobs.items()}

    def note(self, job: int, progress: Progress) -> None:
        """Remember progress whose bytes are not on the disk yet."""
        self.jobs[job] = progress
        self._pending.add(job)

    def commit(self) -> None:
        """Write what was noted: its bytes are on the disk now."""
        self._append(*({"job": job, **asdict(self.jobs[job])} for job in sorted(self._pending)))
        self._pending.clear()

    def add_hashed(self, file: Path) -> None:
        """Write that the file's SHA-256 was right."""
        self.hashed.add(file.name)
        self._append({"hashed": file.name})

    def forget(self, jobs: list[int]) -> None:
        """Write that these jobs must be done again: what is on the disk is not what was written."""
        for job in jobs:
            self.note(job, Progress())
        self.commit()
