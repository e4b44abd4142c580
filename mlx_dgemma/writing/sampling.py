"""The rules of one denoising step: temperature, accept, renoise, stop. Pure NumPy; nothing here knows a model.

The names and numbers are those of generation_config.json; the reference is transformers'
`generation_diffusion_gemma.py` (EntropyBoundSampler, LinearTemperatureScheduleLogitsProcessor,
StableAndConfidentStoppingCriteria). It is the default; other samplers and stop rules have names and are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import Mistake, need, need_number, need_whole

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a canvas is denoised. The defaults are the published ones; a checkpoint's file overrides them."""

    max_denoising_steps: int = 48  # passes a block takes at most
    entropy_bound: float = 0.1  # nats of joint uncertainty that one step may accept
    t_min: float = 0.4  # temperature that the schedule would reach at 0 steps left
    t_max: float = 0.8  # temperature of the first step
    stability_threshold: int = 1  # earlier steps whose argmax must equal this one's
    # The reference's name for a mean entropy, nats: below it a block may end. The sampler "confidence-threshold" does
    # not read it: see sampler_threshold.
    confidence_threshold: float = 0.005
    canvas_length: int | str | None = None  # tokens of a canvas; None: the checkpoint's; "auto": by what is left
    sampler: str = "entropy-bound"  # which positions a step accepts: one of SAMPLERS
    sampler_threshold: float = 0.9  # of the sampler "confidence-threshold": probability from which a token is accepted
    stop: str = "settled"  # when a block may end: one of STOPS
    entropy_threshold: float = 0.05  # of the stop rule "entropy": mean entropy, nats a position, below which it ends

    def __post_init__(self) -> None:
        for name, known in (("sampler", SAMPLERS), ("stop", STOPS)):
            need(getattr(self, name) in known, f"{name} to be one of {', '.join(known)}", f"{getattr(self, name)!r}")
        need_whole("max_denoising_steps", self.max_denoising_steps, 1)
        need_whole("stability_threshold", self.stability_threshold, 0)
        for name in ("entropy_bound", "confidence_threshold", "entropy_threshold"):
            need_number(name, getattr(self, name), 0, above=True)
        need_number("sampler_threshold", self.sampler_threshold, 0, 1)
        numbers = all(isinstance(t, int | float) for t in (self.t_min, self.t_max))
        ordered = numbers and 0 < self.t_min <= self.t_max < float("inf")
        need(ordered, "0 < t_min <= t_max", f"{self.t_min!r} and {self.t_max!r}")
        width = self.canvas_length
        whole = isinstance(width, int) and not isinstance(width, bool) and width >= 1
        need(whole or width in (None, "auto"), 'canvas_length >= 1, or "auto"', f"{width!r}")


def temperature(sampling: Sampling, step: int) -> float:
    """The temperature of pass `step`, counted from 0. It falls from `t_max` in a line that would meet `t_min` after the
    last pass."""
    left = sampling.max_denoising_steps - step
    return sampling.t_min + (sampling.t_max - sampling.t_min) * left / sampling.max_denoising_steps


def renoise(sample: Array, accepted: Array, noise: Array) -> Array:
    """[L] int32, the next canvas: accepted positions as drawn, every other one afresh from the noise."""
    return np.where(accepted, sample, noise).astype(np.int32)


# A sampler decides which positions a step accepts:
# (entropy [L] nats, confidence [L] of the token drawn, accepted [L] by the step before, step from 0, sampling)
# -> accepted [L] bool.
Sampler = Callable[[Array, Array, Array, int, Sampling], Array]


def accept(entropy: Array, bound: float) -> Array:
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


def entropy_bound(entropy: Array, confidence: Array, accepted: Array, step: int, sampling: Sampling) -> Array:
    """The reference's rule."""
    return accept(entropy, sampling.entropy_bound)


def confidence_threshold(entropy: Array, confidence: Array, accepted: Array, step: int, sampling: Sampling) -> Array:
    """mlx-vlm's rule, with `sampler_threshold`: an accepted position stays so, and each step accepts at least one more,
    the surest."""
    after = accepted | (confidence >= sampling.sampler_threshold)
    if not after.all() and np.array_equal(after, accepted):
        after[np.where(accepted, -np.inf, confidence).argmax()] = True
    return after


def scheduled(positions: Callable[[float], float]) -> Sampler:
    """A set number a step, the most confident first (Chang et al., arXiv 2202.04200, who keep what was accepted; here
    every step decides anew). `positions`: share of the steps -> share of the positions."""

    def sampler(entropy: Array, confidence: Array, accepted: Array, step: int, sampling: Sampling) -> Array:
        share = positions((step + 1) / sampling.max_denoising_steps)
        after = np.zeros(len(confidence), dtype=bool)
        after[np.argsort(-confidence, kind="stable")[: int(np.ceil(share * len(confidence) - 1e-9))]] = True
        return after

    return sampler


SAMPLERS: dict[str, Sampler] = {
    "entropy-bound": entropy_bound,
    "confidence-threshold": confidence_threshold,
    "scheduled": scheduled(lambda share: share),
    "scheduled-cosine": scheduled(lambda share: 1 - np.cos(np.pi / 2 * share)),
    "scheduled-quadratic": scheduled(lambda share: share**2),
}


class Settled:
    """The reference's stop rule, for one block: the argmax did not change for `stability_threshold` steps, and is
    confident. Only free positions count; nothing is open where all of a canvas is given."""

    def __init__(self, sampling: Sampling, stop_ids: Sequence[int] = ()):
        self.sampling, self.stop_ids = sampling, stop_ids
        self.drafts: list[Array] = []  # of the steps so far

    def __call__(self, draft: Array, entropy: Array, free: Array) -> bool:
        """True if the block is done. Called once a step, with `entropy` [L] nats after temperature."""
        positions, needed = self.content(draft, entropy, np.flatnonzero(free)), self.sampling.stability_threshold
        recent = self.drafts[-needed:] if needed else []
        stable = len(recent) == needed and all(np.array_equal(draft[positions], d[positions]) for d in recent)
        self.drafts.append(draft)
        return bool(stable and mean_entropy(entropy[positions]) < np.float32(self.sampling.confidence_threshold))

    def content(self, draft: Array, entropy: Array, free: Array) -> Array:
        """The positions that have to settle, among the `free` ones."""
        return free


class SettledContent(Settled):
    """Only positions up to the first confident stop token have to settle: nobody reads what flickers behind it."""

    def content(self, draft: Array, entropy: Array, free: Array) -> Array:
        sure = np.isin(draft[free], self.stop_ids) & (entropy[free] < self.sampling.entropy_bound)
        return free[: int(sure.argmax()) + 1] if sure.any() else free


class LowEntropy(Settled):
    """Low entropy alone, whatever the step before predicted."""

    def __call__(self, draft: Array, entropy: Array, free: Array) -> bool:
        return bool(mean_entropy(entropy[free]) < np.float32(self.sampling.entropy_threshold))


def mean_entropy(entropy: Array) -> np.float32:
    return entropy.mean(dtype=np.float32) if len(entropy) else np.float32(0)


STOPS: dict[str, type[Settled]] = {"settled": Settled, "content": SettledContent, "entropy": LowEntropy}

PRESETS: dict[str, dict[str, float | str]] = {
    "fast": {"max_denoising_steps": 8, "stop": "content"},
    "chat": {"max_denoising_steps": 14, "stop": "content"},
    "reference": {"max_denoising_steps": 48, "entropy_bound": 0.1, "t_min": 0.4, "t_max": 0.8},
    "quality": {"max_denoising_steps": 96, "entropy_bound": 0.02, "t_min": 0.5, "t_max": 1.0},
}


# Entries of generation_config.json that change nothing that is computed here.
_ELSEWHERE = {
    "max_new_tokens", "max_length", "return_dict_in_generate", "cache_implementation", "cache_config",
    "disable_compile", "bos_token_id", "pad_token_id", "eos_token_id", "_commit_hash", "_from_model_config",
    "transformers_version",
}  # fmt: skip
_OPTIONS = {"max_denoising_steps", "t_min", "t_max", "stability_threshold", "confidence_threshold"}
_SAMPLER = "EntropyBoundSamplerConfig"


def parse_sampling(generation: Mapping[str, Any] | None) -> Sampling:
    """Read generation_config.json. Options left out or null take the published defaults, as in transformers; an unknown
    one is a Mistake."""
    generation = generation or {}
    unknown = set(generation) - _ELSEWHERE - _OPTIONS - {"sampler_config"}
    if unknown:
        name = sorted(unknown)[0]
        raise Mistake(f"generation_config.json: {name} = {generation[name]!r} is not a rule we know; remove it")
    values = {name: generation[name] for name in _OPTIONS if generation.get(name) is not None}
    sampler = generation.get("sampler_config")
    if sampler is not None:
        name = sampler.get("_cls_name") if isinstance(sampler, Mapping) else sampler
        if name != _SAMPLER or set(sampler) != {"_cls_name", "entropy_bound"}:
            raise Mistake(
                f"generation_config.json: sampler_config {sampler!r} is not supported, "
                f"only {_SAMPLER} with an entropy_bound"
            )
        values["entropy_bound"] = sampler["entropy_bound"]
    try:
        return Sampling(**values)
    except ValueError as error:
        raise Mistake(f"generation_config.json: {error}") from None
