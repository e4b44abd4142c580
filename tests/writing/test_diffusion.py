"""The loop, on a model without weights."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeConfig, FakeModel

from mlx_dgemma.errors import Mistake
from mlx_dgemma.writing.blocks import Given, Open
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.writing import Writing, diffuse, steps

ONE, TWO, STOP = [2] * 8, [3] * 8, [4, 4, 1, 5, 5, 5, 5, 5]
SETTLING = [(ONE, [7]), (ONE, []), (TWO, [6, 7]), (TWO, []), (STOP, []), (STOP, [])]


def test_blocks_follow_until_a_stop_token():
    model = FakeModel(SETTLING)
    steps = list(diffuse(model, [9, 9], sampling=Sampling()))
    assert [(s.block, s.step, s.final, s.reason) for s in steps] == [
        (0, 0, False, None),
        (0, 1, True, None),
        (1, 0, False, None),
        (1, 1, True, None),
        (2, 0, False, None),
        (2, 1, True, "stop"),
    ]
    assert steps[-1].draft.tolist() == STOP  # not cut: that happens above


def test_a_block_is_encoded_with_the_next_and_not_after_the_last():
    model = FakeModel(SETTLING)
    list(diffuse(model, [9, 9], sampling=Sampling()))
    assert [list(row.pending) for row in model.rows] == [[9, 9], [], ONE, [], TWO, []]
    assert model.caches[0].tokens == [9, 9, *ONE, *TWO]


def test_self_conditioning_goes_from_pass_to_pass_and_not_from_block_to_block():
    model = FakeModel(SETTLING)
    list(diffuse(model, [9], sampling=Sampling()))
    given = [row.self_conditioning for row in model.rows]
    assert given == [None, "after pass 1", None, "after pass 3", None, "after pass 5"]


def test_all_randomness_is_one_stream_in_one_order():
    model = FakeModel(SETTLING)
    steps = list(diffuse(model, [9], sampling=Sampling(), seed=4))
    rng = np.random.default_rng(4)
    for block in range(3):
        canvas = rng.integers(50, size=8)
        for step in (0, 1):
            row = model.rows[2 * block + step]
            assert np.array_equal(row.canvas, canvas)
            assert np.array_equal(row.uniforms, rng.random(8, dtype=np.float32)) and row.uniforms.dtype == np.float32
            noise = rng.integers(50, size=8)  # drawn after the last step, too
            said = steps[2 * block + step]
            canvas = np.where(said.accepted, said.draft, noise)
            assert np.array_equal(said.canvas, canvas)


def test_a_step_arrives_before_the_next_pass_is_computed():
    model = FakeModel(SETTLING)
    running = diffuse(model, [9], sampling=Sampling())
    for passes in (1, 2, 3):
        next(running)
        assert len(model.rows) == passes


def test_temperature_falls_from_t_max():
    model = FakeModel([(ONE, list(range(8)))])
    steps = list(diffuse(model, [9], max_tokens=8, sampling=Sampling(max_denoising_steps=4)))
    assert [row.temperature for row in model.rows] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert [(s.final, s.reason) for s in steps] == [(False, None)] * 3 + [(True, "length")]


@pytest.mark.parametrize(("max_tokens", "blocks"), [(1, 1), (8, 1), (9, 2), (17, 3)])
def test_whole_canvases_cover_max_tokens(max_tokens, blocks):
    steps = list(diffuse(FakeModel([(ONE, [])]), [9], max_tokens=max_tokens, sampling=Sampling()))
    assert (steps[-1].block + 1, steps[-1].reason) == (blocks, "length")


def test_blocks_end_where_the_context_does():
    model = FakeModel([(ONE, [])], FakeConfig(max_position_embeddings=20))
    steps = list(diffuse(model, [9, 9, 9], sampling=Sampling()))
    assert (steps[-1].block, steps[-1].reason) == (1, "length")


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "message"),
    [
        ([], 5, "prompt is empty"),
        ([9], 0, "max_tokens >= 1, got 0"),
        ([9] * 993, 5, "longer than the context: 993 tokens"),
    ],
)
def test_nothing_to_write(tokens, max_tokens, message):
    model = FakeModel([(ONE, [])])
    with pytest.raises(ValueError, match=message):
        next(diffuse(model, tokens, max_tokens=max_tokens, sampling=Sampling()))
    assert not model.rows


@pytest.mark.parametrize("asked, left, widths", [
    (None, 9, [8, 8]), (4, 9, [4, 4, 4]), ("auto", 9, [8, 2]), ("auto", 2, [2]), ("auto", 4, [4]), ("auto", 11, [8, 4]),
])  # fmt: skip
def test_the_width_of_a_canvas(asked, left, widths):
    layout = Open(FakeConfig(), 1000, left, asked)
    found = [layout.first()]
    while isinstance(following := layout.after(np.full(len(found[-1].tokens), 5)), Given):
        found.append(following)
    assert [len(given.tokens) for given in found] == widths and following == "length"


def test_a_canvas_wider_than_the_models_is_refused():
    with pytest.raises(Mistake, match="canvas_length <= 8, the model's, got 9"):
        next(diffuse(FakeModel(SETTLING), [9], sampling=Sampling(canvas_length=9)))


class Once:
    """A layout of one block."""

    def __init__(self, given: Given):
        self.given = given

    def first(self) -> Given:
        return self.given

    def after(self, draft: np.ndarray) -> str:
        return "stop"


def test_what_is_fixed_stays_is_known_from_the_first_pass_on_and_counts_for_nothing():
    fixed = np.arange(8) >= 6
    given = Given(tokens=np.where(fixed, [0] * 6 + [30, 31], -1), fixed=fixed)
    model = FakeModel([([2] * 6 + [30, 31], [0, 7]), ([2] * 6 + [30, 31], [7]), ([2] * 6 + [30, 31], [7])])
    writing = Writing(model, [9], sampling=Sampling(), layout=Once(given))
    said = list(steps(model, writing))
    assert all(step.canvas[6:].tolist() == [30, 31] and step.accepted[6:].all() for step in said)
    assert [row.hint if row.hint is None else row.hint.tolist() for row in model.rows] == [[-1] * 6 + [30, 31], None]
    # Position 7 is unsure, and fixed: it neither takes from the budget nor keeps the block from settling.
    assert said[0].accepted.tolist() == [True] * 8 and len(said) == 2


def test_what_is_given_is_where_the_canvas_starts_from():
    given = Given(tokens=np.array([5, 6, -1, -1, 7, 8, 9, 10]), hint=np.array([5, -1, -1, -1, -1, -1, -1, -1]))
    model = FakeModel(SETTLING)
    writing = Writing(model, [9], sampling=Sampling(), layout=Once(given), seed=3)
    list(steps(model, writing))
    noise = np.random.default_rng(3).integers(50, size=8)
    assert model.rows[0].canvas.tolist() == [5, 6, noise[2], noise[3], 7, 8, 9, 10]
    assert model.rows[0].hint is given.hint and model.rows[0].fixed is None


@pytest.mark.parametrize("sampler", ["confidence-threshold", "scheduled"])
def test_a_sampler_hears_what_was_accepted_and_which_pass_it_is(sampler):
    model = FakeModel([(ONE, [3, 7])] * 9)
    said = list(diffuse(model, [9], max_tokens=8, sampling=Sampling(sampler=sampler, max_denoising_steps=4)))
    found = [step.accepted.sum() for step in said]
    assert found == ([6, 7, 8, 8] if sampler == "confidence-threshold" else [2, 4, 6, 8])


class Again(Open):
    """Every block is cut after three tokens, but the second draft is thrown away."""

    drafts = 0

    def after(self, draft: np.ndarray) -> Given | str:
        self.drafts += 1
        if self.drafts == 2:
            return Given(tokens=np.full(8, -1), said=0, note="again")
        following = super().after(draft[:3])
        return following if isinstance(following, str) else Given(tokens=following.tokens, said=3)


def test_a_block_is_cut_or_written_again():
    model = FakeModel([(ONE, [])] * 20)
    layout = Again(model.config, 1000, 9)
    writing = Writing(model, [9], sampling=Sampling(), layout=layout)
    said = list(steps(model, writing))
    blocks = [(step.block, step.step, len(step.canvas), len(step.draft), step.final, step.note) for step in said]
    assert blocks == [
        (0, 0, 8, 8, False, None), (0, 1, 8, 3, True, None),
        (1, 0, 8, 8, False, None), (1, 1, 8, 8, False, "again"),
        (1, 2, 8, 8, False, None), (1, 3, 8, 3, True, None),
        (2, 0, 8, 8, False, None), (2, 1, 8, 8, True, None),
    ]  # fmt: skip
    assert said[-1].reason == "length"
    assert model.caches[0].tokens == [9, *ONE[:3], *ONE[:3]]
    # A draft that is thrown away leaves nothing behind but the schedule's first step.
    assert [row.temperature for row in model.rows][4] == model.rows[0].temperature
    assert model.rows[4].self_conditioning is None


def test_a_deadline(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("mlx_dgemma.writing.clock.time.perf_counter", lambda: now[0])
    model = FakeModel([(ONE, list(range(8)))])
    said = []
    for step in diffuse(model, [9], sampling=Sampling(deadline=5.0)):
        said.append(step)
        now[0] += 1.5
    # Told at 100, 101.5, 103; another pass of 1.5 would end at 104.5, and one more too late.
    assert [step.reason for step in said] == [None, None, None, "deadline"] and said[-1].final
    assert said[-1].draft.tolist() == ONE
