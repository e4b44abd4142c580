"""Text as it grows: the pieces are the text decoded at once, wherever the ids are cut."""

import json
import random

import pytest
import tokenizers
from tokenizer_folders import ASTRONAUT, BPE, TINY, copy, random_text

from mlx_dgemma.tokens.stream import TextStream, split_thinking
from mlx_dgemma.tokens.tokenizer import Tokenizer


def random_ids(draw: random.Random, tokenizer: Tokenizer, length: int) -> list[int]:
    """Ids that make every kind of trouble: broken characters, special tokens, channels, ids outside the vocabulary."""
    whole = tokenizer.encode(random_text(draw), special_tokens=True)
    euro = [tokenizer.token_id(piece) for piece in ("<0xE2>", "<0x82>", "<0xAC>")]
    euro = tokenizer.encode("€") if None in euro else euro
    channel = [tokenizer.token_id("<|channel>"), tokenizer.token_id("<channel|>")]
    ids = []
    while len(ids) < length:
        kind = draw.randrange(6)
        start = draw.randrange(len(whole))
        ids += [
            whole[start : start + draw.randrange(8)],
            euro[: draw.randrange(1, 4)] * draw.randrange(1, 3),
            [draw.choice(channel)],
            tokenizer.encode("thought\n")[: draw.randrange(9)],
            [draw.randrange(tokenizer.vocab_size + 20)],
            [draw.randrange(16, 276)],  # bytes, in both vocabularies
        ][kind]
    return ids


def stream(tokenizer: Tokenizer, ids: list[int], draw: random.Random, longest: int) -> tuple[str, str]:
    """What a TextStream says of ids that come in pushes of random lengths."""
    text, start = TextStream(tokenizer), 0
    pieces = []
    while start < len(ids):
        end = start + draw.randint(0, longest)
        pieces.append(text.push(ids[start:end]))
        start = end
    pieces.append(text.finish())
    return "".join(thinking for thinking, _ in pieces), "".join(answer for _, answer in pieces)


def test_thinking_and_answer(tokenizer):
    def split(text):
        thinking, answer = split_thinking(tokenizer, tokenizer.encode(text, special_tokens=True))
        return tokenizer.decode(thinking), tokenizer.decode(answer)

    assert split("just an answer<turn|><eos><pad>") == ("", "just an answer")
    assert split("<|channel>thought\nhm, 12.\n<channel|>Yes.<turn|>") == ("hm, 12.\n", "Yes.")
    assert split("<|channel>thought\n<channel|>Yes.") == ("", "Yes.")
    assert split("<|channel>thought<channel|>Yes.") == ("", "Yes.")
    assert split("<|channel>thought\nnever closed") == ("never closed", "")
    assert split("<|channel>tho") == ("", "")
    assert split("a<|channel>thought\none, <channel|>b<|channel>thought\ntwo<channel|>c") == ("one, two", "abc")
    assert split("<|channel>thought\na<|channel>thought\nb<channel|>c") == ("ab", "c")
    assert split("<|channel>thoughtful\nx<channel|>c") == ("thoughtful\nx", "c")
    assert split("no opening<channel|> at all") == ("", "no opening at all")
    assert split("<|channel><pad>thought\n\n  x<channel|>") == ("\n  x", "")


def test_a_piece_may_cross_the_end_of_the_label():
    tokenizer = Tokenizer(BPE)
    ids = [tokenizer.token_id(piece) for piece in ("<|channel>", "thought", "\n\n", "▁the", "<channel|>")]
    thinking, answer = split_thinking(tokenizer, ids)
    assert (tokenizer.decode(thinking), answer) == ("\n the", [])


def test_without_channels_all_is_answer(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "<|channel>": 2}, unk_token="<unk>"))
    folder = copy(BPE, tmp_path, tokenizer=words.to_str())
    assert split_thinking(Tokenizer(folder), [1, 2, 1]) == ([], [1, 2, 1])


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_streamed_text_is_the_text(tokenizer, longest):
    """Whatever the ids and wherever they are cut, the pieces of the answer join to the answer decoded at once."""
    draw = random.Random(longest)
    for _ in range(300):
        ids = random_ids(draw, tokenizer, draw.randrange(60))
        _, answer_ids = split_thinking(tokenizer, ids)
        assert stream(tokenizer, ids, draw, longest)[1] == tokenizer.decode(answer_ids)


def test_an_added_token_among_byte_pieces(tmp_path):
    """Its letters are not bytes, even where they look like it."""
    content = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    content.add_tokens(["<héllo wörld>"])
    tokenizer = Tokenizer(copy(TINY, tmp_path, tokenizer=content.to_str()))
    ids = tokenizer.encode("é<héllo wörld>€")
    assert len(ids) == 2 + 1 + 3
    assert stream(tokenizer, ids, random.Random(0), 1)[1] == tokenizer.decode(ids) == "é<héllo wörld>€"


def test_a_decoder_that_trims_the_start_of_a_text(tmp_path):
    """Decoded piece by piece, every piece lost its space."""
    content = json.loads((BPE / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    tokenizer, draw = Tokenizer(copy(BPE, tmp_path, tokenizer=json.dumps(content))), random.Random(0)
    for text in (" the sky is blue", "  12 a  b", random_text(draw).replace("<", "")):
        ids = tokenizer.encode(text)
        assert stream(tokenizer, ids, draw, 2)[1] == tokenizer.decode(ids)


def test_streamed_thinking_is_the_thinking(tokenizer):
    draw = random.Random(1)
    for _ in range(100):
        thinking, answer = (random_text(draw).replace("<", "") for _ in range(2))
        ids = tokenizer.encode(f"<|channel>thought\n{thinking}<channel|>{answer}<turn|>", special_tokens=True)
        expected = tuple(tokenizer.decode(tokenizer.encode(text)) for text in (thinking, answer))
        assert stream(tokenizer, ids, draw, 5) == expected


def test_thinking_ends_before_the_answer_begins(tokenizer):
    """A character spelt in bytes at the end of the thinking came out with the last words of the answer."""
    text = TextStream(tokenizer)
    ids = tokenizer.encode(f"<|channel>thought\nx{ASTRONAUT}<channel|>yes", special_tokens=True)
    assert text.push(ids) == (f"x{ASTRONAUT}", "yes")


def test_a_character_is_never_cut(tokenizer):
    draw = random.Random(2)
    for _ in range(50):
        text = TextStream(tokenizer)
        written = f"{ASTRONAUT} {random_text(draw)}€".replace("<", "").replace("\ufffd", "")
        pieces = [text.push([token])[1] for token in tokenizer.encode(written)]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + text.finish()[1] == tokenizer.decode(tokenizer.encode(written))


def test_only_an_unfinished_character_is_held(tokenizer):
    text = TextStream(tokenizer)
    assert text.push(tokenizer.encode("Größe: 12 ")) == ("", "Größe: 12 ")
    face = tokenizer.encode("\U0001f92a")
    assert len(face) == 4
    assert [text.push([token]) for token in face[:3]] == [("", "")] * 3
    assert text.push([face[3], *tokenizer.encode("!")]) == ("", "\U0001f92a!")
    assert text.push(face[:2]) == ("", "")
    assert text.finish()[1] == tokenizer.decode(face[:2])
    assert set(tokenizer.decode(face[:2])) == {"\ufffd"}


def test_special_tokens_are_never_shown(tokenizer):
    draw = random.Random(3)
    ids = tokenizer.encode("<bos>a<|turn>b<turn|><eos><pad><pad><|think|>c", special_tokens=True)
    assert stream(tokenizer, ids, draw, 2) == ("", "abc")


@pytest.mark.parametrize("text", ["the sky is blue, " * 200, "\U0001f92a" * 200, "<|channel>" + "<pad>" * 200 + "x"])
def test_a_push_costs_what_is_pushed(monkeypatch, text):
    """The text so far was decoded again at every push."""
    tokenizer, decoded = Tokenizer(BPE), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    ids = tokenizer.encode(text, special_tokens=True)
    stream(tokenizer, ids, random.Random(0), 1)
    assert sum(decoded) <= 3 * len(ids)
