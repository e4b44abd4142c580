"""Many texts at once: each is the same as alone, and joins and leaves between any two passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import checkpoints
import numpy as np
import pytest
from fakes import FakeModel, facts
from scripted import Timed

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.mlx_backend import threads
from mlx_dgemma.mlx_backend.layers import ExpertLinear
from mlx_dgemma.seam.model import Draw, Text
from mlx_dgemma.writing import batch
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import Batch, InProgress, run
from mlx_dgemma.writing.diffuse import begin, diffuse
from mlx_dgemma.writing.route import Pace, Route
from mlx_dgemma.writing.sampling import Sampling

ONE, STOP = [2] * 8, [4, 4, 1, 5, 5, 5, 5, 5]
SETTLING = [(ONE, [7]), (ONE, []), (STOP, []), (STOP, [])]  # two blocks of two passes
FEW = Ask(sampling=Sampling(max_denoising_steps=3), max_tokens=40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = checkpoints.config(layer_types=["sliding_attention", "full_attention"])
    folder = checkpoints.write(tmp_path_factory.mktemp("model"), config, checkpoints.weights(config, seed=5, peaked=10))
    return load_model(
        Checkpoint(folder, parse_config(config, checkpoints.generation_config(eos_token_id=[7]))), "mlx", "float32"
    )


def tokens_of(seed: int, length: int) -> Text:
    return Text(np.random.default_rng(seed).integers(96, size=length))


def mixed(model) -> list[InProgress]:
    """Short and long prompts; denoised, checked, left to right with two draws, and of two minds."""
    drawn, few = Draw(temp=1.0), FEW.sampling
    return [
        begin(model, tokens_of(0, 60), FEW, request=0),
        begin(model, tokens_of(1, 5), replace(FEW, mode="ar"), request=1),
        begin(model, tokens_of(2, 33), replace(FEW, mode="ar", seed=2), request=2),
        begin(model, tokens_of(3, 9), replace(FEW, mode="ar", draw=drawn, seed=3, max_tokens=15), request=3),
        begin(model, tokens_of(4, 20), replace(FEW, verify=True, seed=4), request=4),
        Route(model, tokens_of(5, 25), 40, few, Draw(), np.random.default_rng(5), request=5, pace=Pace(1.0, 0.05)),
        Route(model, tokens_of(6, 4), 70, few, drawn, np.random.default_rng(6), request=6, pace=Pace(1.0, 0.2)),
        begin(model, tokens_of(7, 90), replace(FEW, seed=7), request=7),
    ]


def same(step, other) -> None:
    assert (step.block, step.step, step.final, step.reason, step.note) == (
        other.block, other.step, other.final, other.reason, other.note,
    )  # fmt: skip
    assert np.array_equal(step.canvas, other.canvas) and np.array_equal(step.draft, other.draft)
    assert np.array_equal(step.entropy, other.entropy)


@pytest.mark.slow
def test_eight_rows_write_what_each_writes_alone(model):
    prompts = [tokens_of(n, n) for n in (1, 5, 16, 23, 24, 40, 60, 90)]
    asks = [Ask(max_tokens=16 * (1 + n % 3), sampling=Sampling(max_denoising_steps=5), seed=n) for n in range(8)]
    alone = [list(diffuse(model, prompt.tokens, ask)) for prompt, ask in zip(prompts, asks, strict=True)]
    texts = (begin(model, p, ask, request=n) for n, (p, ask) in enumerate(zip(prompts, asks, strict=True)))
    together = list(run(model, texts, 8))
    for number, steps in enumerate(alone):
        for pair in zip([step for step in together if step.request == number], steps, strict=True):
            same(*pair)


def test_products_of_a_pass_do_not_grow_with_its_rows(model, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 1)  # a CPU's rows go over several
    calls = []
    product = ExpertLinear._gathered  # of those sorted by expert and of those that are not
    monkeypatch.setattr(ExpertLinear, "_gathered", lambda self, *a: (calls.append(1), product(self, *a))[1])
    counts = []
    for size in (1, 8):
        calls.clear()
        ask = Ask(max_tokens=16, sampling=Sampling(max_denoising_steps=1))
        list(run(model, [begin(model, Text([3, 4, n]), ask) for n in range(size)], size))
        counts.append(len(calls))
    # Gate-and-up and down in each of two layers. The draw needs no second look: this vocabulary is one block.
    assert counts == [4, 4]


def test_a_late_row_joins_while_another_is_in_the_middle():
    model = FakeModel(SETTLING)
    asked = []

    def texts() -> Iterator[InProgress]:
        for number in range(3):
            asked.append(len(model.rows))
            yield begin(model, Text([9]), Ask(max_tokens=8 if number == 0 else 16), request=number)

    steps = [(s.request, s.block, s.step) for s in run(model, texts(), 2)]
    assert steps == [
        (0, 0, 0), (1, 0, 0),
        (0, 0, 1), (1, 0, 1),
        (1, 1, 0), (2, 0, 0),  # 0 is done after one block; 2 takes its place
        (1, 1, 1), (2, 0, 1),
        (2, 1, 0), (2, 1, 1),
    ]  # fmt: skip
    assert asked == [0, 0, 4]  # the third was asked for only when there was room


def test_a_step_arrives_before_the_next_pass():
    model = FakeModel(SETTLING)
    running = run(model, (begin(model, Text([9]), Ask(), request=n) for n in range(2)), 2)
    next(running), next(running)
    assert len(model.rows) == 2
    next(running)
    assert len(model.rows) == 4


def test_no_call_has_more_rows_than_the_size():
    model = FakeModel(SETTLING)
    several = Batch(model, 2)
    for number in range(5):
        several.add(begin(model, Text([9]), Ask(), request=number))
    assert [step.request for step in several.steps()] == [0, 1, 2, 3, 4] and model.calls == [2, 2, 1]


def test_a_long_prompt_is_read_in_pieces_while_others_get_their_passes(monkeypatch):
    monkeypatch.setattr(batch, "PIECE", 8)
    model = FakeModel(SETTLING)
    several, long = Batch(model), list(range(10, 30))
    texts = [begin(model, Text(tokens), Ask(), request=i) for i, tokens in enumerate([[9], long, long[:9]])]
    texts.append(begin(model, Text([*long, 30, 31]), Ask(mode="ar", max_tokens=2), request=3))
    for text in texts:
        several.add(text)
    assert several.reading == texts[1:]
    assert [[step.request for step in several.steps()] for _ in range(3)] == [[0], [0, 2], [0, 1, 2, 3]]
    # All pieces of a step are in one call, and what is left is encoded by the first pass.
    assert model.encoded == [[long[:8], long[:8], long[:8]], [long[8:16], long[8:16]]] and several.reading == []
    assert [row.pending.tokens.tolist() for row in model.rows] == [[9], [], [18], ONE, long[16:], []]


@pytest.fixture(scope="module")
def alone(model) -> list[list]:
    """The steps of each of the `mixed` texts."""
    return [list(run(model, [text])) for text in mixed(model)]


def test_every_kind_of_text_is_the_same_in_company(model, alone):
    together = list(run(model, mixed(model), 8))
    for number, steps in enumerate(alone):
        for pair in zip([step for step in together if step.request == number], steps, strict=True):
            same(*pair)
    widths = [{len(step.canvas) for step in steps} for steps in alone]
    assert {1} in widths and {16} in widths and any({1, 16} <= one for one in widths)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 8])
def test_every_kind_of_text_is_the_same_whenever_it_joins_and_however_it_is_read(model, monkeypatch, size):
    """Prompts are read in pieces of 8 tokens, alone, too, and a text joins after every second pass."""
    monkeypatch.setattr(batch, "PIECE", 8)
    alone = [list(run(model, [text])) for text in mixed(model)]
    several, waiting, together = Batch(model, size), mixed(model), []
    for number in range(10_000):
        if number % 2 == 0 and waiting:
            several.add(waiting.pop())
        if not (several.texts or waiting):
            break
        together += several.steps()
    for number, steps in enumerate(alone):
        for pair in zip([step for step in together if step.request == number], steps, strict=True):
            same(*pair)


@pytest.mark.parametrize("gone", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3, 6))])
def test_one_that_is_cancelled_leaves_the_others_as_they_were(model, alone, gone):
    several, texts, together = Batch(model, 8), mixed(model), []
    for text in texts:
        several.add(text)
    for number in range(10_000):
        if number == 5 and texts[gone] in several.texts:
            several.cancel(texts[gone])
        if not several.texts:
            break
        together += several.steps()
    for number in range(8):
        steps = [step for step in together if step.request == number]
        for pair in zip(steps, alone[number], strict=number != gone):
            same(*pair)


def test_the_cache_of_a_cancelled_text_holds_what_was_encoded_of_it(model):
    several, cancelled = Batch(model), mixed(model)[1]
    several.add(cancelled)
    steps = [next(several.steps()) for _ in range(5)]
    several.cancel(cancelled)
    text = [*tokens_of(1, 5).tokens, *(int(step.draft[0]) for step in steps)]
    assert cancelled.cache.length == len(text) and several.texts == [] and several.step() == {}
    other = model.new_cache()
    model.encode([Text(text)], [other])
    scores = [model.encode([Text([3, 4])], [cache], score=True)[0].logprob for cache in (cancelled.cache, other)]
    assert np.allclose(*scores, atol=1e-4)


def test_a_cancelled_text_whose_prompt_is_half_read(monkeypatch):
    monkeypatch.setattr(batch, "PIECE", 4)
    model = FakeModel(SETTLING)
    several, text = Batch(model), begin(model, Text(range(10, 20)), Ask())
    several.add(text)
    several.step()
    several.close()
    assert text.cache.tokens == [10, 11, 12, 13] and several.texts == []


def test_a_text_goes_on_where_another_leaves_its_stream():
    """Left to right, with limits of 2 and 5 tokens."""
    model = FakeModel(SETTLING, facts(stop_ids=(49,)))
    texts = [begin(model, Text([9 + 10 * n]), Ask(mode="ar", max_tokens=m), request=n) for n, m in enumerate([2, 5])]
    steps = list(run(model, texts, 2))
    assert [step.draft.tolist() for step in steps if step.request == 1] == [[20], [21], [22], [23], [24]]
    assert [(step.request, step.reason) for step in steps if step.reason] == [(0, "length"), (1, "length")]
    assert [text.cache.tokens for text in texts] == [[9, 10, 11], [19, 20, 21, 22, 23, 24]]


def test_each_text_has_a_deadline_of_its_own(model):
    """Passes take a second; a text that has ended takes no time of the others."""
    timed = Timed(model)
    sampling = Sampling(max_denoising_steps=40, confidence_threshold=1e-9)
    texts = [
        begin(timed, tokens_of(n, 5), Ask(sampling=sampling, deadline=deadline), request=n)
        for n, deadline in enumerate([2.5, 7.5, None])
    ]
    counts, reasons = [0, 0, 0], [None, None, None]
    for step in run(timed, texts, 3):
        counts[step.request] += 1
        reasons[step.request] = step.reason or reasons[step.request]
        if step.request == 2 and counts[2] == 12:
            break
    assert counts == [2, 7, 12] and reasons == ["deadline", "deadline", None]


def test_no_stream_stays_open_where_a_pass_fails():
    """A text of two minds has just left its stream when that of another draw fails."""
    opened, closed = [], []

    class Failing(FakeModel):
        def autoregress(self, continuations, draw):
            opened.append(draw)
            try:
                for number, tokens in enumerate(super().autoregress(continuations, draw)):
                    if draw.temp and number == 7:
                        raise KeyboardInterrupt
                    yield tokens
            finally:
                closed.append(draw)

    model, rng = Failing(SETTLING, facts(stop_ids=(49,))), np.random.default_rng(0)
    several = Batch(model)
    several.add(Route(model, Text([9]), 16, Sampling(), Draw(), rng, pace=Pace(1.0, 0.125)))
    several.add(begin(model, Text([9]), Ask(mode="ar", draw=Draw(temp=1.0))))
    with pytest.raises(KeyboardInterrupt):
        for _ in range(9):
            several.step()
    several.close()
    assert opened == closed[::-1] == [Draw(), Draw(temp=1.0)]


@pytest.mark.parametrize("where", ["row", "take", "continuation"])
@pytest.mark.sample(1)
def test_an_error_of_one_text_leaves_the_others_as_they_were(model, alone, monkeypatch, where):
    several, texts = Batch(model, 8), mixed(model)
    broken = texts[2] if where == "continuation" else texts[7]
    kept, calls = getattr(broken, where), []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) >= 2 or where == "continuation":
            raise LookupError("lost")
        return kept(*arguments)

    monkeypatch.setattr(broken, where, fails)
    for text in texts:
        several.add(text)
    together, failed = [], {}
    while several.texts:
        together += several.step().values()
        failed |= several.failed
    assert list(failed) == [broken] and str(failed[broken]) == "lost"
    for number, steps in enumerate(alone):
        if texts[number] is not broken:
            for pair in zip([step for step in together if step.request == number], steps, strict=True):
                same(*pair)
    with pytest.raises(LookupError):  # alone, the error is raised
        list(run(model, [broken]))


def test_an_error_of_a_pass_ends_the_texts_that_are_in_it():
    class Failing(FakeModel):
        def denoise(self, rows):
            if len(self.calls) == 1:
                self.calls.append(0)
                raise MemoryError("too large")
            return super().denoise(rows)

    model = Failing(SETTLING)
    several = Batch(model, 2)
    for number in range(3):
        several.add(begin(model, Text([9]), Ask(), request=number))
    assert [step.request for step in several.step().values()] == [0, 1] and len(several.failed) == 1
    assert [step.request for step in several.step().values()] == [0, 1] and not several.failed
