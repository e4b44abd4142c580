"""One thread owns the model, its caches and the batch. Requests are tasks that it runs side by side.

A framework's streams and graphs belong to a thread, so whatever computes happens in this one. Between two passes it
takes in new requests, as many as there are places and as their caches have room, and drops those that nobody waits for.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..errors import Mistake
from ..fill.held import Alphabet
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
from ..writing.batch import Batch, InProgress
from ..writing.task import Task
from .languages import Languages, can_hear_tools
from .metrics import Metrics
from .prefixes import Prefixes
from .reply import Reply

log = logging.getLogger("mlx_dgemma.server")


class Busy(Exception):
    """The queue is full. Try again after so many seconds."""

    def __init__(self, seconds: int):
        super().__init__(f"too many requests are waiting: try again in {seconds} s")
        self.seconds = seconds


class Stopping(Exception):
    """The server is being stopped."""


@dataclass(eq=False)
class Job:
    """A request, from when it is taken in."""

    begin: Callable[[float], Task]  # called when it is admitted, with the seconds that it has waited
    reply: Reply
    places: int = 1  # rows that it runs
    tokens: int = 0  # of the caches that it fills
    since: float = field(default_factory=time.monotonic)
    task: Task | None = None
    texts: Sequence[InProgress] = ()
    cancelled: bool = False
    nbytes: int = 0


class Engine:
    """`submit` and `cancel` may be called from any thread, the rest belongs to the thread that `start` starts.

    Attributes:
        model, tokenizer, ask: what `load` returned: the last is how to write where a request says nothing else.
        alphabet: the tokens that may stand in a gap.
        hears_tools: whether the chat template tells the model of tools.
    """

    model: DiffusionModel
    tokenizer: Tokenizer
    ask: Ask
    prefixes: Prefixes
    alphabet: Alphabet
    languages: Languages
    hears_tools: bool

    def __init__(
        self,
        load: Callable[[], tuple[DiffusionModel, Tokenizer, Ask]],
        name: str,
        *,
        places: int = 8,
        waiting: int = 32,
        memory: int | None = None,
        limit: float | None = None,
    ):
        """`name`: of the model, as clients see it; `places`: rows that run at once; `waiting`: requests that may wait
        for one; `memory`: bytes of all caches, None: half of what is free once the model is loaded; `limit`: seconds
        that a request may take, None: any number."""
        self.load, self.name, self.limit = load, name, limit
        self.places, self.most_waiting, self.memory = places, waiting, memory
        self.metrics = Metrics(self)
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self._changed, self._seconds = threading.Condition(), 1.0
        self._closed = self._stopping = False
        self._loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def rows(self) -> int:
        """Texts that take part in the next pass."""
        return len(self.batch.texts)

    def start(self) -> None:
        """Load the model. Raises what went wrong there."""
        self._thread.start()
        while True:
            try:
                return self._loaded.result(timeout=0.1)  # and Ctrl-C is heard
            except TimeoutError:
                if self._loaded.done():
                    raise

    def check(self) -> None:
        """Raises Busy where the queue is full, Stopping where nothing is taken in any more."""
        if self._closed or self._stopping:
            raise Stopping
        if len(self.running) + len(self.waiting) >= self.places + self.most_waiting:
            raise Busy(min(60, math.ceil(self._seconds * len(self.waiting) / self.places)))

    def submit(self, job: Job) -> None:
        """Raises as `check`."""
        with self._changed:
            self.check()
            self.waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drop a job that nobody waits for any more, before the next pass."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """Take in nothing any more."""
        self._closed = True

    def stop(self) -> None:
        """End all requests with Stopping, and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.model, self.tokenizer, self.ask = loaded = self.load()
            self.memory = self.model.free_memory() // 2 if self.memory is None else self.memory
            self.batch, self.prefixes = Batch(self.model, self.places), Prefixes(self.memory // 2)
            self.alphabet, self.languages = Alphabet(*loaded[:2]), Languages(*loaded[:2])
            self.hears_tools = can_hear_tools(self.tokenizer)
        except Exception as error:  # noqa: BLE001, `start` raises it
            return self._loaded.set_exception(error)
        self._loaded.set_result(None)
        while self._next():
            self._pass()
        self.batch.close()

    def _next(self) -> bool:
        """Wait for something to do, and take it in -> False at the end."""
        with self._changed:
            while not (self._stopping or self.running or self.waiting):
                self._changed.wait()
            gone = [job for job in (*self.running, *self.waiting) if self._stopping or job.cancelled]
            self.waiting = deque(job for job in self.waiting if job not in gone)
            stopping = self._stopping
        for job in gone:
            self._end(job, error=Stopping())
        self._keep_texts()
        if not stopping:
            self._admit()
        return not stopping

    def _admit(self) -> None:
        while self.waiting:
            job = self.waiting[0]
            job.nbytes = self.model.cache_bytes(min(job.tokens, self.model.facts.max_position_embeddings)) * job.places
            taken = sum(other.nbytes for other in self.running)
            places = sum(other.places for other in self.running)
            if self.running and (places + job.places > self.places or taken + job.nbytes > self.memory):
                return
            self.prefixes.shrink(max(0, self.memory - taken - job.nbytes))
            with self._changed:
                self.waiting.popleft()
            waited = time.monotonic() - job.since
            job.task = job.begin(waited)
            self.running.append(job)
            self._advance(job)

    def _pass(self) -> None:
        """Run a pass over all texts. One of the requests without texts, in turn, may encode a piece beside it."""
        self._keep_texts()
        start = self.model.now()
        steps, failed = self.batch.step(), self.batch.failed
        seconds = self.model.now() - start
        self.prefixes.pass_seconds = seconds if steps else None
        if steps:
            self.metrics.passed(seconds, steps.values())
        reader = next((job for job in self.running if not job.texts), None)
        for job in list(self.running):
            if job.texts or job is reader:
                error = next((failed[text] for text in job.texts if text in failed), None)
                self._advance(job, {text: steps[text] for text in job.texts if text in steps}, error)
        if reader in self.running and not reader.texts:
            self.running.remove(reader)
            self.running.append(reader)

    def _keep_texts(self) -> None:
        self.batch.keep([text for job in self.running for text in job.texts])

    def _advance(self, job: Job, steps: dict | None = None, error: Exception | None = None) -> None:
        """Let the task of a job go on to what it wants next. Whatever goes wrong in it is its own."""
        try:
            job.texts = job.task.throw(error) if error else job.task.send(steps)
        except StopIteration as end:
            self._seconds += (time.monotonic() - job.since - self._seconds) / 8  # a running mean
            self._end(job, end.value)
        except Exception as wrong:
            if not isinstance(wrong, Mistake):
                log.exception("a request failed")
            self._end(job, error=wrong)

    def _end(self, job: Job, result=None, error: Exception | None = None) -> None:
        if job in self.running:
            self.running.remove(job)
        self._keep_texts()  # so the caches hold what was encoded, for the task to keep
        if job.task:
            job.task.close()
        if job.cancelled:
            self.metrics.cancelled.inc()
        job.reply.end(result, error)
