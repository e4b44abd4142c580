"""Templates with slots, and which of a few texts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import schema_rates

from mlx_dgemma.benchmark import tasks
from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms.choices import branchings, probabilities, read
from mlx_dgemma.forms.construction import build_automaton
from mlx_dgemma.forms.template import filled, template
from mlx_dgemma.load import load
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.ask import Ask

LETTER = "Dear {name},\nyou are {age:integer} {{years}} {old:old|young}.\n{body:text}"


def test_slots_take_what_they_say():
    automaton = build_automaton(template(LETTER))
    assert automaton.matches("Dear Zoë B.,\nyou are 31 {years} young.\na\nb".encode())
    for wrong in ("Dear \n,\nyou are 31 {years} old.\nx", "Dear A,\nyou are 3x {years} old.\nx", LETTER):
        assert not automaton.matches(wrong.encode())


def test_slots_are_read_again():
    text = "Dear Zoë, B.,\nyou are -31 {years} old.\na, b\nc"
    assert filled(LETTER, text) == {"name": "Zoë, B.", "age": "-31", "old": "old", "body": "a, b\nc"}


@pytest.mark.parametrize("wrong", ["no slots", "{", "{}", "{a} {a}", "{a:colour}", "{a!r}", "{0}", '{"a": "{b}"}'])
def test_templates_that_are_none(wrong):
    with pytest.raises(Mistake, match=r"template|slot"):
        template(wrong)


@pytest.mark.parametrize("wrong", ["", "a", "a,a", "a,,b"])
def test_too_few_choices(wrong):
    with pytest.raises(Mistake, match="choices"):
        read(wrong)


def test_choices_are_read_as_csv():
    assert read('yes, no,"New York, NY"') == ["yes", "no", "New York, NY"]


def test_only_where_a_text_branches_is_anything_asked():
    found = branchings([(7, 8, 9, 1), (7, 8, 1), (7, 5, 1)])
    assert [(place.prefix, place.after) for place in found] == [
        ((7,), {8: [0, 1], 5: [2]}),
        ((7, 8), {9: [0], 1: [1]}),
    ]


def test_probabilities_of_one_token_are_those_of_the_position():
    """Random weights: no text is certain, and each is the sum over the ways to end it."""
    model, tokenizer, sampling = schema_rates.models()["bpe, random"]
    tokens = prompt_tokens(tokenizer, "Which?")
    found = probabilities(model, tokenizer, tokens, ["no", "not", "nothing at all", "yes"], Ask(sampling=sampling))
    assert found.sum() == pytest.approx(1) and (found > 0).all()
    again = probabilities(model, tokenizer, tokens, ["no", "not", "nothing at all", "yes"], Ask(sampling=sampling))
    assert np.array_equal(found, again)


def test_the_right_answer_is_chosen():
    model, tokenizer, sampling = load(None)
    draw, right = random.Random(0), 0
    for seed, (prompt, answer) in enumerate(tasks.made("json", 10)):
        wrong = [answer.replace('"age": ', '"age": 1'), "yes", '{"name": "Nobody"}']
        choices = draw.sample([answer, *wrong], 4)
        tokens = prompt_tokens(tokenizer, prompt)
        found = probabilities(model, tokenizer, tokens, choices, Ask(sampling=sampling, seed=seed))
        right += choices[int(found.argmax())] == answer
    assert right == 10


def test_a_choice_that_is_too_long():
    model, tokenizer, sampling = load(None)
    with pytest.raises(Mistake, match="65 tokens"):
        probabilities(model, tokenizer, [2], ["a" * 64, "b"], Ask(sampling=sampling))
