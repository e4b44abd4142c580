"""The loop, on a model without weights."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FACTS, FakeModel, facts

from mlx_dgemma.errors import Mistake
from mlx_dgemma.seam.model import Text
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.blocks import Block, Open, Single
from mlx_dgemma.writing.diffuse import diffuse
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.writing import Writing

ONE, TWO, STOP = [2] * 8, [3] * 8, [4, 4, 1, 5, 5, 5, 5, 5]
SETTLING = [(ONE, [7]), (ONE, []), (TWO, [6, 7]), (TWO, []), (STOP, []), (STOP, [])]


def steps_of(model, layout, seed: int = 0) -> list:
    return list(run(model, [Writing(model, Text([9]), layout, Sampling(), np.random.default_rng(seed))]))


def test_blocks_follow_until_a_stop_token():
    model = FakeModel(SETTLING)
    steps = list(diffuse(model, [9, 9], Ask()))
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
    list(diffuse(model, [9, 9], Ask()))
    assert [row.pending.tokens.tolist() for row in model.rows] == [[9, 9], [], ONE, [], TWO, []]
    assert model.caches[0].tokens == [9, 9, *ONE, *TWO]


def test_self_conditioning_goes_from_pass_to_pass_and_not_from_block_to_block():
    model = FakeModel(SETTLING)
    list(diffuse(model, [9], Ask()))
    conditioning = [row.self_conditioning for row in model.rows]
    assert conditioning == [None, "after pass 1", None, "after pass 3", None, "after pass 5"]


def test_all_randomness_is_one_stream_in_one_order():
    model = FakeModel(SETTLING)
    steps = list(diffuse(model, [9], Ask(seed=4)))
    rng = np.random.default_rng(4)
    for block in range(3):
        canvas = rng.integers(50, size=8)
        for number in (0, 1):
            row = model.rows[2 * block + number]
            assert np.array_equal(row.canvas, canvas)
            assert np.array_equal(row.uniforms, rng.random(8, dtype=np.float32)) and row.uniforms.dtype == np.float32
            noise = rng.integers(50, size=8)  # drawn after the last step, too
            step = steps[2 * block + number]
            canvas = np.where(step.accepted, step.draft, noise)
            assert np.array_equal(step.canvas, canvas)


def test_a_step_arrives_before_the_next_pass_is_computed():
    model = FakeModel(SETTLING)
    running = diffuse(model, [9], Ask())
    for passes in (1, 2, 3):
        next(running)
        assert len(model.rows) == passes


def test_temperature_falls_from_t_max():
    model = FakeModel([(ONE, list(range(8)))])
    steps = list(diffuse(model, [9], Ask(max_tokens=8, sampling=Sampling(max_denoising_steps=4))))
    assert [row.temperature for row in model.rows] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert [(s.final, s.reason) for s in steps] == [(False, None)] * 3 + [(True, "length")]


@pytest.mark.parametrize(("max_tokens", "blocks"), [(1, 1), (8, 1), (9, 2), (17, 3)])
def test_whole_canvases_cover_max_tokens(max_tokens, blocks):
    steps = list(diffuse(FakeModel([(ONE, [])]), [9], Ask(max_tokens=max_tokens)))
    assert (steps[-1].block + 1, steps[-1].reason) == (blocks, "length")


def test_blocks_end_where_the_context_does():
    model = FakeModel([(ONE, [])], facts(max_position_embeddings=20))
    steps = list(diffuse(model, [9, 9, 9], Ask()))
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
    with pytest.raises(Mistake, match=message):
        next(diffuse(model, tokens, Ask(max_tokens=max_tokens)))
    assert not model.rows


@pytest.mark.parametrize("asked, left, widths", [
    (None, 9, [8, 8]), (4, 9, [4, 4, 4]), ("auto", 9, [8, 2]), ("auto", 2, [2]), ("auto", 4, [4]), ("auto", 11, [8, 4]),
])  # fmt: skip
def test_the_width_of_a_canvas(asked, left, widths):
    layout = Open(FACTS, 1000, left, asked)
    blocks = [layout.first()]
    while isinstance(after := layout.after(np.full(len(blocks[-1].tokens), 5)), Block):
        blocks.append(after)
    assert [len(block.tokens) for block in blocks] == widths and after == "length"


def test_a_canvas_wider_than_the_models_is_refused():
    with pytest.raises(Mistake, match="canvas_length <= 8, the model's, got 9"):
        next(diffuse(FakeModel(SETTLING), [9], Ask(sampling=Sampling(canvas_length=9))))


def test_what_is_fixed_stays_is_known_from_the_first_pass_on_and_counts_for_nothing():
    fixed = np.arange(8) >= 6
    block = Block(tokens=np.where(fixed, [0] * 6 + [30, 31], -1), fixed=fixed)
    model = FakeModel([([2] * 6 + [30, 31], [0, 7]), ([2] * 6 + [30, 31], [7]), ([2] * 6 + [30, 31], [7])])
    steps = steps_of(model, Single(block))
    assert all(step.canvas[6:].tolist() == [30, 31] and step.accepted[6:].all() for step in steps)
    assert [row.hint if row.hint is None else row.hint.tolist() for row in model.rows] == [[-1] * 6 + [30, 31], None]
    # Position 7 is unsure, and fixed: it neither takes from the budget nor keeps the block from settling.
    assert steps[0].accepted.tolist() == [True] * 8 and len(steps) == 2


def test_what_a_block_knows_is_where_the_canvas_starts_from():
    block = Block(tokens=np.array([5, 6, -1, -1, 7, 8, 9, 10]), hint=np.array([5, -1, -1, -1, -1, -1, -1, -1]))
    model = FakeModel(SETTLING)
    steps_of(model, Single(block), seed=3)
    noise = np.random.default_rng(3).integers(50, size=8)
    assert model.rows[0].canvas.tolist() == [5, 6, noise[2], noise[3], 7, 8, 9, 10]
    assert model.rows[0].hint is block.hint and model.rows[0].fixed is None


class Narrowing(Single):
    """A layout that fixes position 0 after the first pass."""

    def narrow(self, block: Block, accepted: np.ndarray, late: bool) -> Block:
        fixed = np.arange(8) < 1
        return Block(tokens=np.where(fixed, 40, -1), fixed=fixed)


def test_what_a_layout_fixes_on_the_way_is_free_no_more():
    """The next pass hears that it is certain, and it is no reason to go on. What was free before has to settle."""
    model = FakeModel([(ONE, [0]), ([40] + [2] * 7, [0]), ([40] + [2] * 7, [0])])
    steps = steps_of(model, Narrowing(Block(tokens=np.full(8, -1))))
    assert [row.fixed is None for row in model.rows] == [True, False] and len(steps) == 2
    assert model.rows[1].canvas[0] == 40 and model.rows[1].hint.tolist() == [40] + [-1] * 7
    moved = FakeModel([(ONE, [0]), ([40] + [3] * 7, [0]), ([40] + [3] * 7, [0])])
    assert len(steps_of(moved, Narrowing(Block(tokens=np.full(8, -1))))) == 3  # the others changed


@pytest.mark.parametrize("sampler", ["confidence-threshold", "scheduled"])
def test_a_sampler_hears_what_was_accepted_and_which_pass_it_is(sampler):
    model = FakeModel([(ONE, [3, 7])] * 9)
    sampling = Sampling(sampler=sampler, max_denoising_steps=4)
    counts = [step.accepted.sum() for step in diffuse(model, [9], Ask(max_tokens=8, sampling=sampling))]
    assert counts == ([6, 7, 8, 8] if sampler == "confidence-threshold" else [2, 4, 6, 8])


class Again(Open):
    """The second draft is thrown away."""

    drafts = 0

    def after(self, draft: np.ndarray) -> Block | str:
        self.drafts += 1
        if self.drafts == 2:
            return Block(tokens=np.full(8, -1), again=True, note="again")
        return super().after(draft)


def test_a_block_is_written_again():
    model = FakeModel([(ONE, [])] * 20)
    steps = steps_of(model, Again(FACTS, 1000, 24))
    blocks = [(step.block, step.step, len(step.canvas), len(step.draft), step.final, step.note) for step in steps]
    assert blocks == [
        (0, 0, 8, 8, False, None), (0, 1, 8, 8, True, None),
        (1, 0, 8, 8, False, None), (1, 1, 8, 8, False, "again"),
        (1, 2, 8, 8, False, None), (1, 3, 8, 8, True, None),
        (2, 0, 8, 8, False, None), (2, 1, 8, 8, True, None),
    ]  # fmt: skip
    assert steps[-1].reason == "length"
    assert model.caches[0].tokens == [9, *ONE, *ONE]
    # A draft that is thrown away leaves nothing behind but the schedule's first step.
    assert [row.temperature for row in model.rows][4] == model.rows[0].temperature
    assert model.rows[4].self_conditioning is None


def test_a_deadline():
    now = [100.0]
    model = FakeModel([(ONE, list(range(8)))], clock=lambda: now[0])
    steps = []
    for step in diffuse(model, [9], Ask(deadline=5.0)):
        steps.append(step)
        now[0] += 1.5
    # Asked at 100, 101.5, 103; another pass of 1.5 would end at 104.5, and one more too late.
    assert [step.reason for step in steps] == [None, None, None, "deadline"] and steps[-1].final
    assert steps[-1].draft.tolist() == ONE


def test_a_text_that_has_ended_by_the_deadline_has_stopped():
    model = FakeModel([(STOP, []), (STOP, [])], clock=iter(range(100)).__next__)
    steps = list(diffuse(model, [9], Ask(deadline=2.5)))
    assert [(step.final, step.reason) for step in steps] == [(False, None), (True, "stop")]
