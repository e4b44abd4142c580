"""A writing within a language: what is held, and what it shares with every other writing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import schema_rates

from mlx_dgemma import load
from mlx_dgemma.forms import language as constrained
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.expression import Repeat, Text, series
from mlx_dgemma.writing.answer import Answer, prompt_tokens
from mlx_dgemma.writing.batch import batch
from mlx_dgemma.writing.writing import steps

PROMPT = "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old."
DOCUMENT = '{"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}'


@pytest.fixture(scope="module")
def loaded():
    return load()


@pytest.fixture(scope="module")
def language(loaded):
    return constrained.Language(*loaded[:2], schema.language(schema_rates.TASK))


def begun(loaded, language, prompt=PROMPT, **options):
    model, tokenizer, sampling = loaded
    options = {"max_tokens": 64, "sampling": sampling, "seed": 0} | options
    return constrained.begin(model, prompt_tokens(tokenizer, prompt), language=language, **options)


def text_of(loaded, found) -> str:
    answer = Answer(loaded[0].config, loaded[1], 10_000)
    for step in found:
        answer.add(step)
    return answer.text


def test_every_draft_is_a_document(loaded, language):
    model, tokenizer, _ = loaded
    for step in steps(model, begun(loaded, language, "Sort: Lima, Kyiv, Oslo", seed=3)):
        stop = np.flatnonzero(np.isin(step.draft, model.config.stop_ids))[0]
        assert schema_rates.valid(schema_rates.TASK, tokenizer.decode(step.draft[:stop].tolist()))


def test_the_skeleton_is_fixed_where_the_draft_has_it(loaded, language):
    model, tokenizer, _ = loaded
    writing = begun(loaded, language)
    first = writing.row()
    assert tokenizer.decode(first.canvas[first.fixed].tolist()) == '{"name": "'
    assert (first.hint[first.fixed] == first.canvas[first.fixed]).all()
    while not writing.done:
        row = writing.row()
        step = writing.take(model.denoise([row])[0])
        assert (step.draft[row.fixed] == row.canvas[row.fixed]).all()
    skeleton = tokenizer.decode(row.canvas[row.fixed].tolist())
    for run in ('{"name": "', ' "age":', ' "job": "', ' "city": "', "}"):  # a string's end is a choice, so free
        assert run in skeleton
    assert "Ivan" not in skeleton and "43" not in skeleton
    assert tokenizer.decode(step.draft.tolist()).startswith(DOCUMENT)


def test_a_position_hears_only_what_may_stand_there(loaded, language):
    model, tokenizer, _ = loaded
    numbers = constrained.Language(model, tokenizer, series("n = ", Repeat(Text("7"), 1), "!"))
    row = begun(loaded, numbers, max_tokens=9).row()
    slot = int(np.argmin(row.fixed))
    prediction = model.denoise([row])[0]
    allowed = numbers.ids[int(row.allowed[slot])]
    assert {tokenizer.decode([token]) for token in allowed} == {"7", "!"} and prediction.argmax[slot] in allowed
    assert len(prediction.allowed_logprobs[slot]) == 2


def test_alone_and_in_company_and_again(loaded, language):
    prompts = [PROMPT, "Extract JSON: In Oslo lives Zoe, a vet aged 31.", "Reverse: Perth, Noor, Delhi"]
    alone = [text_of(loaded, steps(loaded[0], begun(loaded, language, p, seed=i))) for i, p in enumerate(prompts)]
    again = [begun(loaded, language, p, seed=i, request=i) for i, p in enumerate(prompts)]
    company = list(batch(loaded[0], again, 2))
    assert alone == [text_of(loaded, (s for s in company if s.request == i)) for i in range(3)]
    assert alone[0] == DOCUMENT


def test_a_long_document_spans_blocks(loaded):
    model, tokenizer, sampling = loaded
    items = {"type": "string", "minLength": 30, "maxLength": 40}
    made = {"type": "array", "items": items, "minItems": 3, "maxItems": 3}
    language = constrained.Language(model, tokenizer, schema.language(made))
    few = replace(sampling, max_denoising_steps=2)
    found = list(steps(model, begun(loaded, language, sampling=few, max_tokens=250)))
    assert found[-1].block >= 1 and found[-1].reason == "stop"
    assert schema_rates.valid(made, text_of(loaded, found))


def test_a_narrow_canvas(loaded, language):
    few = replace(loaded[2], canvas_length=16, max_denoising_steps=4)
    text = text_of(loaded, steps(loaded[0], begun(loaded, language, sampling=few, max_tokens=128)))
    assert schema_rates.valid(schema_rates.TASK, text) and json.loads(text)["name"]
