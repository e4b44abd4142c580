"""What a validation says a model can do."""

from __future__ import annotations

import random

import pytest

from mlx_dgemma.load import load
from mlx_dgemma.tiny.tasks import TASKS
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.train.data import Encoder
from mlx_dgemma.train.validate import skill
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.diffuse import diffuse


@pytest.mark.sample(1)
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_left_to_right_is_what_would_be_written(backend):
    """One pass over an answer tells what a pass for each of its tokens would write."""
    model, tokenizer, sampling = load(None, backend)
    encoder, numbers, found = Encoder(tokenizer, model.facts, 2048), random.Random(5), []
    for prompt, right in (TASKS["sort"](numbers) for _ in range(2)):
        answer = Answer(model.facts, tokenizer, 64)
        for step in diffuse(model, prompt_tokens(tokenizer, prompt), Ask(max_tokens=64, mode="ar")):
            answer.add(step)
        for expected in (right, right[:-1] + "?"):
            example = encoder.example({"prompt": prompt, "completion": expected})
            found.append((skill(model, encoder, [example], sampling).left_to_right, answer.text == expected))
    assert all(share == written for share, written in found) and len({written for _, written in found}) == 2
