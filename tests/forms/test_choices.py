"""Which of a few texts is the answer: what is asked, how the probabilities sum, and by when."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import schema_rates
from scripted import Timed

from mlx_dgemma import load
from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms.choices import branchings, choose, probabilities, read
from mlx_dgemma.tiny import tasks
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing import batch
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.task import complete

TEXTS = ["no", "not", "nothing at all", "yes"]


def probabilities_of(model, *arguments):
    return complete(model, probabilities(model, *arguments), 8)


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture(scope="module")
def unsure():
    """Random weights: no text is certain."""
    return schema_rates.models()["bpe, random"]


@pytest.mark.parametrize("wrong", ["", "a", "a,a", "a,,b"])
def test_too_few_choices(wrong):
    with pytest.raises(Mistake, match="choices"):
        read(wrong)


def test_choices_are_read_as_csv():
    assert read('yes, no,"New York, NY"') == ["yes", "no", "New York, NY"]


def test_only_where_a_text_branches_is_anything_asked():
    places = branchings([(7, 8, 9, 1), (7, 8, 1), (7, 5, 1)])
    assert [(place.prefix, place.after) for place in places] == [
        ((7,), {8: [0, 1], 5: [2]}),
        ((7, 8), {9: [0], 1: [1]}),
    ]


def test_probabilities_sum_to_one_and_are_the_same_again(unsure):
    """Each is the sum over the ways to end it."""
    model, tokenizer, sampling = unsure
    tokens = prompt_tokens(tokenizer, "Which?")
    values = probabilities_of(model, tokenizer, tokens, TEXTS, Ask(sampling=sampling))
    assert values.sum() == pytest.approx(1) and (values > 0).all()
    assert np.array_equal(values, probabilities_of(model, tokenizer, tokens, TEXTS, Ask(sampling=sampling)))


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_the_right_answer_is_chosen(tiny, count):
    model, tokenizer, sampling = tiny
    draw, right = random.Random(0), 0
    for seed, (prompt, answer) in enumerate(tasks.made("json", count)):
        wrong = [answer.replace('"age": ', '"age": 1'), "yes", '{"name": "Nobody"}']
        choices = draw.sample([answer, *wrong], 4)
        tokens = prompt_tokens(tokenizer, prompt)
        right += choose(model, tokenizer, tokens, choices, Ask(sampling=sampling, seed=seed))["text"] == answer
    assert right == count


def test_a_choice_that_is_too_long(tiny):
    model, tokenizer, sampling = tiny
    with pytest.raises(Mistake, match="65 tokens"):
        probabilities_of(model, tokenizer, [2], ["a" * 64, "b"], Ask(sampling=sampling))


@pytest.mark.parametrize(("deadline", "passes"), [(0.5, 1), (1, 2), (100, 2), (None, 2)])
def test_a_deadline_leaves_the_probabilities_of_the_first_pass(unsure, deadline, passes):
    model, tokenizer, sampling = unsure
    timed, tokens, ask = Timed(model), prompt_tokens(tokenizer, "Which?"), Ask(sampling=sampling, deadline=deadline)
    values = probabilities_of(timed, tokenizer, tokens, TEXTS, ask)
    assert values.sum() == pytest.approx(1) and timed.seconds == passes
    whole = probabilities_of(model, tokenizer, tokens, TEXTS, replace(ask, deadline=None))
    assert np.array_equal(values, whole) == (passes == 2)


def test_a_long_prompt_is_read_once_for_all_places(unsure, monkeypatch):
    model, tokenizer, sampling = unsure
    tokens = prompt_tokens(tokenizer, "Which of them is it, the first or the second?")
    ask = Ask(sampling=sampling)
    whole = probabilities_of(model, tokenizer, tokens, TEXTS, ask)
    monkeypatch.setattr(batch, "PIECE", 8)
    assert np.allclose(probabilities_of(model, tokenizer, tokens, TEXTS, ask), whole, atol=1e-5)
