"""Many turns over one cache: each answer is what a fresh run would write, and nothing is encoded twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice, takewhile

import pytest
from scripted import BPE, Counting, random_bpe, scripted

from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.writing import batch
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.conversation import Conversation
from mlx_dgemma.writing.diffuse import diffuse
from mlx_dgemma.writing.sampling import Sampling

QUESTIONS = ["What is 603 + 845?", "Sort: Lima, Tokyo, Kyiv", "Extract JSON: Zoe (31) works as a vet in Oslo."]


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    """name -> (model, tokenizer, sampling): the embedded model, the same without a stop token, random weights."""
    random, tokenizer = random_bpe(tmp_path_factory.mktemp("bpe"))
    (tiny, byte_tokenizer, _), endless = load(), load()[0]
    endless.facts = replace(endless.facts, stop_ids=(272,))
    few = Sampling(max_denoising_steps=3)
    return {
        "bytes": (tiny, byte_tokenizer, Sampling(max_denoising_steps=4)),
        "endless bytes": (endless, byte_tokenizer, few),
        "bpe": (random, tokenizer, few),
    }


@pytest.fixture
def bpe(parties):
    return parties["bpe"]


def turn(conversation: Conversation, question: str) -> list:
    return [piece.step for piece in conversation.ask(question)]


def same_steps(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.draft.tolist(), ours.canvas.tolist()) == (theirs.draft.tolist(), theirs.canvas.tolist())


def common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@pytest.mark.parametrize(
    ("name", "thinking", "max_tokens"),
    [
        ("bytes", False, 40),
        ("endless bytes", False, 150),
        ("bpe", False, 10),
        pytest.param("bpe", False, 70, marks=pytest.mark.slow),
        ("bpe", True, 40),
    ],
)
@pytest.mark.sample(1)
def test_a_turn_equals_a_fresh_run_and_encodes_only_what_was_not_in_the_cache(parties, name, thinking, max_tokens):
    model, tokenizer, sampling = parties[name]
    counting = Counting(model)
    how = Ask(sampling=sampling, max_tokens=max_tokens, seed=5)
    conversation = Conversation(counting, tokenizer, how, thinking=thinking)
    held: list[int] = []  # what was given to the model up to the end of the last turn
    asked = 0  # of it, up to the model's part
    for question in QUESTIONS:
        messages = [*conversation.messages, {"role": "user", "content": question}]
        prompt = tokenizer.chat(messages, thinking=thinking)
        counting.encoded = 0
        found = turn(conversation, question)
        same_steps(found, list(diffuse(model, prompt, how)))
        committed = [token for step in found if step.final and not step.reason for token in step.draft.tolist()]
        kept = common(held, prompt)
        if name.startswith("endless"):  # it wrote ends of turns, which history leaves out, too far back to forget them
            kept = min(kept, asked)
        assert counting.encoded == len(prompt) - kept + len(committed)
        held, asked = prompt + committed, len(prompt)
    assert conversation.cache.length <= len(held)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3


def test_the_history_is_without_what_was_thought(bpe):
    """More than the sliding layers remember lies between the question and the end of the answer."""
    tokenizer = bpe[1]
    thought = "one two three four five six seven eight nine ten " * 6
    answer = f"<|channel>thought\n{thought}<channel|>Oslo<turn|>"
    conversation = scripted(*bpe[:2], answer, "Rome<turn|>", thinking=True)
    turn(conversation, "Where?")
    first = tokenizer.chat([{"role": "user", "content": "Where?"}], thinking=True)
    assert (conversation.answer.thinking, conversation.answer.text) == (thought, "Oslo")
    assert conversation.cache.length == len(first)  # back before the answer
    kept = conversation.cache.length
    conversation.model.encoded = 0
    turn(conversation, "And then?")
    messages = [("user", "Where?"), ("assistant", "Oslo"), ("user", "And then?")]
    prompt = tokenizer.chat([{"role": role, "content": text} for role, text in messages], thinking=True)
    assert conversation.model.encoded == len(prompt) - kept < len(tokenizer.encode(answer, special_tokens=True))


def test_a_channel_that_the_template_opens_is_thinking_in_the_next_turn_too(parties, tmp_path):
    opens = (BPE / "chat_template.jinja").read_text().replace("if not enable_thinking", "if true")
    opens = opens.replace("thought\\n<channel|>", "thought\\n")
    shutil.copytree(BPE, tmp_path / "bpe")
    (tmp_path / "bpe" / "chat_template.jinja").write_text(opens)
    tokenizer = Tokenizer(tmp_path / "bpe")
    conversation = scripted(parties["bpe"][0], tokenizer, "It may be.<channel|>Oslo<turn|>", "x<turn|>", thinking=True)
    turn(conversation, "Where?")
    assert (conversation.answer.thinking, conversation.answer.text) == ("It may be.", "Oslo")
    turn(conversation, "And now?")
    said = tokenizer.decode(conversation.encoded)
    assert "Oslo" in said and "It may be." not in said


def test_a_tool_is_called_and_its_result_read(bpe):
    tokenizer = bpe[1]

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, special_tokens=True)

    call = '<|tool_call>call:weather{city:<|"|>Oslo, {Norway}<|"|>,days:2}<tool_call|>'
    conversation = scripted(*bpe[:2], f"I look. {call}<|tool_response>", "Four<turn|>", "Bye<turn|>")
    turn(conversation, "How warm is Oslo?")
    [asked] = conversation.waiting
    assert (conversation.answer.text, str(asked)) == ("I look. ", 'weather{"city": "Oslo, {Norway}", "days": 2}')
    with pytest.raises(Mistake, match="weather"):
        conversation.save("never")
    conversation.respond({"sky": ["grey", None, 1.5], "degrees": 4, "wet": True})
    response = '<|tool_response>response:weather{degrees:4,sky:[<|"|>grey<|"|>,None,1.5],wet:true}<tool_response|>'
    opened = tokenizer.chat([{"role": "user", "content": "How warm is Oslo?"}])
    assert conversation.tokens == opened + ids("I look. " + call) + ids(response)
    held = conversation.cache.length
    assert conversation.unread == len(conversation.tokens) - held
    conversation.model.encoded = 0
    list(conversation.write())
    assert conversation.model.encoded == len(opened + ids("I look. " + call + response)) - held
    assert conversation.messages[-1]["content"] == f"I look. {call}{response}Four" and not conversation.waiting
    turn(conversation, "Thanks")
    assert conversation.answer.text == "Bye"


def test_several_calls_are_answered_in_their_order(bpe):
    calls = "".join(f"<|tool_call>call:{name}{{}}<tool_call|>" for name in "ab")
    conversation = scripted(*bpe[:2], calls + "<turn|>", "done<turn|>")
    turn(conversation, "Go")
    assert [call.name for call in conversation.waiting] == ["a", "b"]
    conversation.respond("first"), conversation.respond(2)
    list(conversation.write())
    responses = '<|tool_response>response:a{value:<|"|>first<|"|>}<tool_response|>'
    responses += "<|tool_response>response:b{value:2}<tool_response|>"
    assert conversation.messages[-1]["content"] == calls + responses + "done"


def test_a_call_that_nobody_answers(bpe):
    conversation = scripted(*bpe[:2], "<|tool_call>call:a{}<tool_call|><|tool_response>", "Bye<turn|>")
    turn(conversation, "Go")
    turn(conversation, "Never mind")
    assert [message["content"] for message in conversation.messages[1:]] == [
        "<|tool_call>call:a{}<tool_call|>", "Never mind", "Bye",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["<|tool_call>call:a{x", "<|tool_call>nonsense<tool_call|> b"])
def test_what_is_no_call_is_text(bpe, text):
    conversation = scripted(*bpe[:2], text + "<turn|>")
    turn(conversation, "Go")
    assert not conversation.waiting
    assert conversation.answer.text == text.replace("<|tool_call>", "").replace("<tool_call|>", "")


def test_tools_are_declared_by_the_template(bpe, tmp_path):
    shutil.copytree(BPE, tmp_path, dirs_exist_ok=True)
    template = tmp_path / "chat_template.jinja"
    declaring = "{% for tool in tools or [] %}<|tool>{{ tool | tojson }}<tool|>{% endfor %}"
    template.write_text(declaring + template.read_text())
    tokenizer = Tokenizer(tmp_path)
    tools = [{"type": "function", "function": {"name": "weather"}}]
    conversation = Conversation(bpe[0], tokenizer, Ask(sampling=Sampling(max_denoising_steps=1)), tools=tools)
    conversation.say("Hi")
    assert conversation.prompt == [
        *tokenizer.encode(f"<|tool>{json.dumps(tools[0])}<tool|>", special_tokens=True),
        *tokenizer.chat([{"role": "user", "content": "Hi"}]),
    ]


def fresh(conversation: Conversation, model, question: str) -> list:
    messages = [*conversation.messages, {"role": "user", "content": question}]
    prompt = conversation.tokenizer.chat(messages, thinking=conversation.thinking)
    return list(diffuse(model, prompt, conversation.how))


@pytest.mark.slow
def test_another_mode_goes_on_from_the_same_cache(bpe):
    """Its answer is longer than what the sliding layers remember; one turn of it is left early."""
    model, tokenizer, sampling = bpe
    denoise = Ask(sampling=sampling, max_tokens=40)
    conversation = Conversation(model, tokenizer, denoise)
    turn(conversation, QUESTIONS[0])
    conversation.how = replace(denoise, mode="ar")
    for question, limit in ((QUESTIONS[1], 40), (QUESTIONS[2], 7), (QUESTIONS[0], 9)):
        messages = [*conversation.messages, {"role": "user", "content": question}]
        prompt = tokenizer.chat(messages)
        alone = diffuse(model, prompt, conversation.how)
        expected = [step.draft.tolist() for step in islice(alone, limit)]
        found = [piece.step.draft.tolist() for piece in islice(conversation.ask(question), limit)]
        assert found == expected
        assert conversation.cache.length >= common(prompt, tokenizer.chat([*messages, messages[0]]))
    conversation.how = denoise
    expected = fresh(conversation, model, QUESTIONS[1])
    same_steps(turn(conversation, QUESTIONS[1]), expected)


@pytest.mark.slow
def test_left_early_what_is_finished_counts(parties):
    model, tokenizer, sampling = parties["endless bytes"]
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling))
    for piece in conversation.ask(QUESTIONS[0]):
        if piece.step.block == 1:
            break
    assert conversation.messages[-1]["role"] == "assistant" and len(conversation.answer.tokens) == 64
    for _ in conversation.ask("Nothing is finished of this one"):
        break
    assert len(conversation.messages) == 2 and conversation.messages[0]["content"] == QUESTIONS[0]
    conversation.how = Ask(sampling=sampling, max_tokens=40)
    expected = fresh(conversation, model, QUESTIONS[1])
    same_steps(turn(conversation, QUESTIONS[1]), expected)


def test_a_pass_that_is_broken_off(parties, monkeypatch):
    """Its cache is of no use any more; the conversation is."""
    model, tokenizer, sampling = parties["bytes"]
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=40))
    turn(conversation, QUESTIONS[0])

    def broken(rows):
        rows[0].cache.layers[0].end += 7  # as a pass does that is half built
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "denoise", broken)
        turn(conversation, QUESTIONS[1])
    assert len(conversation.messages) == 2
    expected = fresh(conversation, model, QUESTIONS[1])
    same_steps(turn(conversation, QUESTIONS[1]), expected)


def test_reading_may_be_left_between_two_passes(parties, monkeypatch):
    monkeypatch.setattr(batch, "PIECE", 8)
    model, tokenizer, sampling = parties["bytes"]
    how = Ask(sampling=sampling, max_tokens=40)
    conversation = Conversation(Counting(model), tokenizer, how)
    conversation.say(QUESTIONS[2])
    length = len(conversation.tokens)
    assert list(conversation.read()) == list(range(length - 8, 0, -8))
    conversation.close()
    assert conversation.messages == []
    conversation.say(QUESTIONS[2])
    assert conversation.unread == length  # what nothing came of is not kept
    next(conversation.read())
    conversation.close()
    expected = fresh(conversation, model, QUESTIONS[1])
    same_steps(turn(conversation, QUESTIONS[1]), expected)


@pytest.mark.parametrize("question", ["", " \n", "x" * 5000, "\udcff"])
def test_a_question_that_cannot_be_asked_changes_nothing(parties, question):
    model, tokenizer, sampling = parties["bytes"]
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=5))
    turn(conversation, QUESTIONS[0])
    before = (list(conversation.messages), conversation.cache.length)
    with pytest.raises(Mistake):
        turn(conversation, question)
    assert (conversation.messages, conversation.cache.length) == before


@pytest.mark.parametrize("name", ["endless bytes", pytest.param("bpe", marks=pytest.mark.slow)])
def test_a_saved_chat_goes_on_as_it_would_have(parties, name, tmp_path):
    model, tokenizer, sampling = parties[name]
    how = Ask(sampling=sampling, max_tokens=40)
    one = Conversation(Counting(model), tokenizer, how, system="Be brief.")
    turn(one, QUESTIONS[0])
    one.save(tmp_path / "chat")
    other = Conversation(Counting(model), tokenizer, how)
    turn(other, "Something else")
    other.load(tmp_path / "chat")
    assert (other.messages, other.system) == (one.messages, "Be brief.")
    one.model.encoded = other.model.encoded = 0
    same_steps(turn(other, QUESTIONS[1]), turn(one, QUESTIONS[1]))
    assert one.model.encoded == other.model.encoded
    other.save(tmp_path / "chat")  # over the old one
    assert len(list((tmp_path / "chat").iterdir())) == 2
    one.load(tmp_path / "chat")
    assert one.messages == other.messages and one.cache.length == other.cache.length


@pytest.mark.slow
def test_the_last_question_is_taken_back(parties):
    model, tokenizer, sampling = parties["bytes"]
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=40))
    with pytest.raises(Mistake, match="nothing was asked"):
        conversation.undo()
    turn(conversation, QUESTIONS[0])
    expected = fresh(conversation, model, QUESTIONS[1])
    turn(conversation, QUESTIONS[2])
    assert conversation.undo() == QUESTIONS[2] and len(conversation.messages) == 2
    same_steps(turn(conversation, QUESTIONS[1]), expected)
    assert (conversation.undo(), conversation.undo(), conversation.messages) == (QUESTIONS[1], QUESTIONS[0], [])


def test_all_turns_are_forgotten(parties):
    model, tokenizer, sampling = parties["bytes"]
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=40))
    turn(conversation, QUESTIONS[0])
    conversation.reset()
    assert conversation.cache.length == 0
    expected = fresh(conversation, model, QUESTIONS[0])
    same_steps(turn(conversation, QUESTIONS[0]), expected)


@pytest.mark.slow
def test_pieces_that_nobody_asks_for_any_more(parties):
    """A question is asked, or all is forgotten, while the answer before is still held by somebody."""
    model, tokenizer, sampling = parties["endless bytes"]
    conversation = Conversation(model, tokenizer, Ask(sampling=sampling, max_tokens=150))
    held = conversation.ask(QUESTIONS[0])
    while next(held).step.block == 0:
        pass
    finished = conversation.answer
    expected = [*conversation.messages, {"role": "assistant", "content": tokenizer.decode(finished.tokens)}]
    steps = turn(conversation, QUESTIONS[1])
    assert len(finished.tokens) == 64 and conversation.messages[:2] == expected
    messages = conversation.messages
    assert list(held) == [] and conversation.messages is messages and len(messages) == 4 and len(steps) > 3
    held = conversation.ask(QUESTIONS[2])
    next(held)
    conversation.reset()
    assert list(held) == [] and conversation.messages == conversation.tokens == []
    expected = fresh(conversation, model, QUESTIONS[0])
    same_steps(turn(conversation, QUESTIONS[0]), expected)


def test_a_result_takes_the_place_of_the_token_that_ended_the_calls(bpe):
    """Left to right, that token is in the cache."""
    model, tokenizer, _ = bpe

    class Typed(Counting):
        def autoregress(self, continuations, draw):
            [text] = continuations
            self.model.encode([text.pending], [text.cache])
            for token in tokenizer.encode("<|tool_call>call:a{}<tool_call|><turn|>", special_tokens=True):
                self.model.encode([Text([token])], [text.cache])
                yield [token]

    conversation = Conversation(Typed(model), tokenizer, Ask(mode="ar"))
    turn(conversation, "Go")
    conversation.respond("done")
    assert conversation.encoded == conversation.tokens[: conversation.cache.length]
    assert 0 < conversation.unread <= len(tokenizer.encode("response:a{value:done}")) + 5
