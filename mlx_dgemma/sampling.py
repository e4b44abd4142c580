"""The rules of one denoising step: temperature, accept, renoise, settled. Pure NumPy; nothing here knows a model.

The names and numbers are those of generation_config.json; the reference is transformers'
`generation_diffusion_gemma.py` (EntropyBoundSampler, LinearTemperatureScheduleLogitsProcessor,
StableAndConfidentStoppingCriteria).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .mistake import Mistake


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """All options of the algorithm. The defaults are the published ones; a checkpoint's file overrides them."""

    max_denoising_steps: int = 48  # passes a block takes at most
    entropy_bound: float = 0.1  # nats of joint uncertainty that one step may accept
    t_min: float = 0.4  # temperature that the schedule would reach at 0 steps left
    t_max: float = 0.8  # temperature of the first step
    stability_threshold: int = 1  # earlier steps whose argmax must equal this one's
    confidence_threshold: float = 0.005  # mean entropy, nats a position, below which a block may end
    canvas_length: int | str | None = None  # tokens of a canvas; None: the checkpoint's; "auto": by what is left
    temp: float = 0.0  # of writing left to right; 0 takes the likeliest token. Denoising does not use it

    def __post_init__(self) -> None:
        def need(holds: bool, what: str, given: str) -> None:
            if not holds:
                raise Mistake(f"need {what}, got {given}")

        whole = isinstance(self.max_denoising_steps, int) and not isinstance(self.max_denoising_steps, bool)
        need(whole and self.max_denoising_steps >= 1, "max_denoising_steps >= 1", f"{self.max_denoising_steps!r}")
        for name in ("entropy_bound", "confidence_threshold"):
            value = getattr(self, name)
            need(isinstance(value, int | float) and 0 < value < float("inf"), f"{name} > 0", f"{value!r}")
        numbers = all(isinstance(t, int | float) for t in (self.t_min, self.t_max))
        need(numbers and 0 < self.t_min <= self.t_max, "0 < t_min <= t_max", f"{self.t_min!r} and {self.t_max!r}")
        width = self.canvas_length
        fits = width in (None, "auto") or (isinstance(width, int) and not isinstance(width, bool) and width >= 1)
        need(fits, 'canvas_length >= 1, or "auto"', f"{width!r}")
        whole = isinstance(self.stability_threshold, int)
        need(whole and self.stability_threshold >= 0, "stability_threshold >= 0", f"{self.stability_threshold!r}")
        need(isinstance(self.temp, int | float) and self.temp >= 0, "temp >= 0", f"{self.temp!r}")


def temperature(sampling: Sampling, step: int) -> float:
    """Of the step-th pass, counted from 0: falls from `t_max` in a line that would meet `t_min` after the last pass."""
    left = sampling.max_denoising_steps - step
    return sampling.t_min + (sampling.t_max - sampling.t_min) * left / sampling.max_denoising_steps


def accept(entropy: np.ndarray, bound: float) -> np.ndarray:
    """[L] bool: the surest positions, as many as are nearly independent of each other.

    In ascending order, positions are taken while the entropy of those before them is at most `bound` nats: the sum
    less its largest term bounds the mutual information of the whole set (Ben-Hamu et al., arXiv 2505.24857).
    """
    order = np.argsort(entropy, kind="stable")
    ascending = entropy[order]
    before = np.cumsum(ascending, dtype=np.float32) - ascending
    accepted = np.zeros(len(entropy), dtype=bool)
    accepted[order] = before <= np.float32(bound)  # the reference compares in float32
    return accepted


def renoise(sample: np.ndarray, accepted: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """[L] int32, the next canvas: accepted positions as drawn, every other one afresh from the whole vocabulary."""
    return np.where(accepted, sample, noise).astype(np.int32)


@dataclass
class Settled:
    """The stop rule of one block: the argmax did not change for `stability_threshold` steps, and is confident."""

    sampling: Sampling
    history: list[np.ndarray] = field(default_factory=list)

    def __call__(self, argmax: np.ndarray, entropy: np.ndarray) -> bool:
        """Tell it each step once. `entropy` is of the processed logits: after temperature."""
        needed = self.sampling.stability_threshold
        recent = self.history[len(self.history) - needed :] if needed else []
        stable = len(recent) == needed and all(np.array_equal(argmax, earlier) for earlier in recent)
        self.history.append(argmax)
        mean = entropy.mean(dtype=np.float32) if len(entropy) else 0  # nothing is open where all of a canvas is given
        return stable and bool(mean < np.float32(self.sampling.confidence_threshold))
