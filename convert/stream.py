"""A plan carried out: tensors are read in pieces, quantized, written to their places, and read again as a check.

Nothing larger than a piece is in memory.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, pairwise, zip_longest
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..checkpoint.folder import INDEX, ITEM, file_start
from ..errors import Mistake
from .hub import expected_sha256
from .journal import Journal, Progress
from .plan import Job, Plan
from .source import Raw, Reader

PIECE = 64_000_000  # bytes of a source tensor that are in memory at a time, unless a row has more
COMMIT = 256_000_000  # bytes of the source after which the journal is brought up to date
SAMPLE = 32  # the relative error is that of every 32nd row


def convert_rows(job: Job, raw: Raw) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Return rows of every output, made from the same rows of the source, and their error as `Errors` has it."""
    weight, q, exact = job.weight, job.quantization, (0.0, 0.0)
    if job.dtype is None:
        return [raw["weight"]], exact
    if q is not None and weight.quantization == q:
        packed, *groups = weight.arrays(raw)
        if q.mode == "affine":
            groups = [_cast(job, array) for array in groups]
        return [_numpy(array) for array in (packed, *groups)], exact
    floats = weight.floats(raw, job.dtype if q is None else "float32")
    array = _cast(job, floats)
    if q is None:
        rounded = array.dtype != floats.dtype and array.dtype != mx.float32
        return [_numpy(array)], _error(floats[::SAMPLE], array[::SAMPLE]) if rounded else exact
    groups = {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}
    arrays = mx.quantize(array, **groups)
    mx.eval(arrays)  # for each piece, so that no graph holds more than one
    restored = mx.dequantize(*(part[::SAMPLE] for part in arrays), **groups)
    return [_numpy(part) for part in arrays], _error(floats[::SAMPLE], restored)


def _cast(job: Job, array: mx.array) -> mx.array:
    cast = array.astype(getattr(mx, job.dtype))
    if cast.dtype == mx.float16 and array.dtype != mx.float16 and not mx.isfinite(cast).all().item():
        raise Mistake(f"{job.weight.parts[0].where} has values too large for float16; try --dtype bfloat16")
    return cast


def _numpy(array: mx.array) -> np.ndarray:
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _error(before: mx.array, after: mx.array) -> tuple[float, float]:
    before, after = before.astype(mx.float32), after.astype(mx.float32)
    return mx.square(before - after).sum().item(), mx.square(before).sum().item()


def _layout(plan: Plan, number: int) -> tuple[bytes, dict[str, int], int]:
    """Return a shard's header, the byte of the file where each output begins, and the file's size."""
    outputs = [output for job in plan.shards[number] for output in job.outputs]
    outputs.sort(key=lambda output: (-ITEM.get(output.dtype, 0), output.name))  # wide ones first: all are aligned
    table, end = {}, 0
    for output in outputs:
        table[output.name] = output.dtype, output.shape, (end, end := end + output.nbytes)
    start = file_start(table, plan.metadata)
    return start, {name: len(start) + offsets[0] for name, (_, _, offsets) in table.items()}, len(start) + end


@dataclass(frozen=True)
class _Piece:
    """Rows [first, last) of a job."""

    shard: int
    index: int  # of the job in the plan
    job: Job
    first: int
    last: int

    @property
    def source_bytes(self) -> int:
        return (self.last - self.first) * (self.job.source_bytes // self.job.rows)


def _remaining(plan: Plan, journal: Journal) -> Iterator[_Piece]:
    """Yield the pieces that the journal does not have, in order."""
    numbers = (number for number, jobs in enumerate(plan.shards) for _ in jobs)
    for index, (number, job) in enumerate(zip(numbers, plan.jobs, strict=True)):
        for first, last in _ranges(job, journal.jobs[index].rows, job.rows):
            yield _Piece(number, index, job, first, last)


def _ranges(job: Job, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Divide rows of a job into pieces."""
    step = max(PIECE // max(job.source_bytes // job.rows, 1), 1)
    return ((start, min(start + step, last)) for start in range(first, last, step))


def _checksums(arrays: Iterable[np.ndarray], before: tuple[int, ...]) -> tuple[int, ...]:
    """Go on with a CRC-32 for each of the arrays."""
    parts = (memoryview(np.ascontiguousarray(array)).cast("B") for array in arrays)
    return tuple(zlib.crc32(part, checksum) for part, checksum in zip_longest(parts, before, fillvalue=0))


def _check_source(plan: Plan, journal: Journal) -> None:
    """Raise Mistake unless the rows that an earlier run read are still the same."""
    reader = Reader({})
    for index, job in enumerate(plan.jobs):
        sums: tuple[int, ...] = ()
        for first, last in _ranges(job, 0, journal.jobs[index].rows):
            sums = _checksums(job.weight.read(reader, first, last).values(), sums)
        if sums != journal.jobs[index].source:
            file = job.weight.parts[0].file
            raise Mistake(f"{file} has changed since the conversion began: give the same command again, for all of it")


def _prefetch(pieces: Iterator[_Piece], reader: Reader, thread: Executor) -> Iterator[tuple[_Piece, Raw]]:
    """Yield pieces with their rows. While a piece is worked on, `thread` reads the next."""
    readings = ((piece, thread.submit(piece.job.weight.read, reader, piece.first, piece.last)) for piece in pieces)
    for (piece, reading), _ in pairwise(chain(readings, [None])):
        yield piece, reading.result()


class _Shard:
    """A file that is being written."""

    def __init__(self, folder: Path, plan: Plan, number: int, journal: Journal):
        start, self.places, size = _layout(plan, number)
        self.journal, self.uncommitted = journal, 0  # bytes of the source
        self.file = os.open(folder / plan.files[number], os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self.file, size)
        self._write(start, 0)

    def _write(self, data: bytes | memoryview, place: int) -> None:
        view = memoryview(data).cast("B")
        while len(view):  # a disk that is nearly full takes less than it is given
            written = os.pwrite(self.file, view, place)
            view, place = view[written:], place + written

    def put(self, piece: _Piece, raw: Raw) -> None:
        """Write what the rows become to the places of every output."""
        arrays, error = convert_rows(piece.job, raw)
        before = self.journal.jobs[piece.index]
        for output, array in zip(piece.job.outputs, arrays, strict=True):
            data = memoryview(np.ascontiguousarray(array)).cast("B")
            self._write(data, self.places[output.name] + piece.first * (output.nbytes // piece.job.rows))
        sums, source = _checksums(arrays, before.sums[: len(arrays)]), _checksums(raw.values(), before.source)
        total = before.error[0] + error[0], before.error[1] + error[1]
        self.journal.note(piece.index, Progress(piece.last, sums, source, total))
        self.uncommitted += piece.source_bytes
        if self.uncommitted >= COMMIT:
            self.commit()

    def commit(self) -> None:
        """Bring the journal up to date."""
        os.fsync(self.file)
        self.journal.commit()
        self.uncommitted = 0

    def close(self) -> None:
        os.close(self.file)


def write(plan: Plan, folder: Path, journal: Journal) -> Iterator[int]:
    """Write the weights. Yields bytes of the source: first what an earlier run did, then each piece."""
    if journal.changed:
        _check_source(plan, journal)
    reader = Reader({f: sha for f in plan.sources if f.name not in journal.hashed and (sha := expected_sha256(f))})
    last_job = {part.file: index for index, job in enumerate(plan.jobs) for part in job.weight.parts}
    yield plan.source_bytes - sum(piece.source_bytes for piece in _remaining(plan, journal))
    with ThreadPoolExecutor(1) as thread:
        filled = _prefetch(_remaining(plan, journal), reader, thread)
        for number, pieces in groupby(filled, key=lambda pair: pair[0].shard):
            with closing(_Shard(folder, plan, number, journal)) as shard:
                for piece, raw in pieces:
                    shard.put(piece, raw)
                    yield piece.source_bytes
                    if piece.last == piece.job.rows:
                        mx.clear_cache()  # the next tensor's pieces have other sizes
                        for file in [file for file in reader.expected if last_job[file] == piece.index]:
                            thread.submit(reader.finish, file).result()
                            journal.add_hashed(file)
                shard.commit()
    for file in list(reader.expected):  # the tensors of these were written by an earlier run
        reader.finish(file)
        journal.add_hashed(file)


def verify(plan: Plan, folder: Path, journal: Journal) -> Iterator[int]:
    """Read what was written, from the disk where the system allows it. Yields bytes. Mistake if a file is not as it was
    written; the journal then forgets its jobs, so that they are done again."""
    first = 0
    for number, jobs in enumerate(plan.shards):
        indices = list(range(first, first := first + len(jobs)))
        path, (start, places, size) = folder / plan.files[number], _layout(plan, number)
        if not path.is_file():
            journal.forget(indices)
            raise Mistake(f"{path} was taken away while it was made; the same command makes it again")
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            intact = path.stat().st_size == size and file.read(len(start)) == start
            for index, job in zip(indices, jobs, strict=True):
                for output, expected in zip(job.outputs, journal.jobs[index].sums, strict=True):
                    intact = intact and _checksum(file, places[output.name], output.nbytes) == expected
                yield job.nbytes
        if not intact:
            journal.forget(indices)
            raise Mistake(f"{path} does not hold what was written: is the disk sound? The same command makes it again")


def _checksum(file: BinaryIO, place: int, size: int) -> int:
    """Return the CRC-32 of `size` bytes from `place` on."""
    checksum, step = 0, 1 << 24
    file.seek(place)
    for remaining in range(size, 0, -step):
        checksum = zlib.crc32(file.read(min(step, remaining)), checksum)
    return checksum


def write_configs(plan: Plan, folder: Path) -> None:
    """Write the index and, last of all, config.json: without it no program takes the folder for a model."""
    files = zip(plan.files, plan.shards, strict=True)
    weight_map = {output.name: name for name, jobs in files for job in jobs for output in job.outputs}
    totals = {"total_size": plan.nbytes, "total_parameters": plan.parameters}
    index = {"metadata": totals, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=4) + "\n")
    (folder / "config.json").write_text(json.dumps(plan.config, indent=4, sort_keys=True) + "\n")
