"""Rank 0's side of a model that is divided: it tells the other ranks what to do, and watches over them.

A call has a number. Where it fails, it has to fail everywhere alike; a rank that fails alone, or that dies or falls
silent, ends all of them.
"""

import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import Mistake, reason
from ..version import __version__
from . import ending
from .place import Place
from .wire import Lost, Wire, beat

PATIENCE = 60.0  # seconds for the others to come
LATE = 20.0  # seconds in which they hear of an end before they came
AGREE = 5.0  # seconds for all to fail alike
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Group:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, place: Place, secret: str = "", started: Sequence[subprocess.Popen] = ()):
        """Listen for the others. Mistake where that cannot be."""
        self.ranks, self.secret, self.started = place.ranks, secret, started
        self.wires: dict[int, Wire] = {}
        self.hosts: dict[int, str] = {}
        self.number, self.over = 0, False  # of the last call
        self.failed: set[int] = set()  # numbers of calls that failed here
        self.answers: dict[int, dict[int, dict]] = {}  # of calls, by rank
        self._changed = threading.Condition()
        try:
            self._listening = socket.create_server(place.leader)
        except OSError as error:
            host, port = place.leader
            raise Mistake(f"rank 0 cannot be met at {host}:{port}: {reason(error)}") from None
        threading.Thread(target=self._gather, name="gather", daemon=True).start()

    def name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}" if rank in self.hosts else f"rank {rank}"

    def end(self, code: int, line: str | None = None) -> None:
        """Let the other ranks end, with the same code; and this one, at once, where there is a `line` to say why."""
        self.over = True
        if line is None:  # who is still on the way would wait for a rank 0 that is gone
            with self._changed:
                self._changed.wait_for(lambda: len(self.wires) == self.ranks - 1, LATE)
        for wire in list(self.wires.values()):
            with suppress(Lost):
                wire.send({"end": code}, patience=0.2)
        if line is None:
            self._reap(AGREE)
            return
        self._reap(0.5)
        ending.end(line, code)

    def _reap(self, seconds: float) -> None:
        """End the processes that were started here: a stopped one cannot end itself."""
        until = time.monotonic() + seconds
        for process in self.started:
            try:
                process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _gather(self) -> None:
        """Take the others in as they come."""
        until = time.monotonic() + PATIENCE
        self._listening.settimeout(0.2)
        while len(self.wires) < self.ranks - 1:
            for rank, process in enumerate(reversed(self.started), 1):
                if rank not in self.wires and process.poll() is not None:
                    self.end(1, f"rank {rank} on this machine stopped before it was met")
            if time.monotonic() > until:
                gone = ", ".join(str(rank) for rank in range(1, self.ranks) if rank not in self.wires)
                where = "{}:{}".format(*self._listening.getsockname()[:2])
                self.end(2, f"rank {gone} did not come within {PATIENCE:.0f} s: can its machine reach {where}?")
            with suppress(TimeoutError):
                connection, _ = self._listening.accept()
                self._welcome(Wire(connection))
        self._listening.close()

    def _welcome(self, wire: Wire) -> None:
        """Take a rank in; whatever else connects is let go."""
        try:
            hello = wire.receive()
            rank, ours = hello["rank"], secrets.compare_digest(hello["secret"], self.secret)
        except (Lost, KeyError, TypeError):
            return wire.close()
        if not ours or rank in self.wires or not 0 < rank < self.ranks:
            return wire.close()
        self.hosts[rank] = str(hello.get("host"))[:100]
        version, ranks = hello.get("version"), hello.get("ranks")
        if (version, ranks) != (__version__, self.ranks):
            wire.send({"end": 2})
            here = f"rank 0 {__version__} of {self.ranks} ranks"
            self.end(2, f"{self.name(rank)} runs mlx_dgemma {version} of {ranks} ranks, {here}")
        beat(wire)
        threading.Thread(target=self._watch, args=(rank, wire), name=f"rank {rank}", daemon=True).start()
        with self._changed:
            self.wires[rank] = wire
            self._changed.notify_all()

    def _watch(self, rank: int, wire: Wire) -> None:
        """Read what a rank says. Where it is lost, or fails alone, all end."""
        try:
            while True:
                message = wire.receive()
                call = message["call"]
                with self._changed:
                    self.answers.setdefault(call, {})[rank] = message
                    self._changed.notify_all()
                    if "error" in message:
                        # The same call fails here, too, or somebody waits for the answer; or this rank is alone.
                        self._changed.wait_for(lambda call=call: call in self.failed, AGREE)
                        alone = call not in self.failed
                if "error" in message and alone:
                    self.end(2 if message["mistake"] else 1, f"{self.name(rank)}: {message['error']}")
        except Lost as lost:
            if not self.over:
                self.end(1, f"{self.name(rank)} {lost}")

    def send(self, message: dict[str, Any] | Callable[[int], dict[str, Any]]) -> int:
        """Send one more call to every rank -> its number. `message`: of all, or of each."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.wires) == self.ranks - 1)
        self.number += 1
        for rank, wire in self.wires.items():
            content = message(rank) if callable(message) else message
            try:
                wire.send(content | {"call": self.number})
            except Lost as lost:
                self.end(1, f"{self.name(rank)} {lost}")
        return self.number

    def answers_to(self, call: int) -> dict[int, dict]:
        """Returns the answers of all ranks to a call that asks for one, by rank. Mistake where it failed in one."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.answers.get(call, {})) == self.ranks - 1)
            answers = self.answers.pop(call)
            for rank, answer in sorted(answers.items()):
                if "error" in answer:
                    self.failed.add(call)
                    self._changed.notify_all()
                    kind = Mistake if answer["mistake"] else RuntimeError
                    raise kind(f"{self.name(rank)}: {answer['error']}")
        return answers

    @contextmanager
    def together(self, message: dict[str, Any]) -> Iterator[None]:
        """Has the others do what this rank does in the block. What fails here has to fail there."""
        with undisturbed():
            call = self.send(message)
            try:
                yield
            except Exception as error:
                with self._changed:
                    self.failed.add(call)
                    self._changed.notify_all()
                    if not self._changed.wait_for(lambda: len(self.answers.get(call, {})) == self.ranks - 1, AGREE):
                        self.end(1, f"rank 0 failed alone: {error!r}")
                    self.answers.pop(call)
                raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """Holds signals back until the block is over: between two sums of a pass the others would wait for this rank."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
