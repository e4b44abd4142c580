"""Conversations on disk: whole or not there, damage is told, and nothing of anybody else's is touched."""

from __future__ import annotations

import os

import checkpoints
import pytest
from scripted import random_bpe

from mlx_dgemma.errors import Mistake
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.writing import saved
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.conversation import Conversation
from mlx_dgemma.writing.sampling import Sampling
from mlx_dgemma.writing.saved import FILE


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return *random_bpe(tmp_path_factory.mktemp("bpe")), Sampling(max_denoising_steps=3)


def turn(conversation: Conversation, question: str) -> list:
    return [piece.step for piece in conversation.ask(question)]


def test_saved_chats_that_cannot_be_used(bpe, tmp_path):
    model, tokenizer, sampling = bpe
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=5))
    turn(conversation, "Hi")
    conversation.save(tmp_path / "chat")
    folder = tmp_path / "other"
    other = Conversation(random_bpe(folder, seed=1)[0], tokenizer, Ask(sampling=sampling))
    with pytest.raises(Mistake, match="another model"):
        other.load(tmp_path / "chat")
    assert other.messages == [] and other.cache.length == 0
    with pytest.raises(Mistake, match="no saved chat"):
        conversation.load(tmp_path / "nowhere")
    with pytest.raises(Mistake, match="other things"):
        conversation.save(folder)
    with pytest.raises(Mistake, match="cannot be saved"):
        conversation.save(folder / "config.json")
    path = tmp_path / "chat" / FILE
    whole = path.read_text()
    half = whole[: len(whole) // 2]
    for text in ("{", "[]", "null", "[" * 9999, half, half + "\0" * len(half), whole.replace("Hi", "Ho"), "{}"):
        path.write_text(text)
        with pytest.raises(Mistake, match=r"damaged"):
            conversation.load(tmp_path / "chat")
        with pytest.raises(Mistake, match="other things"):  # nor is it overwritten
            conversation.save(tmp_path / "chat")
    assert len(conversation.messages) == 2 and path.read_text() == "{}"


def test_a_damaged_cache(bpe, tmp_path):
    model, tokenizer, sampling = bpe
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=5))
    turn(conversation, "Hi")
    conversation.save(tmp_path / "chat")
    [path] = (tmp_path / "chat").glob("cache-*")
    whole = path.read_bytes()
    for data in (whole[:-500] + bytes(500), whole[:-1], whole[:100], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(data)
        with pytest.raises(Mistake, match="undamaged"):
            conversation.load(tmp_path / "chat")
    path.unlink()
    with pytest.raises(Mistake, match="undamaged"):
        conversation.load(tmp_path / "chat")
    assert len(conversation.messages) == 2


def test_nothing_but_its_own_files_is_touched(bpe, tmp_path):
    model, tokenizer, sampling = bpe
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=5))
    turn(conversation, "Hi")
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / FILE).write_text('{"messages": "of another program"}')
    with pytest.raises(Mistake, match="other things"):
        conversation.save(folder)
    (folder / FILE).unlink()
    conversation.save(folder)
    others = [folder / name for name in ("cache-mine.safetensors", f"cache-{'0' * 16}.safetensors", "notes.txt")]
    for path in others:
        path.write_text("mine")
    turn(conversation, "And?")
    conversation.save(folder)
    assert all(path.read_text() == "mine" for path in others) and len(list(folder.iterdir())) == 5


def test_a_full_disk_changes_nothing(bpe, tmp_path, monkeypatch):
    model, tokenizer, sampling = bpe
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=5))
    turn(conversation, "Hi")
    folder, asked = tmp_path / "chat", list(conversation.messages)
    conversation.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    turn(conversation, "And?")
    for function, place in (("fsync", folder), ("fsync", tmp_path / "new")):
        with monkeypatch.context() as patch, pytest.raises(Mistake, match="No space left"):
            patch.setattr(os, function, lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            conversation.save(place)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()
    conversation.save(tmp_path / "new")
    conversation.load(folder)
    assert conversation.messages == asked


def test_turns_alone(bpe, tmp_path):
    """They are read anew, and go on with the tokenizer that they were written with alone."""
    model, tokenizer, sampling = bpe
    how = Ask(sampling=sampling, max_tokens=5)
    one, other = Conversation(model, tokenizer, how, "Be brief."), Conversation(model, tokenizer, how)
    turn(one, "Hi")
    saved.write(tmp_path / "turns.json", one.turns())
    other.load(tmp_path / "turns.json")
    assert (other.messages, other.system, other.cache.length) == (one.messages, "Be brief.", 0)
    ours, theirs = ([step.draft.tolist() for step in turn(chat, "And?")] for chat in (other, one))
    assert ours == theirs
    with pytest.raises(Mistake, match="another model"):
        Conversation(model, Tokenizer(checkpoints.TINY), how).load(tmp_path / "turns.json")
