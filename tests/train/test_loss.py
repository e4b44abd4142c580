"""The loss of a batch by its formula, in float64 over the whole vocabulary, for each variant that has a name."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_dgemma.seam.model import Facts
from mlx_dgemma.train.loss import VARIANTS, Example, Recipe, loss_of, noised

FACTS = Facts(vocab_size=50, canvas_length=8, max_position_embeddings=100, stop_ids=(1,), pad_id=0)


class NumPyPasses:
    """`seam.learning.Passes` whose hidden states are the logits."""

    def __init__(self, texts: np.ndarray, canvases: np.ndarray):
        self.texts, self.canvases, self.which = texts, canvases, None

    def array(self, values):
        return values

    def soft(self, canvases):
        return len(canvases.starts)

    def hidden(self, canvases, soft, which):
        assert soft == (which.sum() or None)
        return self.texts, self.canvases

    def logsumexp(self, hidden):
        return np.log(np.exp(hidden).sum(axis=-1))

    def logits_at(self, hidden, ids):
        return hidden[np.arange(len(ids)), ids]

    def logaddexp(self, a, b):
        return np.logaddexp(a, b)


def cross_entropy(logits: np.ndarray, target: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[target])


def expected(logits: np.ndarray, clean: int, present: int, t: float, variant: str) -> float:
    """Of one position. loo, arXiv 2605.22765: with alpha = 1 - t of the tokens kept, the token that stands there is
    1 + V alpha / (1 - alpha) times as likely as what the network says of it; reweighted: 1 / t of the plain loss."""
    logits = logits.copy()
    if variant == "loo":
        logits[present] += np.log(1 + FACTS.vocab_size * (1 - t) / t)
    return cross_entropy(logits, clean) / (t if variant == "reweighted" else 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_loss_is_its_formula(variant, weight):
    rng = np.random.default_rng(3)
    examples = [Example(*(rng.integers(2, 50, size=n).astype(np.int32) for n in sizes)) for sizes in ((3, 5), (4, 20))]
    recipe = Recipe(variant=variant, t_one=0.0, t_min=0.05, encoder_weight=weight)
    drawn = noised(examples * 4, FACTS, 1, recipe, rng)
    texts, canvases = (rng.normal(0, 2, (n, 50)) for n in (4 * 32, len(drawn.clean)))
    total, decoder, encoder = loss_of(drawn, FACTS, recipe)(NumPyPasses(texts, canvases))
    present = drawn.canvases.tokens.ravel()
    assert (present == drawn.clean).any() and (present != drawn.clean).any()
    t = np.repeat(drawn.t.astype(np.float64), 8)
    each = [expected(z, *rest, variant) for z, *rest in zip(canvases, drawn.clean, present, t, strict=True)]
    assert decoder == pytest.approx(np.mean(each), rel=1e-6)
    following, at = [], 0
    for example in examples * 4:
        ends = range(len(example.prompt) - 1, example.length - 1)  # of the answer alone
        whole = [*example.prompt, *example.answer]
        following += [cross_entropy(texts[at + i], whole[i + 1]) for i in ends]
        at += example.length
    assert encoder == pytest.approx(np.mean(following), rel=1e-6)
    assert total == pytest.approx(decoder + weight * encoder, rel=1e-6)
