"""What the causal pass finds unlikely is written again, a bounded number of times, and what stands stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from runs import HARD
from scripted import Slipping

from mlx_dgemma import load
from mlx_dgemma.seam.model import Prediction, Text
from mlx_dgemma.tiny.tasks import made
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.diffuse import begin
from mlx_dgemma.writing.sampling import PRESETS
from mlx_dgemma.writing.verify import TIMES
from mlx_dgemma.writing.writing import Writing


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture(scope="module")
def fast(tiny):
    return replace(tiny[2], **PRESETS["fast"])


def verified(tiny, prompt: str, **ask) -> Writing:
    ask = {"max_tokens": 64, "sampling": tiny[2], "verify": True} | ask
    return begin(tiny[0], Text(prompt_tokens(tiny[1], prompt)), Ask(**ask))


def answers(tiny, task: str, count: int, **ask) -> tuple[int, list[Writing]]:
    """How many are right, and the writings."""
    model, tokenizer, _ = tiny
    right, writings = 0, []
    for seed, (prompt, expected) in enumerate(made(task, count)):
        answer = Answer(model.facts, tokenizer, 192)
        writings.append(verified(tiny, prompt, seed=seed, max_tokens=192, **ask))
        for step in run(model, writings[-1:]):
            answer.add(step)
        right += answer.text == expected
    return right, writings


@pytest.mark.slow
def test_fast_with_repair_is_right_more_often_than_fast_and_than_the_reference(tiny, fast):
    right, writings = answers(tiny, "members", 12, sampling=fast)
    assert right >= answers(tiny, "members", 12, sampling=fast, verify=False)[0] + 2
    assert right >= answers(tiny, "members", 12, verify=False)[0] + 2
    blocks = sum(writing.block + 1 for writing in writings)
    assert 0 < sum(writing.check.repairs for writing in writings) <= TIMES * blocks


def test_what_was_likely_stays_and_a_note_tells_what_is_written_again(tiny):
    slipping, hasty = Slipping(tiny[0], 8), replace(tiny[2], max_denoising_steps=2)
    writing = verified((slipping, *tiny[1:]), "Sort: Yan, Omar, Bonn, Dan", sampling=hasty)
    steps = list(run(slipping, [writing]))
    again = [i for i, step in enumerate(steps) if step.note]
    assert again and len(again) == writing.check.repairs and not any(steps[i].final for i in again)
    for i in again:
        kept = int(steps[i].note.split("from token ")[1].split()[0]) - 1
        assert "written again" in steps[i].note and np.array_equal(steps[i].draft[:kept], steps[i + 1].draft[:kept])
        assert steps[i + 1].accepted[: kept + 1].all() and steps[i + 1].block == steps[i].block
    assert steps[-1].final and steps[-1].reason == "stop"


@pytest.mark.slow
def test_the_cache_holds_each_block_once(tiny, fast, monkeypatch):
    model = tiny[0]
    monkeypatch.setattr(model, "facts", replace(model.facts, stop_ids=()))
    writing = verified(tiny, HARD, max_tokens=130, sampling=fast)
    tokens = writing.pending.tokens
    drafts = [step.draft for step in run(model, [writing]) if step.final]
    assert len(drafts) > 1
    text = np.concatenate([tokens, *drafts[:-1]])
    assert writing.cache.length in (len(text), len(text) + len(drafts[-1]))
    other = model.new_cache()
    model.encode([Text(text)], [other])
    writing.cache.trim(writing.cache.length - len(text))
    scores = [model.encode([Text([9, 30, 31])], [cache], score=True)[0].logprob for cache in (writing.cache, other)]
    assert np.allclose(*scores, atol=1e-4)


@pytest.mark.slow
def test_in_company_as_alone(tiny, fast):
    model, tokenizer, _ = tiny

    def writings():
        ask = Ask(max_tokens=64, sampling=fast, verify=True)
        for i, prompt in enumerate(("Sort: Yan, Omar, Bonn, Dan", "Reverse: Oslo, Rome")):
            yield begin(model, Text(prompt_tokens(tokenizer, prompt)), replace(ask, seed=i), request=i)

    together, alone = {}, {}
    for step in run(model, writings(), 3):
        together.setdefault(step.request, []).append(step.draft.tolist())
    for writing in writings():
        alone[writing.request] = [step.draft.tolist() for step in run(model, [writing])]
    assert together == alone


@pytest.mark.slow
def test_an_empty_answer_is_tried_again_on_half_the_canvas(tiny):
    model, tokenizer, _ = tiny
    writing = verified(tiny, "Reverse: Oslo, Rome, Eve")
    [prediction] = model.denoise([writing.row()])
    silent = prediction.argmax.copy()
    silent[0] = model.facts.stop_ids[0]
    sure = np.ones(64, np.float32)
    nothing = Prediction(silent, silent, np.zeros(64, np.float32), sure, sure)
    writing.take(nothing)
    step = writing.take(nothing)  # settled, and says nothing
    assert not step.final and "nothing was said; tried again on a canvas of 32" in step.note
    steps = list(run(model, [writing]))
    assert len(steps[0].canvas) == 32
    text = tokenizer.decode(np.concatenate([s.draft for s in steps if s.final]).tolist())
    assert text.startswith("Eve, Rome, Oslo")
