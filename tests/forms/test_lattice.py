"""The best way through a canvas, against all ways."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest

from mlx_dgemma.forms.construction import build_automaton
from mlx_dgemma.forms.expression import ANY, Repeat, between, either, series
from mlx_dgemma.forms.lattice import Lattice, Vocabulary
from mlx_dgemma.tokens.tokenizer import Tokenizer

PIECES = [b"", b"", b"a", b"b", b"ab", b"ba", b",", b"b,"]  # pad, stop, and what text is made of
CONFIG = SimpleNamespace(stop_ids=(1,), pad_id=0, vocab_size=len(PIECES))
FOLDERS = {"bytes": checkpoints.TINY, "bpe": Path(__file__).parents[1] / "fixtures" / "bpe"}


class Few:
    def spelling(self, vocab_size):
        return PIECES

    def token_id(self, token):
        return None

    def encode_parts(self, parts):
        [text] = parts
        return [PIECES.index(text[:2].encode() if text[:2].encode() in PIECES else text[:1].encode())]


def lattice(expression):
    return Lattice(build_automaton(expression), Vocabulary(Few(), len(PIECES)), CONFIG)


def worth(made, logprobs: np.ndarray, way: tuple[int, ...]) -> float:
    """What `Lattice.best` says that it maximises, position by position."""
    state, total = 0, 0.0
    for row, token in zip(np.maximum(logprobs, -60), way, strict=True):
        if state == made.end or (made.accepting[state] and not (made.table[state] >= 0).any()):
            break
        here = row[made.moves(np.array([state]), np.arange(len(PIECES)))[0] >= 0].max()
        total += row[token] - (here + row.max()) / 2
        state = made.walk(state, [token])
    return total


def texts(made, length: int, room: int):
    """Every way to fill a canvas from which the end can still be reached."""
    for tokens in itertools.product(range(len(PIECES)), repeat=length):
        ended = tokens.index(1) if 1 in tokens else length
        if any(token > 1 for token in tokens[ended:]) or 0 in tokens[:ended]:
            continue
        state = 0
        for token in tokens[:ended]:
            for byte in PIECES[token]:
                state = made.automaton.table[state, byte] if state >= 0 else -1
        if state < 0 or (ended < length and not made.accepting[state]):
            continue
        if ended == length and made.left[state] > room - length:
            continue
        yield tokens


AB = either("a", "b")


@pytest.mark.parametrize("room", [4, 5, 9])
@pytest.mark.parametrize("expression", [Repeat(AB, 1, 4), either(Repeat(AB, 0, 3), series(AB, either(",", "a,"), AB))])
@pytest.mark.sample(2)
def test_best_is_the_most_probable_of_all(expression, room):
    made, rng, length = lattice(expression), np.random.default_rng(room), 4
    assert not made.forced.any()  # or not every spelling would be a way
    ways = list(texts(made, length, room))
    assert len(ways) > 20
    for _ in range(25):
        logprobs = np.log(rng.dirichlet(np.full(len(PIECES), 0.3), size=length) + 1e-30)
        path = made.best(0, [(np.arange(len(PIECES)), row, -60.0) for row in logprobs], room)
        assert tuple(path.tokens) in ways
        assert worth(made, logprobs, path.tokens) == pytest.approx(max(worth(made, logprobs, way) for way in ways))


def test_what_stands_behind_the_end_costs_nothing():
    """The model says "ab,ab": the form has room for two letters and no comma."""
    made = lattice(series(Repeat(AB, 1, 2)))
    said = [2, 3, 6, 2, 3]
    path = made.best(0, [(np.array([token]), np.zeros(1), -20.0) for token in said], 5)
    assert path.tokens.tolist() == [2, 3, 1, 0, 0] and path.states[2:].tolist()[1:] == [made.end] * 3


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_text_is_spelt_as_it_is_written_elsewhere(folder):
    tokenizer = Tokenizer(FOLDERS[folder])
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    made = Lattice(build_automaton(FORMS["items"]), vocabulary, SimpleNamespace(stop_ids=(1,), pad_id=0))
    text = "[true, Größe, 7]".encode()
    path = made.spelt(text, 40, 40)
    length = path.tokens.tolist().index(1)
    assert tokenizer.decode(path.tokens[:length].tolist()).encode() == text and set(path.tokens[length + 1 :]) == {0}
    state = 0
    for token, after in zip(path.tokens, path.states[1:], strict=True):
        state = made.walk(state, [token])
        assert state == after >= 0
    assert made.spelt(text, length + 1, 40) and not made.spelt(text, length, 40) and not made.spelt(text, 40, length)
    assert made.spelt(b"[false]", 40, 40) is None


def test_a_way_is_found_whatever_is_predicted():
    made = lattice(series("ab,", Repeat(AB, 3, 3), ",ab"))
    for room in range(made.left[0], made.left[0] + 4):
        path = made.best(0, [(np.array([0]), np.zeros(1), -9.0)] * room, room)  # the model says: pads
        text = b"".join(PIECES[token] for token in path.tokens)
        assert made.automaton.matches(text) and path.states[-1] == made.end


@pytest.mark.parametrize("folder", FOLDERS)
def test_forced_text_is_as_the_tokenizer_writes_it(folder):
    tokenizer = Tokenizer(FOLDERS[folder])
    config = SimpleNamespace(stop_ids=(1,), pad_id=0)
    text = '{"name": "Größe", "tags": ["a", "b"]}'
    made = Lattice(build_automaton(series(text)), Vocabulary(tokenizer, tokenizer.vocab_size), config)
    run = made.run(0, 200)
    assert tokenizer.decode(run.tokens.tolist()) == text
    assert run.tokens.tolist() == tokenizer.encode(text) and made.left[0] == len(run.tokens) + 1


def test_a_space_before_a_choice_goes_with_either():
    tokenizer = Tokenizer(FOLDERS["bpe"])
    made = Lattice(
        build_automaton(series('"ok": ', either("true", "false"))),
        Vocabulary(tokenizer, tokenizer.vocab_size),
        SimpleNamespace(stop_ids=(1,), pad_id=0),
    )
    state = made.run(0, 200).states[-1]
    allowed = {tokenizer.piece(token) for token in made.allowed(state, 1000)}
    assert {"▁", "▁t"} <= allowed


@pytest.mark.parametrize("folder", FOLDERS)
def test_pieces_spell_what_decoding_gives(folder):
    tokenizer = Tokenizer(FOLDERS[folder])
    spelt = tokenizer.spelling(tokenizer.vocab_size)
    whole = [(i, text) for i, text in enumerate(spelt) if text and text.decode("utf-8", "ignore").encode() == text]
    assert len(whole) > 100
    assert all(tokenizer.decode([i]).encode() == text for i, text in whole)
    assert {bytes([byte]) for byte in range(256)} <= set(spelt)


def test_sets_of_a_state_and_of_a_slot():
    made = lattice(series("a,", Repeat(between("b", "b"), 1, 2), ",a", Repeat(ANY)))
    inside = made.run(0, 10).states[-1]
    assert {PIECES[token] for token in made.allowed(inside, 100)} == {b"b", b",", b"b,"}
    assert made.allowed(inside, 1) is None
    slot = {PIECES[token] for token in made.somewhere(made.slot(inside))}
    assert {b"b", b"b,", b","} <= slot and b"ba" not in slot


def test_following_is_every_token_from_which_the_text_can_end_in_time():
    made = lattice(either(Repeat(AB, 0, 3), series(AB, either(",", "a,"), AB)))
    ids = np.arange(len(PIECES))
    for state in range(made.end):
        targets = made.moves(np.array([state]), ids)[0]
        rooms = {room: made.following(state, room) for room in range(8)}
        for room, following in rooms.items():
            assert following.ids.tolist() == ids[(targets >= 0) & (made.left[targets] < room)].tolist()
            assert len(following.ids) or room < made.left[state]
            assert (len(following.ids) == len(rooms[7].ids)) == (room >= following.ample)
    assert set(made.following(made.end, 0).ids) == {0, 1}


FORMS = {
    "object": series('{"name": "', Repeat(between("a", "z"), 1, 9), '", "n": ', Repeat(between("0", "9"), 1), "}"),
    "text": series("Dear ", Repeat(ANY), ", ", Repeat(either("yes ", "no "), 2, 5)),
    "items": series("[", Repeat(either("true", "Größe", "7"), 0, None, series(", ")), "]"),
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(3)
def test_random_tokens_that_may_follow_end_in_time_in_a_text_of_the_form(folder, form):
    tokenizer = Tokenizer(FOLDERS[folder])
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    made = Lattice(build_automaton(FORMS[form]), vocabulary, SimpleNamespace(stop_ids=(1,), pad_id=0))
    rng, lengths = np.random.default_rng(0), set()
    for room in [made.left[0]] * 3 + [made.left[0] + 1, *range(made.left[0], made.left[0] + 40)]:
        state, tokens = 0, []
        while state != made.end:
            token = rng.choice(made.following(state, room - len(tokens)).ids)
            state = made.walk(state, [token])
            tokens.append(token)
        assert len(tokens) <= room and tokens[-1] == 1
        assert made.automaton.matches(b"".join(vocabulary.spelt[token] for token in tokens[:-1]))
        lengths.add(len(tokens))
    assert len(lengths) > 5


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_draft_that_is_cut_anywhere_has_an_ending(folder):
    tokenizer = Tokenizer(FOLDERS[folder])
    made = Lattice(
        build_automaton(FORMS["object"]),
        Vocabulary(tokenizer, tokenizer.vocab_size),
        SimpleNamespace(stop_ids=(1,), pad_id=0),
    )
    rng, draft, state = np.random.default_rng(0), [], 0
    while state != made.end:
        draft.append(rng.choice(made.following(state, 40 - len(draft)).ids))
        state = made.walk(state, draft[-1:])
    for length in range(len(draft)):
        state = made.walk(0, draft[:length])
        ending = made.ending(state).tolist()
        assert len(ending) == made.left[state] and ending[-1] == 1
        assert made.automaton.matches(tokenizer.decode([*draft[:length], *ending[:-1]]).encode())
    assert made.ending(made.end).tolist() == []


def test_a_repeated_text_is_shown_to_the_tokenizer_once():
    class Counting(Few):
        calls = 0

        def encode_parts(self, parts):
            Counting.calls += 1
            return super().encode_parts(parts)

    part = series("ab,", either("a", "b"), ",")
    for copies in (2, 20):
        Counting.calls = 0
        Lattice(build_automaton(series(*[part] * copies)), Vocabulary(Counting(), len(PIECES)), CONFIG)
        assert Counting.calls < 10
