"""The thread that owns the model: who is taken in, who leaves, what fails, and that company changes no text."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fakes import FakeModel, facts
from served import until

from mlx_dgemma import load
from mlx_dgemma.errors import Mistake
from mlx_dgemma.fill.held import Alphabet
from mlx_dgemma.fill.infill import Infill, fill_prompt
from mlx_dgemma.seam.model import Text
from mlx_dgemma.server.engine import Busy, Engine, Job, Stopping
from mlx_dgemma.server.prefixes import Prefixes, common
from mlx_dgemma.server.reply import Delta, Draft, Reply
from mlx_dgemma.server.tasks import Question, answer, fill_gaps
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.tokens.stops import Stops
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.diffuse import begin, diffuse
from mlx_dgemma.writing.task import complete

FOREVER = [([2] * 8, [7])]  # a canvas that does not settle


class Slow(FakeModel):
    """Its pass takes a while, and it knows in which thread it ran."""

    seconds = 0.01

    def denoise(self, rows):
        time.sleep(self.seconds)
        self.threads = {*vars(self).get("threads", ()), threading.current_thread().name}
        return super().denoise(rows)


@pytest.fixture
def engine():
    """An engine over a model that never settles, and jobs of it."""
    tokenizer, made = load()[1], []

    def start(model=None, **options) -> Engine:
        model = model or Slow(FOREVER, facts(max_position_embeddings=100_000))
        made.append(Engine(lambda: (model, tokenizer, Ask(max_tokens=10**6)), "fake", **options))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()
        one.join(5)


class Ends:
    """A reply that is looked at from this thread."""

    def __init__(self):
        self.result, self.error, self.over, self.events = None, None, False, []

    def put(self, event):
        self.events.append(event)

    def end(self, result=None, error=None):
        self.result, self.error, self.over = result, error, True


def job(engine: Engine, task=None, **options) -> Job:
    def write():
        text = begin(engine.model, Text([9]), engine.ask)
        while not text.done:
            yield [text]

    made = Job(begin=lambda waited: task or write(), reply=Ends(), **options)
    engine.submit(made)
    return made


def test_the_model_runs_in_one_thread(engine):
    one = engine()
    job(one)
    until(lambda: len(one.model.rows) > 2)
    assert one.model.threads == {"model"}


def test_what_goes_wrong_in_loading_is_raised_where_it_is_started():
    def load():
        raise Mistake("no such folder")

    with pytest.raises(Mistake, match="no such folder"):
        Engine(load, "none").start()


def test_one_that_is_cancelled_is_gone_before_the_next_pass(engine):
    one = engine()
    first, second = job(one), job(one)
    until(lambda: one.rows == 2)
    passes = len(one.model.calls)
    one.cancel(first)
    until(lambda: first.reply.over)
    assert one.model.calls[passes + 2 :].count(2) == 0  # one pass may have been on its way
    assert not second.reply.over and one.rows == 1
    one.cancel(second)
    until(lambda: second.reply.over)
    assert (one.rows, one.running, len(one.waiting)) == (0, [], 0)


def test_places_and_the_queue_are_bounded(engine):
    one = engine(places=2, waiting=1)
    running = [job(one), job(one)]
    until(lambda: one.rows == 2)
    third = job(one)
    with pytest.raises(Busy) as busy:
        job(one)
    assert 1 <= busy.value.seconds <= 60
    one.cancel(running[0])
    until(lambda: third in one.running)
    assert one.rows <= 2


def test_one_that_is_cancelled_while_it_waits(engine):
    one = engine(places=1)
    job(one)
    until(lambda: one.rows == 1)
    waiting = job(one)
    one.cancel(waiting)
    until(lambda: waiting.reply.over)
    assert waiting.task is None and not one.waiting


def test_bytes_decide_who_is_taken_in(engine):
    model = Slow(FOREVER, facts(max_position_embeddings=100_000))
    one = engine(model, memory=1000)
    model.bytes_a_token = 1
    first, second = job(one, tokens=600), job(one, tokens=600)
    until(lambda: one.rows == 1)
    assert list(one.waiting) == [second]
    one.cancel(first)
    until(lambda: one.running == [second])
    large = job(one, tokens=5000)  # more than there is: alone it may try
    one.cancel(second)
    until(lambda: one.running == [large])


def test_an_error_is_the_error_of_one_request(engine):
    def fails():
        yield []
        raise KeyError("lost")

    def refuses():
        raise Mistake("too long")
        yield []

    one = engine()
    good, bad, wrong = job(one), job(one, fails()), job(one, refuses())
    until(lambda: bad.reply.over and wrong.reply.over)
    assert isinstance(bad.reply.error, KeyError) and isinstance(wrong.reply.error, Mistake)
    assert not good.reply.over and one.running == [good]


def test_an_error_of_a_row_reaches_its_task(engine):
    seen = []

    def write(engine):
        text = begin(engine.model, Text([9]), engine.ask)
        text.take = None  # it cannot be called
        try:
            yield [text]
        except TypeError as error:
            seen.append(error)
            raise

    one = engine()
    good, bad = job(one), job(one, write(one))
    until(lambda: bad.reply.over)
    assert seen == [bad.reply.error] and one.running == [good]


def test_the_end_ends_all(engine):
    one = engine(places=1)
    jobs = [job(one), job(one)]
    until(lambda: one.rows == 1)
    one.stop()
    one.join(5)
    assert [type(each.reply.error) for each in jobs] == [Stopping, Stopping]
    with pytest.raises(Stopping):
        job(one)


def test_one_piece_of_a_prompt_is_read_beside_a_pass(engine):
    """Two long prompts, in turn, while a third request is written."""
    order = []

    def reads(name):
        for _ in range(3):
            yield []
            order.append((name, len(one.model.calls)))

    one = engine()
    job(one)
    until(lambda: one.rows == 1)
    readers = [job(one, reads("a")), job(one, reads("b"))]
    until(lambda: all(reader.reply.over for reader in readers))
    assert [name for name, _ in order] in (list("ababab"), list("bababa"))
    passes = [count for _, count in order]
    assert all(later > before for before, later in pairwise(passes))


class Clocked(Slow):
    """By its clock a pass takes 10 ms, and a token the more the longer the text is. It knows when passes began."""

    seconds = 0.001

    def __init__(self, *given):
        super().__init__(*given)
        self.time, self.began = 0.0, []

    def now(self):
        return self.time

    def denoise(self, rows):
        self.began.append(self.time)
        self.time += 0.01
        return super().denoise(rows)

    def encode(self, texts, caches, **options):
        self.time += sum(
            len(text) * 1e-4 * (1 + cache.length / 5000) for text, cache in zip(texts, caches, strict=True)
        )
        return super().encode(texts, caches, **options)


def test_a_prompt_of_20_000_tokens_delays_no_pass_by_more_than_two(engine):
    one = engine(Clocked(FOREVER, facts(max_position_embeddings=100_000)))
    job(one)
    until(lambda: one.rows == 1)
    reader = job(one, one.prefixes.read(one.model, list(range(40)) * 500))
    until(lambda: reader.reply.over, 60)
    cache, known = reader.reply.result
    assert (known, 20_000 - 512 <= cache.length <= 20_000) == (0, True)
    assert max(later - before for before, later in pairwise(one.model.began)) <= 3 * 0.01 + 1e-9
    assert len(one.model.encoded) > 20_000 / 512  # in more pieces than where nobody waits
    one.prefixes.pass_seconds = None
    assert one.prefixes.piece(one.model) == 512


def collected(reply: Reply, put) -> list:
    async def run():
        reply.loop = asyncio.get_running_loop()
        put()
        return [event async for event in reply.events()]

    return asyncio.run(run())


def test_the_latest_draft_wins_and_text_is_never_dropped():
    step = next(diffuse(FakeModel(FOREVER), [9], Ask()))
    drafts = [Draft(step=replace(step, step=n), start=0) for n in range(5)]
    reply = Reply(loop=None)

    def put():
        for event in (drafts[0], drafts[1], Delta(text="a"), Delta(text="b"), drafts[2], drafts[3], drafts[4]):
            reply.put(event)
        reply.end("done")

    events = collected(reply, put)
    assert events == [drafts[1], Delta(text="a"), Delta(text="b"), drafts[4]] and reply.result == "done"


def test_silence_is_told(monkeypatch):
    monkeypatch.setattr("mlx_dgemma.server.reply.HEARTBEAT", 0.02)

    async def run():
        reply = Reply(asyncio.get_running_loop())
        asyncio.get_running_loop().call_later(0.1, reply.end)
        return [event async for event in reply.events()]

    assert len(asyncio.run(run())) >= 3


@pytest.mark.parametrize(
    ("stops", "pieces", "sent"),
    [
        (["END"], ["abE", "ND", "x"], ["ab", ""]),
        (["END"], ["abE", "x", ""], ["ab", "Ex", ""]),
        (["b", "ab"], ["xab"], ["x"]),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        ([], ["a", "b"], ["a", "b"]),
    ],
)
def test_a_text_is_cut_before_a_stop_wherever_it_comes_in_pieces(stops, pieces, sent):
    cut, got = Stops(stops), []
    for piece in pieces:
        got.append(cut.push(piece, last=False))
        if cut.found:
            break
    assert got == sent and bool(cut.found) == ("".join(sent) != "".join(pieces))


def test_what_is_held_back_comes_at_the_end():
    cut = Stops(["END"])
    assert [cut.push("abEN", last=False), cut.push("", last=True)] == ["ab", "EN"]


@pytest.fixture(scope="module")
def tiny():
    """An engine that is not started: its tasks run here."""
    one = Engine(load_tiny, "tiny")
    one.model, one.tokenizer, one.ask = load_tiny()
    one.prefixes = Prefixes(10**9)
    return one


def load_tiny():
    model, tokenizer, sampling = load()
    return model, tokenizer, Ask(sampling=sampling)


SYSTEM = "You answer in the way that you were taught. " * 12


def asked(one: Engine, question: str, **options) -> tuple[list[int], Question]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    tokens = prompt_tokens(one.tokenizer, messages)
    return tokens, Question(tokens=tokens, ask=one.ask, **options)


def test_a_beginning_is_encoded_once_and_changes_no_text(tiny):
    few = replace(tiny.ask, max_tokens=64, sampling=replace(tiny.ask.sampling, max_denoising_steps=2))
    tokens, question = asked(tiny, "Sort: Lima, Kyiv, Accra")
    mark = common(tokens, asked(tiny, "Reverse: x")[0])
    assert mark > 512
    question = replace(question, mark=mark, ask=few)
    [first] = complete(tiny.model, answer(tiny, question, [].append), 4)
    [again] = complete(tiny.model, answer(tiny, question, [].append), 4)
    assert (first.cached_tokens, again.cached_tokens) == (0, len(tokens) - 1)
    assert first.encoded == again.encoded and len(first.text) > 3
    other_tokens, other = asked(tiny, "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old.")
    [branch] = complete(tiny.model, answer(tiny, replace(other, ask=few), [].append), 4)
    assert branch.cached_tokens == mark
    alone = [step.draft for step in diffuse(tiny.model, other_tokens, few) if step.final]
    assert branch.encoded == np.concatenate(alone).tolist()


def test_the_first_draft_comes_with_the_first_pass(tiny, monkeypatch):
    passes, seen = [], []
    denoise = tiny.model.denoise
    monkeypatch.setattr(tiny.model, "denoise", lambda rows: passes.append(1) or denoise(rows))
    few = replace(tiny.ask, sampling=replace(tiny.ask.sampling, max_denoising_steps=2))
    question = Question(tokens=prompt_tokens(tiny.tokenizer, "Sort: c, b, a"), ask=few, drafts=True)
    complete(tiny.model, answer(tiny, question, lambda event: seen.append((type(event), len(passes)))), 4)
    assert seen[0] == (Draft, 1)


def test_a_snapshot_that_is_gone_on_from_is_moved(tiny):
    store = Prefixes(10**9)
    tokens = list(range(10, 138))
    cache, _ = complete(tiny.model, store.read(tiny.model, tokens, rest=0), 1)
    store.keep(tokens, cache)
    assert store.take(tiny.model, [*tokens, 5]) is cache and store.snapshots == []
    store.keep(tokens, cache)
    branch = store.take(tiny.model, [*tokens[:100], 7, 8])
    assert branch is not cache and (branch.length, cache.length) == (100, 128) and len(store.snapshots) == 1
    assert store.take(tiny.model, [1, 2, 3]).length == 0


def test_a_long_prompt_leaves_snapshots_on_its_way(tiny, monkeypatch):
    monkeypatch.setattr("mlx_dgemma.server.prefixes.EVERY", 128)
    store, tokens = Prefixes(10**9), [n % 200 + 20 for n in range(300)]
    store.keep(tokens, complete(tiny.model, store.read(tiny.model, tokens, rest=0), 1)[0])
    assert [len(snapshot.tokens) for snapshot in store.snapshots] == [256, 128, 300]
    branch = [*tokens[:180], 9, 9, 9]
    assert store.take(tiny.model, branch).length == 128  # the sliding layers do not go back from 256 to 180
    store.shrink(store.nbytes - 1)
    assert 300 in [len(snapshot.tokens) for snapshot in store.snapshots]  # what lay on the way goes first


def test_snapshots_are_let_go_by_bytes_the_least_used_first(tiny):
    size = complete(tiny.model, Prefixes(10**9).read(tiny.model, list(range(80)), rest=0), 1)[0].nbytes
    store = Prefixes(int(2.5 * size))
    for first in range(3):
        tokens = [first, *range(1, 80)]
        store.keep(tokens, complete(tiny.model, store.read(tiny.model, tokens, rest=0), 1)[0])
        if first == 1:
            assert store.take(tiny.model, [0, *range(1, 80)]).length == 79  # so the second is the older one
    assert [snapshot.tokens[0] for snapshot in store.snapshots] == [0, 2]
    assert store.nbytes <= store.limit


@pytest.mark.slow
def test_no_call_of_the_model_reads_more_than_a_piece(tiny):
    """Of a prompt of three pieces, of one that ends in a mark, of a text to fill."""

    class Watched:
        def __init__(self, model):
            self.model, self.read = model, []

        def __getattr__(self, name):
            return getattr(self.model, name)

        def encode(self, texts, caches, **options):
            self.read.append(sum(map(len, texts)))
            return self.model.encode(texts, caches, **options)

        def denoise(self, rows):
            self.read.append(sum(len(row.pending) for row in rows))
            return self.model.denoise(rows)

    one = Engine(load_tiny, "tiny")
    one.model, one.tokenizer, one.prefixes = Watched(tiny.model), tiny.tokenizer, Prefixes(0)
    one.alphabet = Alphabet(tiny.model, tiny.tokenizer)
    ask = replace(tiny.ask, max_tokens=20, sampling=replace(tiny.ask.sampling, max_denoising_steps=1))
    tokens = prompt_tokens(tiny.tokenizer, "What is this? " * 80)
    for mark in (0, 700):
        complete(one.model, answer(one, Question(tokens=tokens, ask=ask, mark=mark), [].append), 4)
    texts = ["x = 1\n" * 110, "\ny = 2\n"]
    request = Infill(prompt=prompt_tokens(tiny.tokenizer, fill_prompt(texts)), texts=texts, ask=ask, tries=2)
    complete(one.model, fill_gaps(one, request, [].append), 4)
    assert max(one.model.read) <= 512 < sum(one.model.read)


def test_a_reply_of_a_server_that_has_ended_goes_nowhere():
    """A pass may last longer than the server waits for it: a kernel is compiled in it."""
    loop = asyncio.new_event_loop()
    reply = Reply(loop)
    loop.close()
    reply.put(Delta(text="late"))
    reply.end(error=Stopping())
