"""One token a pass, alone and in company, through the same consumer as a canvas."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_dgemma import load, stream_generate
from mlx_dgemma.writing.answer import Answer, prompt_tokens
from mlx_dgemma.writing.left_to_right import batch, begin
from mlx_dgemma.writing.sampling import Sampling

PROMPTS = ["Reverse: clerk, Kofi, Eve", "Sort: Lima, Tokyo, Kyiv", "What is 603 + 845?", "Reverse: Oslo, Rome"]


@pytest.fixture(scope="module")
def tiny():
    return load()


def texts(tiny, sampling: Sampling, size: int, **options) -> list[str]:
    model, tokenizer, _ = tiny
    said = [Answer(model.config, tokenizer, 40) for _ in PROMPTS]
    tellings = (
        begin(model, prompt_tokens(tokenizer, prompt), sampling=sampling, seed=7, request=i, max_tokens=40, **options)
        for i, prompt in enumerate(PROMPTS)
    )
    for step in batch(model, tellings, size):
        said[step.request].add(step)
    assert all(answer.finish_reason for answer in said)
    return [answer.text for answer in said]


def test_a_list_is_reversed(tiny):
    pieces = list(stream_generate(*tiny[:2], PROMPTS[0], sampling=tiny[2], mode="ar"))
    assert "".join(piece.text for piece in pieces) == "Eve, Kofi, clerk"
    assert [len(piece.step.draft) for piece in pieces] == [1] * 17 and pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=1.5, top_k=20, top_p=0.98, min_p=0.01)])
def test_in_company_as_alone(tiny, sampling):
    assert texts(tiny, sampling, 3) == texts(tiny, sampling, 1)


def test_a_seed_is_the_same_draws(tiny):
    drawn = [texts(tiny, Sampling(temp=3.0), 1) for _ in range(2)]
    assert drawn[0] == drawn[1] != texts(tiny, Sampling(), 1)


def test_cut_at_max_tokens_and_at_the_context(tiny):
    model, tokenizer, sampling = tiny
    tokens = prompt_tokens(tokenizer, PROMPTS[0])
    steps = list(batch(model, [begin(model, tokens, max_tokens=3, sampling=sampling)]))
    assert [step.reason for step in steps] == [None, None, "length"]
    long = np.resize(tokens, model.config.max_position_embeddings - 2).tolist()
    telling = begin(model, long, sampling=sampling)
    assert telling.limit == 2


def test_who_listens_may_stop_at_any_time(tiny):
    model, tokenizer, sampling = tiny
    tokens = prompt_tokens(tokenizer, PROMPTS[0])
    telling = begin(model, tokens, sampling=sampling)
    running = batch(model, [telling])
    said = [next(running).draft[0] for _ in range(5)]
    running.close()
    assert telling.cache.length == len(tokens) + 5
    [score] = model.encode([[*tokens, *said]], [model.new_cache()], score=True)
    assert score.argmax[len(tokens) - 1 : -1].tolist() == said


def test_statistics_count_canvases_not_tokens(tiny):
    model, tokenizer, sampling = tiny
    answer = Answer(model.config, tokenizer, 100)
    prompt = "Extract JSON: Tess is 40 and works as a vet in Accra."
    for step in batch(model, [begin(model, prompt_tokens(tokenizer, prompt), sampling=sampling)]):
        answer.add(step)
    numbers = answer.statistics(1)
    assert (numbers["blocks"], numbers["steps"], numbers["tokens_per_forward"]) == (1, len(answer.tokens), 1.0)
