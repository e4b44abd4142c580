"""Messages between rank 0 and another rank over a TCP connection, and the watch: whoever is gone or silent is noticed.

A frame is its length, the length of a JSON head, the head, and the bytes of the arrays that it names: nothing in it can
run. A frame without a head is a heartbeat. These come from a thread of their own, so that long work is no silence.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

BEAT = 1.0  # seconds between heartbeats
SILENCE = 5  # seconds without any, each of them waited for: a machine that slept as a whole has not waited
LARGEST = 2**34  # bytes of a frame
KINDS = ("int32", "int64", "float32", "bool", "uint8")  # of arrays


class Lost(ConnectionError):
    """The other side is gone, or silent."""


def _split(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return `value` with places in `arrays` instead of its arrays."""
    if isinstance(value, np.ndarray):
        arrays.append(np.ascontiguousarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {name: _split(part, arrays) for name, part in value.items()}
    return [_split(part, arrays) for part in value] if isinstance(value, list | tuple) else value


def _join(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return arrays[value["array"]]
        return {name: _join(part, arrays) for name, part in value.items()}
    return [_join(part, arrays) for part in value] if isinstance(value, list) else value


def encode(message: dict[str, Any]) -> list[bytes | memoryview]:
    """Return the parts of a frame."""
    arrays: list[np.ndarray] = []
    content = _split(message, arrays)
    about = [(array.dtype.name, array.shape) for array in arrays]
    head = json.dumps([content, about]).encode()
    total = len(head) + sum(array.nbytes for array in arrays)
    return [struct.pack("<QI", total, len(head)), head, *(array.reshape(-1).view(np.uint8).data for array in arrays)]


def decode(head: bytes, rest: bytearray) -> dict[str, Any]:
    """Read a frame. ValueError where it is none of ours."""
    content, about = json.loads(head)
    arrays, start = [], 0
    for kind, shape in about:
        if kind not in KINDS:
            raise ValueError(f"an array of {kind}")
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        arrays.append(np.frombuffer(rest[start : start + size], kind).reshape(shape))
        start += size
    return _join(content, arrays)


class Wire:
    """One connection. `send` may be called from any thread, `receive` from one."""

    def __init__(self, connection: socket.socket):
        self.connection, self._lock = connection, threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(1.0)

    def send(self, message: dict[str, Any], patience: float = -1) -> None:
        """Send a message. `patience`: seconds to wait for another thread's to be gone. Lost where nobody takes it."""
        self._send(encode(message), patience)

    def beat(self) -> None:
        self._send([struct.pack("<QI", 0, 0)])

    def _send(self, parts: list, patience: float = -1) -> None:
        if not self._lock.acquire(timeout=patience):
            raise Lost("does not answer")
        try:
            for part in parts:
                view = memoryview(part)
                while len(view):
                    view = view[self._patiently(self.connection.send, view) :]
        finally:
            self._lock.release()

    def receive(self) -> dict[str, Any]:
        """Wait for the next message. Lost where none comes."""
        while True:
            total, length = struct.unpack("<QI", self._read(12))
            if total > LARGEST or length > total:
                raise Lost("sends what is no message of ours")
            if total:
                try:
                    return decode(self._read(length), self._read(total - length))
                except (ValueError, TypeError, LookupError):
                    raise Lost("sends what is no message of ours") from None

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while len(view):
            moved = self._patiently(self.connection.recv_into, view)
            if not moved:
                raise Lost("stopped")
            view = view[moved:]
        return data

    def _patiently(self, operation: Callable[[memoryview], int], view: memoryview) -> int:
        """Return how many bytes `operation` moved. Lost where it fails, or moves none for SILENCE seconds."""
        for _ in range(SILENCE + 1):
            try:
                return operation(view)
            except TimeoutError:
                continue
            except (OSError, ValueError):
                raise Lost("stopped") from None
        raise Lost("does not answer")

    def close(self) -> None:
        self.connection.close()


def beat(wire: Wire) -> None:
    """Send a heartbeat every second, from a thread of its own; where the other side is lost, its reader notices."""

    def run() -> None:
        with suppress(Lost):
            while True:
                time.sleep(BEAT)
                wire.beat()

    threading.Thread(target=run, name="heartbeat", daemon=True).start()
