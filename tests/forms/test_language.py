"""A text of a language: what is held, what it shares with every other text, and that it is always whole."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import weakref
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import schema_rates
from runs import HARD
from scripted import Slipping, Timed

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.automaton import Automaton
from mlx_dgemma.forms.construction import build_automaton
from mlx_dgemma.forms.expression import Expression, Repeat, series
from mlx_dgemma.forms.expression import Text as Literal
from mlx_dgemma.forms.language import Language, begin_within
from mlx_dgemma.forms.lattice import Vocabulary
from mlx_dgemma.forms.template import template
from mlx_dgemma.seam.model import Draw, Text
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import InProgress, run
from mlx_dgemma.writing.diffuse import begin

RUNS = int(os.environ.get("RUNS", "1"))  # how many times as many random schemas and seeds
PROMPT = "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old."
DOCUMENT = '{"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}'
PERSON = schema_rates.TASK
LINES = {"type": "array", "items": {"type": "string", "minLength": 20, "maxLength": 24}, "minItems": 3, "maxItems": 3}
LISTS = {"type": "object", "properties": {"a": {"type": "array", "items": PERSON}, "b": LINES}, "required": ["a", "b"]}


@pytest.fixture(scope="module")
def models():
    return schema_rates.models()


@pytest.fixture(scope="module")
def loaded(models):
    return models["embedded"]


@cache
def automaton_of(text: str) -> Automaton:
    return schema.automaton(json.loads(text))


def automaton(form: dict) -> Automaton:
    """Its automaton, made once."""
    return automaton_of(json.dumps(form))


def language_of(loaded, form: Expression) -> Language:
    model, tokenizer, _ = loaded
    return Language(model, Vocabulary(tokenizer, model.facts.vocab_size), build_automaton(form))


@pytest.fixture(scope="module")
def language(loaded):
    return language_of(loaded, automaton(PERSON))


def narrow(loaded) -> Language:
    names = {name: schema_rates.PERSON[name] for name in ("city", "name")}
    return language_of(loaded, schema.automaton({"type": "object", "properties": names, "required": list(names)}))


def begun(loaded, language, prompt: str = PROMPT, request: int = 0, model=None, **ask) -> InProgress:
    ask = Ask(**{"max_tokens": 64, "sampling": loaded[2]} | ask)
    return begin_within(model or loaded[0], Text(prompt_tokens(loaded[1], prompt)), ask, language, request=request)


def from_the_start(writing: InProgress) -> InProgress:
    """Held to its form without a pass unaided."""
    writing.layout.unaided = 0
    writing._begin(writing.layout.first())
    return writing


def answer_of(loaded, steps, max_tokens: int = 10_000) -> Answer:
    answer = Answer(loaded[0].facts, loaded[1], max_tokens)
    for step in steps:
        answer.add(step)
    return answer


def written(loaded, language, prompt: str = PROMPT, **options) -> Answer:
    model = options.get("model") or loaded[0]
    return answer_of(loaded, run(model, [begun(loaded, language, prompt, **options)]), options.get("max_tokens", 64))


def test_every_draft_is_a_document(loaded, language):
    model, tokenizer, sampling = loaded
    few = replace(sampling, max_denoising_steps=12)
    for step in run(model, [begun(loaded, language, "Sort: Lima, Kyiv, Oslo", seed=3, sampling=few)]):
        stop = np.flatnonzero(np.isin(step.draft, model.facts.stop_ids))[0]
        assert schema_rates.valid(PERSON, tokenizer.decode(step.draft[:stop].tolist()))


def test_the_skeleton_is_fixed_where_the_draft_has_it(loaded, language):
    model, tokenizer, _ = loaded
    writing = from_the_start(begun(loaded, language))
    first = writing.row()
    assert tokenizer.decode(first.canvas[first.fixed].tolist()) == '{"name": "'
    assert (first.hint[first.fixed] == first.canvas[first.fixed]).all()
    while not writing.done:
        row = writing.row()
        step = writing.take(model.denoise([row])[0])
        assert (step.draft[row.fixed] == row.canvas[row.fixed]).all()
    skeleton = tokenizer.decode(row.canvas[row.fixed].tolist())
    for part in ('{"name": "', ' "age":', ' "job": "', ' "city": "', "}"):  # a string's end is a choice, so free
        assert part in skeleton
    assert "Ivan" not in skeleton and "43" not in skeleton
    assert tokenizer.decode(step.draft.tolist()).startswith(DOCUMENT)


def test_what_it_says_unaided_is_the_draft_and_nothing_is_held(loaded):
    """Asked for fewer members, in another order."""
    writing = begun(loaded, narrow(loaded))
    steps = list(run(loaded[0], [writing]))
    assert writing.current.fixed is None
    assert answer_of(loaded, steps).text == '{"city": "Kyiv", "name": "Ivan"}'


def test_without_a_document_in_two_passes_it_is_held(loaded, language):
    few = replace(loaded[2], max_denoising_steps=6)
    writing = begun(loaded, language, "Sort: Lima, Kyiv, Oslo", seed=3, sampling=few)
    held = []
    while not writing.done:
        row = writing.row()
        held.append(row.fixed is not None)
        writing.take(loaded[0].denoise([row])[0])
    assert held[:3] == [False, False, True] and all(held[2:])


def test_a_position_hears_only_what_may_stand_there(loaded):
    model, tokenizer, _ = loaded
    numbers = language_of(loaded, series("n = ", Repeat(Literal("7"), 1), "!"))
    row = from_the_start(begun(loaded, numbers, max_tokens=9)).row()
    slot = int(np.argmin(row.fixed))
    prediction = model.denoise([row])[0]
    allowed = row.token_sets[int(row.allowed[slot])].ids
    assert {tokenizer.decode([token]) for token in allowed} == {"7", "!"} and prediction.argmax[slot] in allowed
    assert len(prediction.allowed_logprobs[slot]) == 2


@pytest.mark.slow
def test_alone_and_in_company_and_again(loaded, language):
    prompts = [PROMPT, "Extract JSON: In Oslo lives Zoe, a vet aged 31.", "Reverse: Perth, Noor, Delhi"]
    few = replace(loaded[2], max_denoising_steps=6)
    alone = [written(loaded, language, prompt=p, seed=i, sampling=few).text for i, p in enumerate(prompts)]
    again = [begun(loaded, language, p, seed=i, request=i, sampling=few) for i, p in enumerate(prompts)]
    company = list(run(loaded[0], again, 2))
    assert alone == [answer_of(loaded, (s for s in company if s.request == i)).text for i in range(3)]
    assert alone[0] == DOCUMENT


def test_a_long_document_spans_blocks(loaded):
    few = replace(loaded[2], max_denoising_steps=2)
    writing = begun(loaded, language_of(loaded, schema.automaton(LINES)), sampling=few, max_tokens=250)
    steps = list(run(loaded[0], [writing]))
    assert steps[-1].block >= 1 and steps[-1].reason == "stop"
    assert schema_rates.valid(LINES, answer_of(loaded, steps).text)


@pytest.mark.slow
def test_a_narrow_canvas(loaded, language):
    few = replace(loaded[2], canvas_length=16, max_denoising_steps=4)
    text = written(loaded, language, sampling=few, max_tokens=128).text
    assert schema_rates.valid(PERSON, text) and json.loads(text)["name"]


@pytest.mark.slow
def test_token_sets_go_with_their_language(loaded):
    held = language_of(loaded, automaton(PERSON))
    for mode in ("diffusion", "ar"):
        written(loaded, held, HARD, mode=mode)
    sets = [weakref.ref(one) for one in [*held.sets, held.following(0, 1000)]]
    gc.collect()
    assert all(one() is not None for one in sets)
    del held
    gc.collect()
    assert len(sets) > 5 and all(one() is None for one in sets)


@pytest.mark.parametrize("mode", ["diffusion", pytest.param("ar", marks=pytest.mark.slow)])
def test_what_does_not_fit_is_refused(loaded, language, mode):
    few = replace(loaded[2], max_denoising_steps=6)
    with pytest.raises(Mistake, match=r"takes 46 tokens, and there is room for 45: raise max_tokens"):
        begun(loaded, language, mode=mode, max_tokens=45)
    assert schema_rates.valid(PERSON, written(loaded, language, mode=mode, max_tokens=46, sampling=few).text)


def test_auto_is_refused(loaded, language):
    with pytest.raises(Mistake, match="leave out mode 'auto'"):
        begun(loaded, language, mode="auto")


def test_the_shortest_ending_of_a_text(loaded, language):
    _, tokenizer, _ = loaded
    whole = tokenizer.encode(DOCUMENT)
    for length in range(len(whole) + 1):
        ending = language.ending(whole[:length])
        assert ending[-1] in loaded[0].facts.stop_ids
        text = tokenizer.decode([*whole[:length], *ending])
        assert text.startswith(DOCUMENT[:length]) and schema_rates.valid(PERSON, text)
    assert language.ending([*whole, loaded[0].facts.stop_ids[0]]).tolist() == []


# Left to right.


def test_left_to_right_it_is_the_document(loaded, language):
    answer = written(loaded, language, mode="ar")
    assert (answer.text, answer.finish_reason) == (DOCUMENT, "stop") and len(answer.tokens) == answer.steps


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        pytest.param(PROMPT, '{"city": "Kyiv", "name": "Ivan"}', marks=pytest.mark.slow),
        ("Sort: Lima, Kyiv, Oslo", None),
    ],
)
def test_left_to_right_it_is_heard_out_where_it_departs(loaded, prompt, text):
    """The cache holds nothing of what is said aside."""
    model, tokenizer, _ = loaded
    writing = begun(loaded, narrow(loaded), prompt, mode="ar")
    steps = list(run(model, [writing]))
    answer = answer_of(loaded, steps)
    assert (answer.text == text or text is None) and {*json.loads(answer.text)} == {"city", "name"}
    written = [*prompt_tokens(tokenizer, prompt), *(token for step in steps if step.final for token in step.draft)]
    fresh, (aside, final) = model.new_cache(), ([s for s in steps if s.final is kind] for kind in (False, True))
    model.encode([Text(written[: writing.cache.length])], [fresh])
    scores = [model.encode([Text([5, 6])], [cache], score=True)[0].logprob for cache in (writing.cache, fresh)]
    assert np.allclose(*scores, atol=1e-4) and answer.steps == len(steps)
    assert len(final[-1].draft) > 1 if text else len(aside) == 1


@pytest.mark.parametrize("seconds", [3, 20])
def test_left_to_right_a_deadline_while_it_is_heard(loaded, seconds):
    answer = written(loaded, narrow(loaded), model=Timed(loaded[0]), mode="ar", deadline=seconds)
    assert (answer.text, answer.finish_reason) == ('{"city": "", "name": ""}', "deadline")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("bpe, random", range(1)),
        pytest.param("bpe, random", range(1, 1 + 4 * RUNS), marks=pytest.mark.slow),
        pytest.param("bytes, random", range(3 * RUNS), marks=pytest.mark.slow),
        pytest.param("embedded", range(3 * RUNS), marks=pytest.mark.slow),
    ],
)
def test_left_to_right_every_text_is_a_document(models, name, numbers):
    loaded = models[name]
    for number in numbers:
        made = schema_rates.random_schema(random.Random(f"schema {number}"))
        held = language_of(loaded, schema.automaton(made))
        shortest = int(held.lattice.left[0])
        for most, draw in ((shortest, Draw(temp=3.0)), (shortest + 9, Draw(temp=1.0, top_k=9)), (160, Draw())):
            options = {"mode": "ar", "draw": draw, "seed": number, "max_tokens": max(most, shortest)}
            answer = written(loaded, held, prompt="Make some JSON", **options)
            assert schema_rates.valid(made, answer.text) and answer.finish_reason == "stop", (number, most)


@pytest.mark.slow
def test_left_to_right_in_company_as_alone(loaded):
    """Beside others held to a form and free, of other draws, and denoised."""
    model, tokenizer, sampling = loaded
    drawn, few = Draw(temp=2.0), replace(sampling, max_denoising_steps=3)
    two = language_of(loaded, template("{first}, {second}."))

    def texts() -> list[InProgress]:
        free = Text(prompt_tokens(tokenizer, "Reverse: Perth, Noor, Delhi"))
        return [
            begun(loaded, two, mode="ar", draw=drawn, seed=1, max_tokens=12),
            begun(loaded, two, "Reverse: Zoe, Eve", mode="ar", draw=drawn, seed=2, request=1, max_tokens=10),
            begin(model, free, Ask(mode="ar", draw=drawn, seed=3, max_tokens=8), request=2),
            begin(model, free, Ask(mode="ar", max_tokens=6), request=3),
            begun(loaded, two, request=4, sampling=few),
            begin(model, free, Ask(sampling=few, max_tokens=30), request=5),
        ]

    together: dict[int, list] = {}
    for step in run(model, texts(), 6):
        together.setdefault(step.request, []).append(step.draft.tolist())
    for number, text in enumerate(texts()):
        assert [step.draft.tolist() for step in run(model, [text])] == together[number], number


# By a deadline: passes and tokens take a second.


@pytest.mark.parametrize(
    ("name", "form", "seeds"),
    [
        ("embedded", PERSON, 2),
        pytest.param("embedded", LISTS, 4 * RUNS, marks=pytest.mark.slow),
        pytest.param("bpe, random", PERSON, 4 * RUNS, marks=pytest.mark.slow),
        pytest.param("bytes, random", LISTS, 4 * RUNS, marks=pytest.mark.slow),
    ],
)
def test_by_a_deadline_the_document_is_finished(models, name, form, seeds):
    model, _, sampling = loaded = models[name]
    held, draw = language_of(loaded, automaton(form)), random.Random(name)
    few, reasons = replace(sampling, max_denoising_steps=9), set()
    for seed in range(seeds):
        mode = ("diffusion", "ar")[seed % 2]
        deadline, most = draw.uniform(0.1, 4 if mode == "diffusion" else 80), draw.choice([140, 200, 300])
        options = {"mode": mode, "deadline": deadline, "seed": seed, "sampling": few, "max_tokens": most}
        timed = Timed(model)
        answer = written(
            loaded, held, "Sort: Lima, Kyiv, Oslo", model=timed, draw=Draw(temp=draw.choice([0.0, 2.0])), **options
        )
        assert schema_rates.valid(form, answer.text), (options, answer.text)
        assert len(answer.tokens) <= most and timed.seconds <= max(2, deadline)
        reasons.add((mode, answer.finish_reason))
    assert {("diffusion", "deadline"), ("ar", "deadline")} <= reasons


@pytest.mark.slow
def test_by_a_deadline_a_template_is_finished(loaded):
    held = language_of(loaded, template("Dear {name},\nyou are {age:integer} and {mood:glad|sad}.\n"))
    for mode, deadline in (("diffusion", 0.5), ("diffusion", 7), ("ar", 0.5), ("ar", 30)):
        answer = written(loaded, held, model=Timed(loaded[0]), mode=mode, deadline=deadline)
        assert answer.finish_reason == "deadline"
        assert re.fullmatch(r"Dear .+,\nyou are -?\d+ and (glad|sad)\.\n", answer.text), answer.text


@pytest.mark.parametrize("form", [PERSON, pytest.param(LISTS, marks=pytest.mark.slow)], ids=["person", "lists"])
@pytest.mark.parametrize("mode", ["diffusion", pytest.param("ar", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spare", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_cut_by_max_tokens_it_is_a_document(loaded, form, mode, spare):
    """Whatever the model would go on to write: it ends in time."""
    held, few = language_of(loaded, automaton(form)), replace(loaded[2], max_denoising_steps=3)
    most = int(held.lattice.left[0]) + spare
    answer = written(loaded, held, mode=mode, max_tokens=most, sampling=few, draw=Draw(temp=2.0))
    assert schema_rates.valid(form, answer.text) and len(answer.tokens) <= most


# Verified.


@pytest.mark.parametrize("name", ["bpe, random", "bytes, random", "embedded"])
@pytest.mark.slow
def test_a_document_is_verified(models, name):
    model, _, sampling = loaded = models[name]
    held, repairs = language_of(loaded, automaton(LISTS)), 0
    few = replace(sampling, max_denoising_steps=3)
    for seed in range(RUNS):
        writing = begun(loaded, held, "Make some JSON", sampling=few, seed=seed, max_tokens=250, verify=True)
        steps = list(run(model, [writing]))
        answer = answer_of(loaded, steps, 250)
        assert schema_rates.valid(LISTS, answer.text), answer.text
        notes = [step for step in steps if step.note]
        assert len(notes) == writing.check.repairs and not any(step.final for step in notes)
        repairs += writing.check.repairs
    assert repairs


def test_what_verify_repairs_is_right(loaded):
    hasty = replace(loaded[2], max_denoising_steps=2)
    three = language_of(loaded, template("{first}, {second}, {rest}"))
    options = {"prompt": "Reverse: coder, Tess, Cairo, chef", "sampling": hasty}
    plain, checked = (
        written(loaded, three, model=Slipping(loaded[0], 7), verify=verify, **options) for verify in (False, True)
    )
    assert plain.text == "chef, Cbiro, Tess, coder" and checked.text == "chef, Cairo, Tess, coder"
    assert checked.notes and all("written again from token" in note for note in checked.notes)


@pytest.mark.parametrize("deadline", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 9))])
def test_verified_by_a_deadline(loaded, deadline):
    held = language_of(loaded, automaton(LISTS))
    options = {"verify": True, "deadline": deadline, "max_tokens": 250}
    answer = written(loaded, held, model=Timed(loaded[0]), prompt="Make some JSON", **options)
    assert schema_rates.valid(LISTS, answer.text), answer.text
