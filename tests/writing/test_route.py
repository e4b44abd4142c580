"""Denoise or go on left to right: which is chosen, what it costs, and that it is one text."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fakes import FakeModel
from runs import HARD, MANY
from scripted import Timed

from mlx_dgemma import load
from mlx_dgemma.seam.model import Draw, Text
from mlx_dgemma.tiny.tasks import made
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.clock import Clock
from mlx_dgemma.writing.diffuse import begin, diffuse
from mlx_dgemma.writing.route import Outlook, Pace, Route
from mlx_dgemma.writing.sampling import Sampling

PROMPTS = 3
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny():
    return load()


def routed(tiny, tokens, ratio: float, max_tokens: int = 64, sampling: Sampling | None = None, seed: int = 0) -> list:
    """The steps where a token costs `ratio` passes."""
    model, rng = tiny[0], np.random.default_rng(seed)
    route = Route(model, Text(tokens), max_tokens, sampling or tiny[2], Draw(), rng, pace=Pace(1.0, ratio))
    return list(run(model, [route]))


def cost(steps: list, ratio: float) -> tuple[float, int, int]:
    """Passes, tokens at `ratio` a pass, and one where a settled prefix has to be encoded; blocks; tokens left to
    right."""
    single = [len(step.canvas) == 1 for step in steps]
    prefixes = sum(b and not a and steps[i].final for i, (a, b) in enumerate(pairwise(single)))
    return single.count(False) + single.count(True) * ratio + prefixes, steps[-1].block + 1, single.count(True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "left_to_right"),  # whether anything was written so
    [("sudoku 4x4", False), ("json", False), ("members", True)],
)
def test_it_costs_at_most_the_better_mode_and_four_passes_a_block(tiny, task, left_to_right):
    model, tokenizer, sampling = tiny
    runs, chosen = [], set()
    for seed, (prompt, _) in enumerate(made(task, PROMPTS)):
        tokens = prompt_tokens(tokenizer, prompt)
        asks = [Ask(max_tokens=64, sampling=sampling, seed=seed, mode=mode) for mode in ("diffusion", "ar")]
        passes, count = (len(list(diffuse(model, tokens, ask))) for ask in asks)
        for ratio in (0.1, 0.5):
            costs = cost(routed(tiny, tokens, ratio, seed=seed), ratio)
            chosen.add(costs[2] > 0)
            runs.append((ratio, passes, count * ratio, *costs))
    for ratio in (0.1, 0.5):
        _, passes, tokens, auto, blocks, _ = np.mean([run for run in runs if run[0] == ratio], axis=0)
        assert auto <= min(passes, tokens) + 4 * blocks
    assert (True in chosen) == left_to_right


def test_where_a_token_costs_a_pass_it_is_diffusion_to_the_token(tiny):
    model, tokenizer, _ = tiny
    tokens = prompt_tokens(tokenizer, HARD)
    sampling = Sampling(max_denoising_steps=4)
    steps = routed(tiny, tokens, 9.0, 150, sampling)
    plain = list(diffuse(model, tokens, Ask(max_tokens=150, sampling=sampling)))
    assert [step.draft.tolist() for step in steps] == [step.draft.tolist() for step in plain]
    assert [(s.block, s.step, s.final, s.reason) for s in steps] == [
        (s.block, s.step, s.final, s.reason) for s in plain
    ]


def test_the_settled_prefix_is_kept_and_the_rest_follows_from_it(tiny):
    model, tokenizer, _ = tiny
    tokens = prompt_tokens(tokenizer, HARD)
    answer = Answer(model.facts, tokenizer, 64)
    steps = routed(tiny, tokens, 0.04)
    for step in steps:
        answer.add(step)
    final = [step for step in steps if step.final]
    switch = next(step for step in steps if step.note)
    assert "left to right after" in switch.note and "tokens settled" in switch.note
    assert answer.finish_reason == "stop" and len(final[0].draft) > 1
    text = [*tokens, *np.concatenate([step.draft for step in final])]
    [score] = model.encode([Text(text)], [model.new_cache()], score=True)
    single = sum(len(step.canvas) == 1 for step in steps)
    assert single > 5 and score.argmax[-1 - single : -1].tolist() == text[-single:]
    assert answer.statistics(1)["steps"] == len(steps)


@pytest.mark.parametrize("max_tokens", [3, *(pytest.param(n, marks=SLOW) for n in (30, 64, 70, 100, 150))])
def test_it_ends_where_it_is_to(tiny, monkeypatch, max_tokens):
    model, tokenizer, sampling = tiny
    monkeypatch.setattr(model, "facts", replace(model.facts, stop_ids=()))
    few = replace(sampling, max_denoising_steps=4)
    tokens = prompt_tokens(tokenizer, HARD)
    for ratio in (0.01, 0.2, 9):
        steps = routed(tiny, tokens, ratio, max_tokens, few)
        length = sum(len(step.draft) for step in steps if step.final)
        assert steps[-1].reason == "length" and not any(step.reason for step in steps[:-1])
        assert length >= max_tokens and (ratio == 9 or length < max_tokens + 64)


def test_few_tokens_that_are_left_are_written_left_to_right_at_once(tiny):
    tokens = prompt_tokens(tiny[1], HARD)
    steps = routed(tiny, tokens, 0.2, 4)
    assert len(steps) == 4 and "4 tokens are left to write" in steps[0].note


def test_an_outlook():
    half = Outlook(passes=4, prefix=10, settled=20, length=40, limit=48)
    assert half.denoising == 5 and half.left_to_right(0.1) == pytest.approx(4)
    assert Outlook(passes=2, prefix=0, settled=0, length=40, limit=48).denoising == 46  # the cap
    assert Outlook(passes=4, prefix=10, settled=20, length=40, limit=48, stalled=3).denoising == 8


@pytest.mark.slow
def test_it_measures_the_machine_by_the_clock_of_the_model(tiny):
    """A token of a tenth of a second where a pass takes a second, shared by two canvases."""
    model, tokenizer, sampling = tiny
    timed = Timed(model, a_pass=1.0, a_token=0.1)
    ask = Ask(max_tokens=64, sampling=sampling, mode="auto")
    texts = [Text(prompt_tokens(tokenizer, prompt)) for prompt in (HARD, f"Reverse: {MANY}")]
    alone, *pair = [begin(timed, text, ask) for text in (texts[0], *texts)]
    assert [step.note for step in run(timed, [alone]) if step.note]
    assert (alone.pace.token, alone.pace.denoise) == pytest.approx((0.1, 1.0))
    list(run(timed, pair, 2))
    assert [(route.pace.token, route.pace.denoise) for route in pair] == [pytest.approx((0.1, 0.5))] * 2


def test_a_canvas_that_is_sure_before_it_may_end_is_denoised_to_its_end():
    """Nothing of it is left to write left to right, however little that costs."""
    model = FakeModel([([2] * 8, [])])
    sampling = Sampling(max_denoising_steps=9, stability_threshold=5)
    route = Route(model, Text([9]), 16, sampling, Draw(), np.random.default_rng(0), pace=Pace(1.0, 0.3))
    steps = list(run(model, [route]))
    assert [step.step for step in steps if step.final] == [5, 5] and steps[-1].reason == "length"


def test_the_machine_is_not_measured_for_a_text_that_has_ended():
    model = FakeModel([([4, 1] + [0] * 6, [])])
    route = begin(model, Text([9]), Ask(mode="auto"))
    assert [step.reason for step in run(model, [route])] == [None, "stop"] and route.pace is None


def test_a_deadline_at_the_end_of_a_block():
    """A token takes a second, and a block has eight: the first of the next would be too late."""
    timed = Timed(FakeModel([]))
    clock = Clock(8.5, timed.now)
    rng = np.random.default_rng(0)
    route = Route(timed, Text([9]), 16, Sampling(), Draw(), rng, clock=clock, pace=Pace(1.0, 0.125))
    assert [step.reason for step in run(timed, [route])] == [None] * 7 + ["deadline"]
