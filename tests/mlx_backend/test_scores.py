"""Scores of a text are made some tokens at a time."""

import numpy as np
import pytest

from mlx_dgemma.load import load
from mlx_dgemma.mlx_backend import model as module
from mlx_dgemma.seam.model import Text


@pytest.mark.parametrize("pieces", [[1], [8], [9, 20], [33, 1, 6]])
def test_scores_in_parts_are_those_of_the_whole(monkeypatch, pieces):
    model, rng = load()[0], np.random.default_rng(0)
    texts = [Text(rng.integers(288, size=n)) for n in pieces]
    found = []
    for scored in (8, 1000):
        monkeypatch.setattr(module, "SCORED", scored)
        cache = model.new_cache()
        found.append([model.encode([text], [cache], score=True)[0] for text in texts])
    for part, whole in zip(*found, strict=True):
        assert np.array_equal(part.argmax, whole.argmax)
        assert np.allclose(part.logprob, whole.logprob, atol=1e-5, equal_nan=True)
        assert np.allclose(part.top, whole.top, atol=1e-5)
    assert np.isnan(found[0][0].logprob[0]) and np.isfinite(np.concatenate([p.logprob for p in found[0]])[1:]).all()


def test_few_logits_are_at_hand(monkeypatch):
    """Of 256 tokens they would be 256 times as many numbers as the vocabulary has tokens."""
    model, sizes = load()[0], []
    head = module.head
    monkeypatch.setattr(module, "head", lambda table, x, cap: sizes.append(len(x)) or head(table, x, cap))
    model.encode([Text(np.arange(200) % 288)], [model.new_cache()], score=True)
    assert max(sizes) == module.SCORED == 64 and sum(sizes) == 200
