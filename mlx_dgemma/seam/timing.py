"""Timing that the instruments of all backends share."""

import statistics
import time
from collections.abc import Callable


def median_seconds(compute: Callable[[], object], wait: Callable[[], None], repeat: int) -> float:
    """Median of `repeat` runs behind a warm-up. `wait` returns when the device has finished."""
    seconds = []
    for _ in range(repeat + 1):
        wait()
        start = time.perf_counter()
        compute()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def product_rate(seconds_of: Callable[[int], float], long: float) -> tuple[float, int]:
    """Measure FLOPs a second of square matrices, whose size doubles until a product takes `long` seconds -> the best
    rate, and the last size. `seconds_of` times the product of matrices of a size."""
    size, best, seconds = 128, 0.0, 0.0
    while seconds < long and size < 16384:
        size *= 2
        seconds = seconds_of(size)
        best = max(best, 2 * size**3 / seconds)
    return best, size
