"""A plan carried out: tensors read in pieces, quantized, written to their places, and read again to see that they are
there. Nothing larger than a piece is in memory."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.folder import INDEX, ITEM
from ..errors import Mistake
from .journal import Journal, Progress
from .plan import Job, Plan
from .source import FLOATS, Packed, Plain, Raw, Reader, expected_sha256

PIECE = 64_000_000  # bytes of a source tensor that are in memory at a time, if a row has no more
COMMIT = 256_000_000  # bytes of the source after which the journal is brought up to date
SAMPLE = 32  # of so many rows, one is looked at for the relative error


def _numpy(array: mx.array) -> np.ndarray:
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _error(before: mx.array, after: mx.array) -> tuple[float, float]:
    before, after = before.astype(mx.float32), after.astype(mx.float32)
    return mx.square(before - after).sum().item(), mx.square(before).sum().item()


def _as_it_is(job: Job, raw: Raw) -> list[np.ndarray]:
    """Packed values are not touched; scales and biases in the dtype that is wanted."""
    weight, *rest = job.weight.packed(raw)
    if job.quantization.mode == "affine":
        rest = [_cast(job, array) for array in rest]
    mx.eval(rest)
    return [_numpy(array) for array in (weight, *rest)]


def _cast(job: Job, array: mx.array) -> mx.array:
    cast = array.astype(getattr(mx, job.dtype))
    if cast.dtype == mx.float16 and array.dtype != mx.float16 and not mx.isfinite(cast).all().item():
        raise Mistake(f"{job.where} has values too large for float16; try --dtype bfloat16")
    return cast


def make(job: Job, raw: Raw) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Some rows of the source -> the same rows of every output, and their error."""
    weight, q = job.weight, job.quantization
    exact = (0.0, 0.0)
    if isinstance(weight, Plain) and (job.dtype is None or weight.stored.tensor.dtype not in FLOATS.values()):
        return [raw["weight"]], exact
    if isinstance(weight, Packed) and weight.quantization == q:
        return _as_it_is(job, raw), exact
    floats = weight.floats(raw, job.dtype if q is None else "float32")
    array = _cast(job, floats)
    if q is None:
        mx.eval(array)
        changed = array.dtype != floats.dtype and array.dtype != mx.float32
        return [_numpy(array)], _error(floats[::SAMPLE], array[::SAMPLE]) if changed else exact
    groups = {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}
    arrays = mx.quantize(array, **groups)
    mx.eval(arrays)  # per piece, so that no graph holds more than one
    restored = mx.dequantize(*(part[::SAMPLE] for part in arrays), **groups)
    return [_numpy(part) for part in arrays], _error(floats[::SAMPLE], restored)


def _header(jobs: tuple[Job, ...], metadata: dict[str, str]) -> tuple[bytes, dict[str, int], int]:
    """The start of a safetensors file, where in the file each tensor's bytes begin, and where the file ends."""
    outputs = [output for job in jobs for output in job.outputs]
    outputs.sort(key=lambda o: (-ITEM.get(o.dtype, 0), o.name))  # wide ones first: every tensor is aligned
    table: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for output in outputs:
        offsets = [end, end := end + output.nbytes]
        table[output.name] = {"dtype": output.dtype, "shape": output.shape, "data_offsets": offsets}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {o.name: start + table[o.name]["data_offsets"][0] for o in outputs}
    return len(text).to_bytes(8, "little") + text, places, start + end


class _Shard:
    """One file being written, as far as the journal says."""

    def __init__(self, folder: Path, plan: Plan, number: int):
        header, self.places, end = _header(plan.shards[number], dict(plan.metadata))
        self.number = number
        self.file = os.open(folder / plan.files[number], os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self.file, end)
        self._write(header, 0)

    def _write(self, data: bytes | memoryview, place: int) -> None:
        view = memoryview(data).cast("B")
        while len(view):  # a disk that is nearly full takes less than is given
            written = os.pwrite(self.file, view, place)
            view, place = view[written:], place + written

    def put(self, piece: _Piece, arrays: list[np.ndarray], error: tuple[float, float], journal: Journal) -> None:
        before, sums = journal.jobs.get(piece.index, Progress()), []
        for output, array, so_far in zip(piece.job.outputs, arrays, before.sums or [0] * len(arrays), strict=True):
            data = memoryview(np.ascontiguousarray(array)).cast("B")
            self._write(data, self.places[output.name] + piece.first * (output.nbytes // piece.job.rows))
            sums.append(zlib.crc32(data, so_far))
        total = before.error[0] + error[0], before.error[1] + error[1]
        journal.note(piece.index, Progress(piece.last, sums, total))

    def sync(self) -> None:
        os.fsync(self.file)

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
        self.file = None


@dataclass(frozen=True)
class _Piece:
    shard: int
    index: int  # of the job in the plan
    job: Job
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        """Of the source."""
        return (self.last - self.first) * (self.job.source_bytes // self.job.rows)


def _left(plan: Plan, journal: Journal) -> Iterator[_Piece]:
    """What is still to be done."""
    index = 0
    for number, jobs in enumerate(plan.shards):
        for job in jobs:
            done = journal.jobs[index].rows if index in journal.jobs else 0
            step = max(PIECE // max(job.source_bytes // job.rows, 1), 1)
            for first in range(done, job.rows, step):
                yield _Piece(number, index, job, first, min(first + step, job.rows))
            index += 1


def _ahead(pieces: Iterator[_Piece], reader: Reader, thread: Executor) -> Iterator[tuple[_Piece, Raw]]:
    """Pieces with what was read of them: while one is worked on, `thread` reads the next."""
    before: tuple[_Piece, Future] | None = None
    for piece in pieces:
        reading = thread.submit(piece.job.weight.read, reader, piece.first, piece.last)
        if before:
            yield before[0], before[1].result()
        before = piece, reading
    if before:
        yield before[0], before[1].result()


def write(plan: Plan, folder: Path, journal: Journal) -> Iterator[int]:
    """The weights. Bytes of the source, each time some were worked off; what an earlier run did comes first."""
    reader = Reader({f: sha for f in plan.sources if f.name not in journal.hashed and (sha := expected_sha256(f))})
    last_use = {part.tensor.file: index for index, job in enumerate(plan.jobs) for part in job.weight.parts}
    shard, uncommitted = None, 0
    yield plan.source_bytes - sum(piece.nbytes for piece in _left(plan, journal))
    with ThreadPoolExecutor(1) as thread:
        try:
            for piece, raw in _ahead(_left(plan, journal), reader, thread):
                if shard is None or shard.number != piece.shard:
                    _settle(shard, journal)
                    shard = _Shard(folder, plan, piece.shard)
                arrays, error = make(piece.job, raw)
                shard.put(piece, arrays, error, journal)
                uncommitted += piece.nbytes
                if uncommitted >= COMMIT:
                    shard.sync()
                    journal.commit()
                    uncommitted = 0
                yield piece.nbytes
                if piece.last == piece.job.rows:
                    mx.clear_cache()  # the next tensor's pieces have other sizes
                    for file in [f for f in reader.expected if last_use[f] == piece.index]:
                        thread.submit(reader.finish, file).result()
                        journal.add_hashed(file)
            _settle(shard, journal)
        finally:
            if shard:
                shard.close()
        for file in list(reader.expected):
            reader.finish(file)
            journal.add_hashed(file)


def _settle(shard: _Shard | None, journal: Journal) -> None:
    """A file is done with, for now."""
    if shard:
        shard.sync()
        journal.commit()
        shard.close()


def verify(plan: Plan, folder: Path, journal: Journal) -> Iterator[int]:
    """Read what was written, from the disk where the system allows. Yields bytes.

    Mistake names a file that is not as it was written; the journal then forgets it, so that it is made again.
    """
    start = 0
    for name, jobs in zip(plan.files, plan.shards, strict=True):
        header, places, end = _header(jobs, dict(plan.metadata))
        numbers = list(range(start, start := start + len(jobs)))
        path = folder / name
        if not path.is_file():
            journal.again(numbers)
            raise Mistake(f"{path} was taken away while it was made; the same command makes it again")
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            whole = path.stat().st_size == end and file.read(len(header)) == header
            for number, job in zip(numbers, jobs, strict=True):
                for output, expected in zip(job.outputs, journal.jobs[number].sums, strict=True):
                    whole = whole and _checksum(file, places[output.name], output.nbytes) == expected
                yield job.nbytes
        if not whole:
            journal.again(numbers)
            raise Mistake(
                f"{path} does not hold what was written to it: is the disk sound? The same command makes it again"
            )


def _checksum(file, place: int, size: int) -> int:
    found, end = 0, place + size
    file.seek(place)
    while place < end:
        piece = file.read(min(1 << 24, end - place))
        if not piece:
            return -1
        found, place = zlib.crc32(piece, found), place + len(piece)
    return found


def write_configs(plan: Plan, folder: Path) -> None:
    """Last of all: without a config.json no program takes the folder for a model."""
    weight_map = {
        output.name: name
        for name, jobs in zip(plan.files, plan.shards, strict=True)
        for job in jobs
        for output in job.outputs
    }
    totals = {"total_size": plan.nbytes, "total_parameters": plan.parameters}
    index = {"metadata": totals, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=4) + "\n")
    (folder / "config.json").write_text(json.dumps(plan.config, indent=4, sort_keys=True) + "\n")
