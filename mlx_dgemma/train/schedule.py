"""The learning rate of each step: a warm-up, then what `lr_schedule` names. The words are mlx-lm's."""

import math
from collections.abc import Callable

from ..errors import Mistake, need

WARMUP = 25  # steps, as NeMo's
Rate = Callable[[int], float]  # of a step, from 0


def _cosine(start: float, steps: float, end: float = 0.0) -> Rate:
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def _linear(start: float, end: float, steps: float) -> Rate:
    return lambda step: start + (end - start) * min(1.0, step / steps)


KINDS: dict[str, Callable[..., Rate]] = {
    "cosine_decay": _cosine,
    "linear_schedule": _linear,
    "constant": lambda rate: lambda step: rate,
}


def schedule(given: dict, learning_rate: float, iters: int) -> Rate:
    """Without `given`: a cosine from the learning rate to a tenth of it, as Google's and NeMo's."""
    warmup = given.get("warmup", 0 if given else min(WARMUP, iters // 4))
    start = given.get("warmup_init", 0.0)
    need(type(warmup) is int and warmup >= 0, "lr_schedule: warmup >= 0 steps", f"{warmup!r}")
    need(isinstance(start, int | float), "lr_schedule: warmup_init to be a rate", f"{start!r}")
    name = given.get("name", "cosine_decay")
    arguments = given.get("arguments") or [learning_rate, max(1, iters - warmup), learning_rate / 10]
    try:
        rate = KINDS[name](*map(float, arguments))
        rate(1)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise Mistake(f"lr_schedule: need one of {', '.join(KINDS)} with its numbers, got {name} {arguments}") from None
    return lambda step: start + (rate(0) - start) * (step + 1) / (warmup + 1) if step < warmup else rate(step - warmup)
