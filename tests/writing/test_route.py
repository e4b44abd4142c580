"""Denoise or go on left to right: which is chosen, what it costs, and that it is one text."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mlx_dgemma import load
from mlx_dgemma.benchmark.tasks import made
from mlx_dgemma.errors import Mistake
from mlx_dgemma.writing.answer import Answer, prompt_tokens
from mlx_dgemma.writing.route import Outlook, Pace, Router, write
from mlx_dgemma.writing.writing import diffuse

TASKS, PROMPTS = ("sudoku 4x4", "json", "reverse", "addition"), 3


@pytest.fixture(scope="module")
def tiny():
    return load()


def cost(steps, ratio: float) -> tuple[float, int, int]:
    """Passes, tokens at `ratio` a pass, and one where a settled prefix has to be encoded; blocks; tokens told."""
    found = list(steps)
    told = [len(step.canvas) == 1 for step in found]
    prefixes = sum(b and not a and found[i].final for i, (a, b) in enumerate(pairwise(told)))
    return told.count(False) + told.count(True) * ratio + prefixes, found[-1].block + 1, told.count(True)


@pytest.mark.parametrize("task", TASKS)
def test_it_costs_at_most_the_better_mode_and_four_passes_a_block(tiny, chosen, task):
    model, tokenizer, sampling = tiny
    runs = []
    for seed, (prompt, _) in enumerate(made(task, PROMPTS)):
        tokens = prompt_tokens(tokenizer, prompt)
        options = {"max_tokens": 64, "sampling": sampling, "seed": seed}
        passes, count = (len(list(write(model, tokens, mode=mode, **options))) for mode in ("diffusion", "ar"))
        for ratio in (0.1, 0.5):
            own = cost(Router(model, tokens, **options, pace=Pace(1.0, ratio)).steps(), ratio)
            chosen.add(own[2] > 0)
            runs.append((ratio, passes, count * ratio, *own))
    for ratio in (0.1, 0.5):
        _, passes, tokens, auto, blocks, _ = np.mean([run for run in runs if run[0] == ratio], axis=0)
        assert auto <= min(passes, tokens) + 4 * blocks


@pytest.fixture(scope="module")
def chosen():
    """Whether anything was told, over all tasks: each way is taken by some."""
    found = set()
    yield found
    assert found == {True, False}


def test_where_a_token_costs_a_pass_it_is_diffusion_to_the_token(tiny):
    model, tokenizer, sampling = tiny
    tokens = prompt_tokens(tokenizer, "What is 603 + 845?")
    sampling = type(sampling)(max_denoising_steps=4)
    routed = list(Router(model, tokens, max_tokens=150, sampling=sampling, pace=Pace(1.0, 9.0)).steps())
    plain = list(diffuse(model, tokens, max_tokens=150, sampling=sampling))
    assert [step.draft.tolist() for step in routed] == [step.draft.tolist() for step in plain]
    assert [(s.block, s.step, s.final, s.reason) for s in routed] == [
        (s.block, s.step, s.final, s.reason) for s in plain
    ]


def test_the_settled_prefix_is_kept_and_the_rest_follows_from_it(tiny):
    model, tokenizer, sampling = tiny
    tokens = prompt_tokens(tokenizer, "Reverse: clerk, Kofi, Eve, Turin, Noor, Cara")
    answer = Answer(model.config, tokenizer, 64)
    found = list(Router(model, tokens, max_tokens=64, sampling=sampling, pace=Pace(1.0, 0.04)).steps())
    for step in found:
        answer.add(step)
    said = [step for step in found if step.final]
    switch = next(step for step in found if step.note)
    assert "left to right after" in switch.note and "tokens settled" in switch.note
    assert answer.text == "Cara, Noor, Turin, Eve, Kofi, clerk" and answer.finish_reason == "stop"
    text = [*tokens, *np.concatenate([step.draft for step in said])]
    [score] = model.encode([text], [model.new_cache()], score=True)
    told = sum(len(step.canvas) == 1 for step in found)
    assert told > 5 and score.argmax[-1 - told : -1].tolist() == text[-told:]
    assert answer.statistics(1)["steps"] == len(found)


@pytest.mark.parametrize("max_tokens", [3, 30, 64, 100, 150])
def test_it_ends_where_it_is_to(tiny, max_tokens):
    model, tokenizer, sampling = tiny
    model.config, whole = replace(model.config, stop_ids=()), model.config
    try:
        tokens = prompt_tokens(tokenizer, "What is 603 + 845?")
        for ratio in (0.01, 0.2, 9):
            found = list(Router(model, tokens, max_tokens=max_tokens, sampling=sampling, pace=Pace(1.0, ratio)).steps())
            length = sum(len(step.draft) for step in found if step.final)
            assert found[-1].reason == "length" and not any(step.reason for step in found[:-1])
            assert length >= max_tokens and (ratio == 9 or length < max_tokens + 64)
    finally:
        model.config = whole


def test_few_tokens_left_are_told_at_once(tiny):
    model, tokenizer, sampling = tiny
    tokens = prompt_tokens(tokenizer, "What is 603 + 845?")
    found = list(Router(model, tokens, max_tokens=4, sampling=sampling, pace=Pace(1.0, 0.2)).steps())
    assert len(found) == 4 and "4 tokens are left to write" in found[0].note


def test_an_outlook():
    half = Outlook(passes=4, prefix=10, settled=20, length=40, limit=48)
    assert half.denoising == 5 and half.telling(0.1) == pytest.approx(4)
    assert Outlook(passes=2, prefix=0, settled=0, length=40, limit=48).denoising == 46  # the cap
    assert Outlook(passes=4, prefix=10, settled=20, length=40, limit=48, stalled=3).denoising == 8


def test_it_measures_the_machine_where_it_is_not_told(tiny):
    model, tokenizer, sampling = tiny
    router = Router(model, prompt_tokens(tokenizer, "Sort: Lima, Kyiv"), max_tokens=64, sampling=sampling)
    assert [step.note for step in router.steps() if step.note]
    assert 0 < router.pace.token < 5 and 0 < router.pace.denoise < 5


def test_unknown_modes(tiny):
    with pytest.raises(Mistake, match="one of diffusion, ar, auto, got 'fast'"):
        write(tiny[0], [5], mode="fast", sampling=tiny[2])
    with pytest.raises(Mistake, match="verify"):
        write(tiny[0], [5], mode="ar", verify=True, sampling=tiny[2])
