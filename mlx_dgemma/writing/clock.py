"""The deadline of a text."""

import time
from collections.abc import Callable


class Clock:
    """A deadline `seconds` from now; None: no deadline. `now` is the model's clock, so that all ranks agree."""

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.perf_counter):
        self.seconds, self.now = seconds, now
        if seconds is not None:
            self.start = self.last = now()
            self.longest = 0.0

    def over(self) -> bool:
        """True if another pass, as slow as the slowest so far (first excluded), would miss the deadline. Called once
        after each pass."""
        if self.seconds is None:
            return False
        now = self.now()
        self.longest = max(self.longest, now - self.last) if self.last > self.start else 0.0
        self.last = now
        return now + self.longest - self.start > self.seconds

    def passed(self) -> bool:
        """True if the deadline has passed."""
        return self.seconds is not None and self.now() - self.start > self.seconds
