"""The rules of a step, against the reference's words and, with torch, against its code."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_dgemma.seam.model import Draw
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.sampling import PRESETS, SAMPLERS, STOPS, Sampling, Settled, accept, renoise, temperature

FREE = np.ones(4, bool)


def test_temperature_is_linear_in_the_steps_left():
    sampling = Sampling(max_denoising_steps=4, t_min=0.4, t_max=0.8)
    assert [temperature(sampling, step) for step in range(4)] == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_accept_counts_what_comes_before_and_not_the_position_itself():
    # Ascending 0, .05, .06, .5: before them 0, 0, .05, .11.
    assert accept(np.array([0.5, 0.06, 0, 0.05], np.float32), 0.1).tolist() == [False, True, True, True]
    assert accept(np.array([5, 7], np.float32), 0.1).tolist() == [True, False]  # the surest one always


def test_renoise_leaves_the_accepted():
    found = renoise(np.array([1, 2, 3]), np.array([True, False, True]), np.array([7, 8, 9]))
    assert found.tolist() == [1, 8, 3] and found.dtype == np.int32


@pytest.mark.parametrize(("threshold", "needed"), [(0, 1), (1, 2), (3, 4)])
def test_settled_needs_a_stable_argmax(threshold, needed):
    settled = Settled(Sampling(stability_threshold=threshold))
    sure, argmax = np.zeros(4, np.float32), np.arange(4)
    assert [settled(argmax, sure, FREE) for _ in range(needed)] == [False] * (needed - 1) + [True]
    assert settled(argmax + 1, sure, FREE) is (threshold == 0)


def test_settled_needs_confidence():
    settled, argmax = Settled(Sampling()), np.arange(4)
    settled(argmax, np.zeros(4, np.float32), FREE)
    assert not settled(argmax, np.full(4, 0.005, np.float32), FREE)
    assert settled(argmax, np.full(4, 0.0049, np.float32), FREE)


def test_only_free_positions_have_to_settle():
    settled, unsure = Settled(Sampling()), np.array([9, 0, 0, 0], np.float32)
    settled(np.array([1, 2, 3, 4]), unsure, FREE)
    assert not settled(np.array([5, 2, 3, 4]), unsure, FREE)
    held = np.array([False, True, True, True])
    assert settled(np.array([6, 2, 3, 4]), unsure, held)  # what was free before counts as long as it is free
    assert not settled(np.array([6, 2, 3, 5]), unsure, held)
    nothing = np.zeros(4, bool)
    assert settled(np.array([7, 7, 7, 7]), unsure, nothing)  # of a canvas that is given nothing is open
    assert not Settled(Sampling())(np.arange(4), unsure, nothing)  # but one pass has no pass before it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.9, "t_max": 0.8}, "need 0 < t_min <= t_max, got 0.9 and 0.8"),
        ({"t_min": 0}, "0 < t_min"),
        ({"max_denoising_steps": 0}, "need max_denoising_steps >= 1, got 0"),
        ({"max_denoising_steps": 2.5}, "max_denoising_steps"),
        ({"entropy_bound": -1}, "need entropy_bound > 0, got -1"),
        ({"confidence_threshold": "low"}, "confidence_threshold"),
        ({"stability_threshold": -1}, "stability_threshold"),
        (
            {"sampler": "topk"},
            f"sampler to be one of {', '.join(SAMPLERS)}, got 'topk'",
        ),
        ({"sampler_threshold": 1.5}, "need sampler_threshold >= 0 and <= 1, got 1.5"),
        ({"canvas_length": 0}, 'need canvas_length >= 1, or "auto", got 0'),
        ({"stop": "never"}, "stop to be one of settled, content, entropy"),
    ],
)
def test_sampling_checks_itself(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temp": -1}, "temp"),
        ({"top_p": 0}, "need top_p > 0 and <= 1, got 0"),
        ({"min_p": 1.5}, "need min_p >= 0 and <= 1, got 1.5"),
        ({"top_k": -1}, "need top_k >= 0, got -1"),
    ],
)
def test_a_draw_checks_itself(options, message):
    with pytest.raises(ValueError, match=message):
        Draw(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0}, "need deadline > 0, got 0"),
        ({"mode": "fast"}, "one of diffusion, ar, auto, got 'fast'"),
        ({"mode": "ar", "verify": True}, "verify"),
    ],
)
def test_an_ask_checks_itself(options, message):
    with pytest.raises(ValueError, match=message):
        Ask(**options)


LIKELY = np.array([0.95, 0.2, 0.91, 0.5], np.float32)
NONE = np.zeros(4, bool)


def sampled(name: str, before=NONE, step: int = 0, confidence=LIKELY, **options) -> list[bool]:
    return SAMPLERS[name](
        1 - confidence, confidence, np.array(before), step, Sampling(sampler=name, **options)
    ).tolist()


def test_the_confident_are_accepted_and_stay():
    assert sampled("confidence-threshold") == [True, False, True, False]
    assert sampled("confidence-threshold", before=[False, True, False, False]) == [True, True, True, False]
    # Nobody new is confident: the surest of the others.
    assert sampled("confidence-threshold", before=[True, False, True, False]) == [True, False, True, True]
    assert sampled("confidence-threshold", sampler_threshold=0.4) == [True, False, True, True]
    assert sampled("confidence-threshold", before=[True] * 4) == [True] * 4


@pytest.mark.parametrize(
    ("sampler", "counts"),
    [("scheduled", [1, 2, 3, 4]), ("scheduled-cosine", [1, 2, 3, 4]), ("scheduled-quadratic", [1, 1, 3, 4])],
)
def test_a_schedule_says_how_many_of_the_surest(sampler, counts):
    masks = [sampled(sampler, step=step, max_denoising_steps=4) for step in range(4)]
    assert [sum(mask) for mask in masks] == counts and masks[0] == [True, False, False, False]
    many = np.full(1000, 0.5, np.float32)
    shares = [sum(sampled(sampler, step=step, confidence=many, max_denoising_steps=100)) for step in range(100)]
    assert shares[0] <= 10 and shares[-1] == 1000 and shares == sorted(shares)


def test_the_reference_is_the_default():
    assert sampled("entropy-bound", confidence=np.array([1, 1, 0, 0], np.float32)) == [True, True, True, False]
    assert (Sampling().sampler, Sampling().stop) == ("entropy-bound", "settled")
    assert Sampling(**PRESETS["reference"]) == Sampling()


def test_content_settles_up_to_the_first_confident_stop_token():
    stop, draft, sure = STOPS["content"](Sampling(), (9,)), np.array([3, 4, 9, 5]), np.zeros(4, np.float32)
    noisy = np.array([0, 0, 0, 3], np.float32)
    assert not stop(draft, noisy, FREE) and stop(np.array([3, 4, 9, 6]), noisy, FREE)  # what is behind it may flicker
    assert not stop(np.array([2, 4, 9, 6]), noisy, FREE)
    stop = STOPS["content"](Sampling(), (9,))
    unsure = np.array([0, 0, 0.2, 0], np.float32)  # the stop token itself: everything has to settle
    assert [stop(draft, entropy, FREE) for entropy in (unsure, unsure, sure, sure)] == [False, False, True, True]


def test_entropy_stops_without_stability():
    stop = STOPS["entropy"](Sampling())
    drafts = [(np.arange(4) + i, np.full(4, h, np.float32)) for i, h in enumerate((0.06, 0.05, 0.04))]
    assert [stop(*draft, FREE) for draft in drafts] == [False, False, True]


def test_presets():
    steps = {name: Sampling(**options).max_denoising_steps for name, options in PRESETS.items()}
    assert 8 <= steps["fast"] <= 12 <= steps["chat"] <= 16 and steps["reference"] == 48 and steps["quality"] == 96
    quality = Sampling(**PRESETS["quality"])
    assert (quality.entropy_bound, quality.t_max, quality.t_min) == (0.02, 1.0, 0.5)


def test_against_the_reference():
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    theirs = pytest.importorskip("transformers.models.diffusion_gemma.generation_diffusion_gemma")
    rng = np.random.default_rng(0)
    for scale in (0.01, 0.3, 4):
        logits = (rng.standard_normal((40, 30)) / scale).astype(np.float32)
        distribution = torch.distributions.Categorical(logits=torch.tensor(logits))
        entropy = distribution.entropy().numpy()
        sampler = theirs.EntropyBoundSampler(theirs.EntropyBoundSamplerConfig(0.1), 40, 30, 48)
        zeros = torch.zeros(1, 40, dtype=torch.long)
        sampler.accept_canvas(zeros, zeros, torch.tensor(logits)[None], 5)
        assert np.array_equal(accept(entropy, 0.1), sampler.accepted_token_mask[0].numpy())
        stop, settled = theirs.StableAndConfidentStoppingCriteria(1, 0.005), Settled(Sampling())
        for argmax in (logits.argmax(-1), logits.argmax(-1), np.arange(40)):
            assert settled(argmax, entropy, np.ones(40, bool)) == bool(
                stop(torch.tensor(argmax)[None], torch.tensor(logits)[None])[0]
            )
