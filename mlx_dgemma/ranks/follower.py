"""A rank that is not the first: it does what rank 0 tells it, until that says it is over, or is gone."""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Mistake, reason
from ..seam.model import Continuation, DiffusionModel, Draw, Row, Text
from ..version import __version__
from . import ending
from .group import AGREE, PATIENCE
from .place import SECRET, Place
from .wire import Lost, Wire, beat

Loader = Callable[[dict[str, Any]], tuple[DiffusionModel | None, Any]]


def connect(place: Place) -> Wire:
    """Meet rank 0. Mistake where it cannot be met."""
    until, where = time.monotonic() + PATIENCE, "{}:{}".format(*place.leader)
    while True:
        try:
            connection = socket.create_connection(place.leader, 5)
            if connection.getsockname() != connection.getpeername():  # a port that nobody listens at may meet itself
                return Wire(connection)
            connection.close()
        except socket.gaierror as error:
            raise Mistake(f"rank {place.rank} cannot find rank 0 at {where}: {error.strerror}") from None
        except OSError as error:
            if time.monotonic() > until:
                raise Mistake(f"rank {place.rank} does not reach rank 0 at {where}: {reason(error)}") from None
        time.sleep(0.1)


def follow(place: Place, load: Loader) -> int:
    """Do what rank 0 tells, and return the exit code that it tells in the end. `load` answers what it asks for before
    there is a model."""
    try:
        wire = connect(place)
        hello = {"rank": place.rank, "ranks": place.ranks, "host": socket.gethostname(), "version": __version__}
        wire.send(hello | {"secret": os.environ.get(SECRET, "")})
    except (Mistake, Lost) as error:
        ending.end(str(error), 2)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's to hear
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Rank 0 speaks for all.
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(os.devnull, "w")  # noqa: SIM115
    messages: queue.SimpleQueue[dict] = queue.SimpleQueue()
    beat(wire)
    threading.Thread(target=_listen, args=(wire, messages), name="rank 0", daemon=True).start()
    follower = Follower(load)
    while "end" not in (message := messages.get()):
        try:
            value = follower.do(message)
        except Exception as error:  # noqa: BLE001, rank 0 judges it
            mistake = isinstance(error, Mistake)
            text = str(error) if mistake else " ".join(traceback.format_exc().split())
            wire.send({"call": message["call"], "error": text, "mistake": mistake})
        else:
            if message.get("answer"):
                wire.send({"call": message["call"], "value": value})
    return message["end"]


def _listen(wire: Wire, messages: queue.SimpleQueue) -> None:
    try:
        while True:
            message = wire.receive()
            messages.put(message)
            if "end" in message:
                time.sleep(AGREE)  # whoever does not come to it hangs in a pass
                ending.end(None, message["end"])
    except Lost as lost:
        ending.end(f"rank 0 {lost}", 1)


class Follower:
    """This rank's share of the model, and all that rank 0 refers to by numbers."""

    def __init__(self, load: Loader):
        self.load, self.model = load, None
        self.kept: dict[int, Any] = {}
        self.calls = {
            "new_cache": self.new_cache, "token_set": self.token_set, "encode": self.encode, "denoise": self.denoise,
            "logits": self.logits, "autoregress": self.autoregress, "next": self.next, "close": self.close,
            "copy": self.copy, "trim": self.trim, "saved": self.saved, "loaded": self.loaded,
        }  # fmt: skip

    def do(self, message: dict[str, Any]) -> Any:
        for number in message.get("forget", ()):
            self.kept.pop(number, None)
        if message["do"] in self.calls:
            return self.calls[message["do"]](**message["with"])
        model, value = self.load(message)
        self.model = model or self.model
        return value

    def new_cache(self, number: int, capacity: int | None) -> None:
        self.kept[number] = self.model.new_cache(capacity)

    def token_set(self, number: int, ids: np.ndarray) -> None:
        self.kept[number] = self.model.token_set(ids)

    def encode(self, texts: list[np.ndarray], caches: list[int], score: bool) -> None:
        self.model.encode([Text(text) for text in texts], [self.kept[cache] for cache in caches], score=score)

    def denoise(self, rows: list[dict], numbers: list[int]) -> None:
        predictions = self.model.denoise([self._row(row) for row in rows])
        for number, prediction in zip(numbers, predictions, strict=True):
            self.kept[number] = prediction.self_conditioning

    def logits(self, row: dict) -> None:
        self.model.logits(self._row(row))

    def autoregress(self, number: int, continuations: list[dict], draw: dict) -> None:
        texts = [
            Continuation(self.kept[text["cache"]], Text(text["pending"]), text["uniforms"], self._kept(text["allowed"]))
            for text in continuations
        ]
        self.kept[number] = self.model.autoregress(texts, Draw(**draw))

    def next(self, stream: int) -> None:
        next(self.kept[stream], None)

    def close(self, stream: int) -> None:
        self.kept.pop(stream).close()

    def copy(self, cache: int, number: int) -> None:
        self.kept[number] = self.kept[cache].copy()

    def trim(self, cache: int, tokens: int) -> None:
        self.kept[cache].trim(tokens)

    def saved(self, cache: int) -> np.ndarray:
        """Returns the bytes that a cache is saved as."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.safetensors"
            self.kept[cache].save(path)
            return np.frombuffer(path.read_bytes(), np.uint8)

    def loaded(self, cache: int, data: np.ndarray) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.safetensors"
            path.write_bytes(data)
            try:
                self.kept[cache].load(path)
            except (OSError, ValueError) as error:
                raise Mistake(str(error)) from None

    def _kept(self, number: int | None) -> Any:
        return None if number is None else self.kept[number]

    def _row(self, fields: dict) -> Row:
        sets = dict(fields.pop("sets"))
        fields["token_sets"] = [self._kept(sets.get(i)) for i in range(fields.pop("of_sets"))]
        fields["self_conditioning"] = self._kept(fields.pop("kept"))
        return Row(**fields | {"cache": self.kept[fields["cache"]], "pending": Text(fields["pending"])})
