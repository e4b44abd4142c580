"""When a text has to be there."""

from __future__ import annotations

import time


class Clock:
    """Of a text that must be there after `seconds`, counted from now; None: whenever it is."""

    def __init__(self, seconds: float | None):
        self.seconds, self.began, self.longest = seconds, time.perf_counter(), 0.0
        self.last = self.began

    def over(self) -> bool:
        """Told after each pass: would another one, as long as the longest but the first, end too late?"""
        if self.seconds is None:
            return False
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last) if self.last > self.began else 0.0, now
        return now + self.longest - self.began > self.seconds
