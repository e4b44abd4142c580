"""The figures of a running server, in Prometheus' text format."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from ..writing.answer import Answer
from ..writing.writing import Step

disable_created_metrics()
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
GAUGES = {  # name -> what it is, and its value
    "rows_running": ("texts that take part in the next pass", lambda engine: engine.rows),
    "requests_running": ("requests that are being answered", lambda engine: len(engine.running)),
    "requests_waiting": ("requests that wait for a place", lambda engine: len(engine.waiting)),
    "prefix_bytes": ("bytes of the snapshots of prompts", lambda engine: engine.prefixes.nbytes),
    "prefix_snapshots": ("snapshots of prompts", lambda engine: len(engine.prefixes.snapshots)),
}


class Metrics:
    def __init__(self, engine: Any):
        """`engine`: the Engine that the figures are of."""
        self.registry = CollectorRegistry()
        common = {"namespace": "mlx_dgemma", "registry": self.registry}
        for name, (about, value) in GAUGES.items():
            Gauge(name, about, **common).set_function(partial(value, engine))
        self.requests = Counter("requests", "requests that were answered", ["endpoint", "status"], **common)
        self.cancelled = Counter("cancelled", "requests whose client left, or that were stopped", **common)
        self.tokens = Counter("tokens", "tokens of prompts and of answers", ["kind"], **common)
        self.cached = Counter("prefix_tokens_hit", "tokens of prompts that had been encoded before", **common)
        self.pass_seconds = Histogram("pass_seconds", "seconds of a pass", buckets=SECONDS, **common)
        self.block_steps = Histogram("block_steps", "passes of a block", buckets=(1, 2, 4, 8, 16, 32, 64), **common)
        self.first_draft = Histogram("first_draft_seconds", "seconds to the first pass", buckets=SECONDS, **common)
        self.first_block = Histogram("first_block_seconds", "seconds to the first text", buckets=SECONDS, **common)

    def passed(self, seconds: float, steps: Iterable[Step]) -> None:
        self.pass_seconds.observe(seconds)
        for step in steps:
            if step.final and len(step.draft) > 1:
                self.block_steps.observe(step.step + 1)

    def answered(self, prompt: int, answers: Sequence[Answer]) -> None:
        """Counts the answers to a prompt of so many tokens."""
        self.tokens.labels("prompt").inc(prompt)
        for answer in answers:
            self.tokens.labels("answer").inc(len(answer.tokens))
            self.first_block.observe(answer.seconds_to_first_block or 0.0)
