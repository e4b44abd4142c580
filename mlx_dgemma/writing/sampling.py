"""The rules of one denoising step: temperature, accept, renoise, settled. Pure NumPy; nothing here knows a model.

The names and numbers are those of generation_config.json; the reference is transformers'
`generation_diffusion_gemma.py` (EntropyBoundSampler, LinearTemperatureScheduleLogitsProcessor,
StableAndConfidentStoppingCriteria). It is the default; other samplers and stop rules have names and are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import Mistake, need


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
    sampler: str = "entropy-bound"  # which positions a step accepts: one of SAMPLERS
    schedule: str = "linear"  # of the sampler "scheduled": one of SCHEDULES
    confident: float = 0.9  # of the sampler "confidence-threshold": the probability from which a token is accepted
    stop: str = "settled"  # when a block may end: one of STOPS
    entropy_threshold: float = 0.05  # of the stop rule "entropy": mean entropy, nats a position, below which it ends
    deadline: float | None = None  # seconds after which a text ends as it stands; None: it takes what it takes
    # Of writing left to right; denoising does not use them.
    temp: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # draw from the likeliest tokens that have this much of the probability
    top_k: int = 0  # draw from that many of the likeliest; 0: from all
    min_p: float = 0.0  # draw from those that are at least so likely, relative to the likeliest

    def __post_init__(self) -> None:
        self._check_names()
        self._check_left_to_right()
        whole = isinstance(self.max_denoising_steps, int) and not isinstance(self.max_denoising_steps, bool)
        need(whole and self.max_denoising_steps >= 1, "max_denoising_steps >= 1", f"{self.max_denoising_steps!r}")
        for name in ("entropy_bound", "confidence_threshold", "entropy_threshold"):
            value = getattr(self, name)
            need(isinstance(value, int | float) and 0 < value < float("inf"), f"{name} > 0", f"{value!r}")
        numbers = all(isinstance(t, int | float) for t in (self.t_min, self.t_max))
        need(numbers and 0 < self.t_min <= self.t_max, "0 < t_min <= t_max", f"{self.t_min!r} and {self.t_max!r}")
        width = self.canvas_length
        fits = width in (None, "auto") or (isinstance(width, int) and not isinstance(width, bool) and width >= 1)
        need(fits, 'canvas_length >= 1, or "auto"', f"{width!r}")
        whole = isinstance(self.stability_threshold, int)
        need(whole and self.stability_threshold >= 0, "stability_threshold >= 0", f"{self.stability_threshold!r}")
        late = self.deadline
        need(late is None or (isinstance(late, int | float) and late > 0), "deadline > 0", f"{late!r}")

    def _check_names(self) -> None:
        for name, known in (("sampler", SAMPLERS), ("schedule", SCHEDULES), ("stop", STOPS)):
            need(getattr(self, name) in known, f"{name} to be one of {', '.join(known)}", f"{getattr(self, name)!r}")

    def _check_left_to_right(self) -> None:
        for name, least, most in (("temp", 0, float("inf")), ("min_p", 0, 1), ("top_p", 0, 1), ("confident", 0, 1)):
            value = getattr(self, name)
            inside = isinstance(value, int | float) and least <= value <= most and (value > 0 or name != "top_p")
            at_most = "" if most > 1 else f" and <= {most}"
            need(inside, f"{name} {'>' if name == 'top_p' else '>='} {least}{at_most}", f"{value!r}")
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool)
        need(whole and self.top_k >= 0, "top_k >= 0", f"{self.top_k!r}")


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


def bound(entropy: np.ndarray, confidence: np.ndarray, before: np.ndarray, step: int, sampling: Sampling) -> np.ndarray:
    """The reference's rule. All samplers look alike: of each position its entropy, the probability of the token drawn,
    and whether the step before accepted it; the step, from 0; -> [L] bool."""
    return accept(entropy, sampling.entropy_bound)


def confident(
    entropy: np.ndarray, confidence: np.ndarray, before: np.ndarray, step: int, sampling: Sampling
) -> np.ndarray:
    """As mlx-vlm has it: what was accepted stays so, and at least one position more is, the surest."""
    accepted = before | (confidence >= sampling.confident)
    if not accepted.all() and np.array_equal(accepted, before):
        accepted[np.where(before, -np.inf, confidence).argmax()] = True
    return accepted


SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the steps -> share of the positions; few at first
    "linear": lambda share: share,
    "cosine": lambda share: 1 - np.cos(np.pi / 2 * share),
    "quadratic": lambda share: share**2,
}


def scheduled(
    entropy: np.ndarray, confidence: np.ndarray, before: np.ndarray, step: int, sampling: Sampling
) -> np.ndarray:
    """Confidence first, a set number a step (Chang et al., arXiv 2202.04200, who keep what was accepted; here it is
    decided anew)."""
    share = SCHEDULES[sampling.schedule]((step + 1) / sampling.max_denoising_steps)
    accepted = np.zeros(len(confidence), dtype=bool)
    accepted[np.argsort(-confidence, kind="stable")[: int(np.ceil(share * len(confidence) - 1e-9))]] = True
    return accepted


Sampler = Callable[[np.ndarray, np.ndarray, np.ndarray, int, Sampling], np.ndarray]
SAMPLERS: dict[str, Sampler] = {"entropy-bound": bound, "confidence-threshold": confident, "scheduled": scheduled}


def renoise(sample: np.ndarray, accepted: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """[L] int32, the next canvas: accepted positions as drawn, every other one afresh from the whole vocabulary."""
    return np.where(accepted, sample, noise).astype(np.int32)


@dataclass
class Settled:
    """The stop rule of one block: the argmax did not change for `stability_threshold` steps, and is confident."""

    sampling: Sampling
    stop_ids: Sequence[int] = ()
    history: list[np.ndarray] = field(default_factory=list)

    def __call__(self, argmax: np.ndarray, entropy: np.ndarray) -> bool:
        """Tell it each step once. `entropy` is of the processed logits: after temperature."""
        end = self.content(argmax, entropy)
        needed = self.sampling.stability_threshold
        recent = self.history[len(self.history) - needed :] if needed else []
        stable = len(recent) == needed and all(np.array_equal(argmax[:end], earlier[:end]) for earlier in recent)
        self.history.append(argmax)
        return stable and bool(self.mean(entropy[:end]) < np.float32(self.sampling.confidence_threshold))

    @staticmethod
    def mean(entropy: np.ndarray) -> np.float32:
        """Nothing is open where all of a canvas is given."""
        return entropy.mean(dtype=np.float32) if len(entropy) else np.float32(0)

    def content(self, argmax: np.ndarray, entropy: np.ndarray) -> int:
        """How many positions, from the first on, have to settle."""
        return len(argmax)


class SettledContent(Settled):
    """Only up to the first confident stop token: what flickers behind it is not said."""

    def content(self, argmax: np.ndarray, entropy: np.ndarray) -> int:
        sure = np.isin(argmax, self.stop_ids) & (entropy < self.sampling.entropy_bound)
        return int(sure.argmax()) + 1 if sure.any() else len(argmax)


class Sure(Settled):
    """Low entropy alone, whatever the step before said."""

    def __call__(self, argmax: np.ndarray, entropy: np.ndarray) -> bool:
        return bool(self.mean(entropy) < np.float32(self.sampling.entropy_threshold))


STOPS: dict[str, type[Settled]] = {"settled": Settled, "content": SettledContent, "entropy": Sure}

PRESETS: dict[str, dict[str, float | str]] = {
    "fast": {"max_denoising_steps": 8, "stop": "content"},
    "chat": {"max_denoising_steps": 14, "stop": "content"},
    "reference": {"max_denoising_steps": 48, "entropy_bound": 0.1, "t_min": 0.4, "t_max": 0.8},
    "quality": {"max_denoising_steps": 96, "entropy_bound": 0.02, "t_min": 0.5, "t_max": 1.0},
}


def preset(sampling: Sampling, name: str) -> Sampling:
    """`sampling` with what the preset changes. Mistake where there is none of that name."""
    need(name in PRESETS, f"preset to be one of {', '.join(PRESETS)}", f"{name!r}")
    return replace(sampling, **PRESETS[name])


# Of generation_config.json, what does not change what is computed here: our own options and files decide these.
_ELSEWHERE = {
    "max_new_tokens", "max_length", "return_dict_in_generate", "cache_implementation", "cache_config",
    "disable_compile", "bos_token_id", "pad_token_id", "eos_token_id", "_commit_hash", "_from_model_config",
    "transformers_version",
}  # fmt: skip
_OPTIONS = {"max_denoising_steps", "t_min", "t_max", "stability_threshold", "confidence_threshold"}
_SAMPLER = "EntropyBoundSamplerConfig"


def parse_sampling(generation: Mapping[str, Any] | None) -> Sampling:
    """Options left out or null take the published defaults, as in transformers. An unknown one is a ValueError."""
    generation = generation or {}
    unknown = set(generation) - _ELSEWHERE - _OPTIONS - {"sampler_config"}
    if unknown:
        name = sorted(unknown)[0]
        raise Mistake(f"generation_config.json: {name} = {generation[name]!r} is not a rule we know; remove it")
    options = {name: generation[name] for name in _OPTIONS if generation.get(name) is not None}
    sampler = generation.get("sampler_config")
    if sampler is not None:
        name = sampler.get("_cls_name") if isinstance(sampler, Mapping) else sampler
        if name != _SAMPLER or set(sampler) != {"_cls_name", "entropy_bound"}:
            raise Mistake(
                f"generation_config.json: sampler_config {sampler!r} is not supported, "
                f"only {_SAMPLER} with an entropy_bound"
            )
        options["entropy_bound"] = sampler["entropy_bound"]
    try:
        return Sampling(**options)
    except ValueError as error:
        raise Mistake(f"generation_config.json: {error}") from None
