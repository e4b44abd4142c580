"""The rules of a step, against the reference's words and, with torch, against its code."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_dgemma.sampling import Sampling, Settled, accept, renoise, temperature


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
    assert [settled(argmax, sure) for _ in range(needed)] == [False] * (needed - 1) + [True]
    assert settled(argmax + 1, sure) is (threshold == 0)


def test_settled_needs_confidence():
    settled, argmax = Settled(Sampling()), np.arange(4)
    settled(argmax, np.zeros(4, np.float32))
    assert not settled(argmax, np.full(4, 0.005, np.float32))
    assert settled(argmax, np.full(4, 0.0049, np.float32))


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
        ({"temp": -1}, "temp"),
    ],
)
def test_sampling_checks_itself(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


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
            assert settled(argmax, entropy) == bool(stop(torch.tensor(argmax)[None], torch.tensor(logits)[None])[0])
