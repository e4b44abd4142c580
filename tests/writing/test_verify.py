"""What the causal pass doubts is written again, a bounded number of times, and what stands stays."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_dgemma import load
from mlx_dgemma.benchmark.tasks import made
from mlx_dgemma.writing.answer import Answer, prompt_tokens
from mlx_dgemma.writing.batch import batch
from mlx_dgemma.writing.sampling import preset
from mlx_dgemma.writing.verify import TIMES, begin
from mlx_dgemma.writing.writing import begin as plain
from mlx_dgemma.writing.writing import steps


@pytest.fixture(scope="module")
def tiny():
    return load()


def answers(tiny, sampling, start, task: str, count: int) -> tuple[int, list]:
    """How many are right, and the writings."""
    model, tokenizer, _ = tiny
    right, writings = 0, []
    for seed, (prompt, expected) in enumerate(made(task, count)):
        said = Answer(model.config, tokenizer, 64)
        tokens = prompt_tokens(tokenizer, prompt)
        writings.append(start(model, tokens, max_tokens=64, sampling=sampling, seed=seed))
        for step in steps(model, writings[-1]):
            said.add(step)
        right += said.text == expected
    return right, writings


def test_fast_with_repair_is_right_more_often_than_fast_and_than_the_reference(tiny):
    fast = preset(tiny[2], "fast")
    checked, writings = answers(tiny, fast, begin, "reverse", 8)
    assert checked >= answers(tiny, fast, plain, "reverse", 8)[0] + 2
    assert checked >= answers(tiny, tiny[2], plain, "reverse", 8)[0] + 2
    assert 0 < sum(writing.repairs for writing in writings) <= TIMES * len(writings)


def test_what_was_not_doubted_stays_and_is_said_to_be_written_again(tiny):
    model, tokenizer, sampling = tiny
    writing = begin(model, prompt_tokens(tokenizer, "Sort: Yan, Omar, Bonn, Dan"), max_tokens=64, sampling=sampling)
    found = list(steps(model, writing))
    again = [i for i, step in enumerate(found) if step.note]
    assert again and len(again) == writing.repairs and not any(found[i].final for i in again)
    for i in again:
        kept = int(found[i].note.split("from token ")[1].split()[0]) - 1
        assert "written again" in found[i].note and np.array_equal(found[i].draft[:kept], found[i + 1].draft[:kept])
        assert found[i + 1].accepted[: kept + 1].all() and found[i + 1].block == found[i].block
    assert found[-1].final and found[-1].reason == "stop"


def test_the_cache_holds_each_block_once(tiny):
    model, tokenizer, sampling = tiny
    tokens = prompt_tokens(tokenizer, "What is 603 + 845?")
    sampling = preset(sampling, "fast")
    writing = begin(model, tokens, max_tokens=200, sampling=sampling)
    writing.config = type("Unending", (), {**vars(model.config), "stop_ids": ()})()
    writing.layout.config = writing.config
    drafts = [step.draft for step in steps(model, writing) if step.final]
    assert len(drafts) > 1
    text = np.concatenate([tokens, *drafts[:-1]])
    assert writing.cache.length in (len(text), len(text) + len(drafts[-1]))
    other = model.new_cache()
    model.encode([text], [other])
    writing.cache.trim(writing.cache.length - len(text))
    scores = [model.encode([[9, 30, 31]], [cache], score=True)[0].logprob for cache in (writing.cache, other)]
    assert np.allclose(*scores, atol=1e-4)


def test_in_company_as_alone(tiny):
    model, tokenizer, sampling = tiny

    def writings():
        for i, prompt in enumerate(("Sort: Yan, Omar, Bonn, Dan", "Reverse: Oslo, Rome, Lima", "What is 1 + 2?")):
            tokens = prompt_tokens(tokenizer, prompt)
            yield begin(model, tokens, max_tokens=64, sampling=preset(sampling, "fast"), seed=i, request=i)

    together, alone = {}, {}
    for step in batch(model, writings(), 3):
        together.setdefault(step.request, []).append(step.draft.tolist())
    for writing in writings():
        alone[writing.request] = [step.draft.tolist() for step in steps(model, writing)]
    assert together == alone


def test_an_empty_answer_is_tried_again_on_half_the_canvas(tiny):
    model, tokenizer, sampling = tiny
    writing = begin(model, prompt_tokens(tokenizer, "Reverse: Oslo, Rome"), max_tokens=64, sampling=sampling)
    [prediction] = model.denoise([writing.row()])
    silent = prediction.argmax.copy()
    silent[0] = model.config.stop_ids[0]
    nothing = type(prediction)(silent, silent, np.zeros(64, np.float32), np.ones(64, np.float32))
    writing.take(nothing)
    step = writing.take(nothing)  # settled, and says nothing
    assert not step.final and "nothing was said; tried again on a canvas of 32" in step.note
    found = list(steps(model, writing))
    assert len(found[0].canvas) == 32
    text = tokenizer.decode(np.concatenate([s.draft for s in found if s.final]).tolist())
    assert text.startswith("Rome, Oslo")
