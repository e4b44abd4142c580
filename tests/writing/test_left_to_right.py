"""One token a pass, alone and in company, through the same consumer as a canvas."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_dgemma import load, stream_generate
from mlx_dgemma.seam.model import Draw, Text
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.diffuse import begin, diffuse

PROMPTS = ["Reverse: clerk, Kofi, Eve", "Sort: Lima, Tokyo, Kyiv", "What is 603 + 845?", "Reverse: Oslo, Rome"]


@pytest.fixture(scope="module")
def tiny():
    return load()


def texts(tiny, size: int, draw: Draw | None = None) -> list[str]:
    model, tokenizer, _ = tiny
    answers = [Answer(model.facts, tokenizer, 20) for _ in PROMPTS]
    ask = Ask(mode="ar", seed=7, max_tokens=20, draw=draw or Draw())
    writings = (
        begin(model, Text(prompt_tokens(tokenizer, prompt)), ask, request=i) for i, prompt in enumerate(PROMPTS)
    )
    for step in run(model, writings, size):
        answers[step.request].add(step)
    assert all(answer.finish_reason for answer in answers)
    return [answer.text for answer in answers]


def test_a_list_is_reversed(tiny):
    pieces = list(stream_generate(*tiny[:2], PROMPTS[0], Ask(mode="ar")))
    assert "".join(piece.text for piece in pieces) == "Eve, Kofi, clerk"
    assert [len(piece.step.draft) for piece in pieces] == [1] * 17 and pieces[-1].finish_reason == "stop"


@pytest.mark.slow
@pytest.mark.parametrize("draw", [Draw(), Draw(temp=1.5, top_k=20, top_p=0.98, min_p=0.01)])
def test_in_company_as_alone(tiny, draw):
    assert texts(tiny, 3, draw) == texts(tiny, 1, draw)


@pytest.mark.slow
def test_a_seed_is_the_same_draws(tiny):
    drawn = [texts(tiny, 4, Draw(temp=3.0)) for _ in range(2)]
    assert drawn[0] == drawn[1] != texts(tiny, 4)


def test_cut_at_max_tokens_and_at_the_context(tiny):
    model, tokenizer, _ = tiny
    tokens = prompt_tokens(tokenizer, PROMPTS[0])
    steps = list(diffuse(model, tokens, Ask(mode="ar", max_tokens=3)))
    assert [step.reason for step in steps] == [None, None, "length"]
    long = np.resize(tokens, model.facts.max_position_embeddings - 2)
    assert begin(model, Text(long), Ask(mode="ar")).limit == 2


def test_who_listens_may_stop_at_any_time(tiny):
    model, tokenizer, _ = tiny
    tokens = prompt_tokens(tokenizer, PROMPTS[0])
    writing = begin(model, Text(tokens), Ask(mode="ar"))
    running = run(model, [writing])
    written = [next(running).draft[0] for _ in range(5)]
    running.close()
    assert writing.cache.length == len(tokens) + 5
    [score] = model.encode([Text([*tokens, *written])], [model.new_cache()], score=True)
    assert score.argmax[len(tokens) - 1 : -1].tolist() == written


def test_statistics_count_canvases_not_tokens(tiny):
    model, tokenizer, _ = tiny
    answer = Answer(model.facts, tokenizer, 100)
    prompt = "Reverse: Zoe, Eve"
    for step in diffuse(model, prompt_tokens(tokenizer, prompt), Ask(mode="ar")):
        answer.add(step)
    numbers = answer.statistics(1)
    assert (numbers["blocks"], numbers["steps"], numbers["tokens_per_forward"]) == (1, len(answer.tokens), 1.0)
