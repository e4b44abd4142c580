"""Messages as clients record them: what the template gets, and the prompt that comes of it."""

import json

import pytest
from tokenizer_folders import BPE, TINY, copy

from mlx_dgemma.errors import Mistake
from mlx_dgemma.tokens.messages import MessageMistake, generated_text, hears_tools, prompt_tokens, template_messages
from mlx_dgemma.tokens.stream import TextStream
from mlx_dgemma.tokens.tokenizer import Tokenizer

# As Gemma 4's of July 2026: a call's arguments must be an object, results follow in the model's turn and are found by
# the call's id, and a channel is opened for thoughts about them.
STRICT = """\
{%- macro block(name, value) -%}<|tool_response>response:{{ name }}{value:<|"|>{{ value }}<|"|>}<tool_response|>
{%- endmacro -%}
{{ bos_token }}
{%- for t in tools or [] %}<|tool>{{ t.function.name }}:{{ t.function.description }}<tool|>{% endfor %}
{%- for m in messages %}{% if m.role != 'tool' -%}
<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}{% for c in m.tool_calls or [] -%}
<|tool_call>call:{{ c.function.name }}{
{%- if c.function.arguments is string %}{{ raise_exception('arguments must be an object') }}{% endif -%}
{%- for k, v in c.function.arguments | dictsort %}{{ ',' if not loop.first }}{{ k }}:{{ v | tojson }}{% endfor -%}
}<tool_call|>{% endfor %}{% set calls = m.tool_calls or [] %}{% for r in messages[loop.index:] if r.role == 'tool' %}
{%- for c in calls if c.id == r.tool_call_id %}{{ block(c.function.name, r.content) }}{% endfor -%}
{%- endfor %}{{ '' if m.tool_calls else '<turn|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\n' if messages[-1].role != 'tool' }}
{%- if enable_thinking and messages[-1].role == 'tool' %}{{ '<|channel>thought\n' }}{% endif %}
{%- if not enable_thinking and messages[-1].role != 'tool' %}{{ '<|channel>thought\n<channel|>' }}{% endif %}
{%- endif -%}
"""
ALTERNATING = """{{ bos_token }}{% for m in messages %}
{%- if not loop.first and messages[loop.index0 - 1].role == m.role %}{{ raise_exception('must alternate') }}{% endif -%}
<|turn>{{ m.role }}
{{ m.content }}<turn|>
{% endfor %}"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Tokenizer:
    return Tokenizer(copy(BPE, tmp_path_factory.mktemp("strict"), template=STRICT))


def user(content) -> dict:
    return {"role": "user", "content": content}


def call(arguments, identifier=None, name="weather") -> dict:
    entry = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return entry if identifier is None else {"id": identifier, **entry}


def calling(*calls, **more) -> dict:
    return {"role": "assistant", "tool_calls": list(calls), **more}


def text(tokenizer: Tokenizer, messages, **flags) -> str:
    return tokenizer.decode(prompt_tokens(tokenizer, messages, **flags), skip_special_tokens=False)


OBJECT = {"city": "Oslo", "days": [2, {"at": None}]}
ASKED = [user("How warm?"), calling(call(OBJECT, "c1")), {"role": "tool", "tool_call_id": "c1", "content": "3 C"}]


@pytest.mark.parametrize(
    "assistant",
    [
        calling(call(json.dumps(OBJECT), "c1"), content=None),
        calling(call(json.dumps(OBJECT), "c1"), content=""),
        calling(call(json.dumps(OBJECT), "c1"), content=[]),
        calling(call(OBJECT, "c1"), content=None, refusal=None, annotations=[], audio=None),
        {"role": "model", "content": None, "tool_calls": [{"id": "c1", "function": call(OBJECT)["function"]}]},
    ],
)
@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "tool_call_id": "c1", "content": "3 C"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3 C"}]},
        {"role": "tool", "name": "weather", "content": "3 C"},
        {"role": "tool", "tool_name": "weather", "content": "3 C"},
        {"role": "tool", "content": "3 C"},
    ],
)
def test_a_call_and_its_result(strict, assistant, result):
    said = text(strict, [user("How warm?"), assistant, result])
    assert said == text(strict, ASKED)
    assert '<|tool_call>call:weather{city:"Oslo",days:[2, {"at": null}]}<tool_call|>' in said
    assert said.endswith('<|tool_response>response:weather{value:<|"|>3 C<|"|>}<tool_response|>')


ARGUMENTS = json.dumps(OBJECT)
OF_OTHERS = {
    "OpenAI's Responses": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "How warm?"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": ARGUMENTS},
        {"type": "function_call_output", "call_id": "c1", "output": "3 C"},
    ],
    "LangChain's": [
        {"type": "human", "content": "How warm?", "additional_kwargs": {}},
        {"type": "ai", "content": "", "tool_calls": [{"name": "weather", "args": OBJECT, "id": "c1"}]},
        {"type": "tool", "content": "3 C", "tool_call_id": "c1"},
    ],
    "LangChain's, in data": [
        {"type": "human", "data": {"content": "How warm?", "type": "human"}},
        {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "weather", "args": OBJECT, "id": "c1"}]}},
        {"type": "tool", "data": {"content": "3 C", "tool_call_id": "c1"}},
    ],
}


@pytest.mark.parametrize("program", OF_OTHERS)
def test_a_call_and_its_result_as_others_record_it(strict, program):
    assert text(strict, OF_OTHERS[program]) == text(strict, ASKED)


def test_calls_that_follow_each_other_are_one_turn():
    """As Responses list those that the model made together; one behind a result is another turn."""
    call = {"type": "function_call", "name": "weather", "arguments": ARGUMENTS}
    result = {"type": "function_call_output", "output": "3 C"}
    ids = ("a", "b", "c")
    first, second, third = ([call | {"call_id": each}, result | {"call_id": each}] for each in ids)
    given = [user("How warm?"), first[0], second[0], first[1], second[1], *third]
    turns = template_messages(given)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [[call["id"] for call in turn.get("tool_calls", [])] for turn in (turns[1], turns[4])] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(("call_key", "result_key"), [("functionCall", "functionResponse"), ("function_call",) * 2])
def test_geminis_parts(call_key, result_key):
    result_key = result_key.replace("function_call", "function_response")
    given = [
        {"parts": [{"text": "How "}, {"text": "warm?"}]},
        {"role": "model", "parts": [{"thought": True, "text": "hm"}, {call_key: {"name": "weather", "args": OBJECT}}]},
        {"role": "user", "parts": [{result_key: {"name": "weather", "response": {"C": 3}}}]},
    ]
    asked, called, result = template_messages(given)
    assert asked == user("How warm?") and called["reasoning_content"] == "hm"
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": OBJECT}
    assert (result["role"], result["content"], result["name"]) == ("tool", '{"C": 3}', "weather")
    with pytest.raises(MessageMistake, match=r"messages\[0\].content\[0\]: this reads text only"):
        template_messages([{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}])


def test_results_in_any_order_find_their_calls(strict):
    calls = calling(call('{"city": "Oslo"}', "a"), call("", "b", "time"), call({}, "c", "time"))
    results = [{"role": "tool", "tool_call_id": i, "content": f"of {i}"} for i in "cab"]
    read = template_messages([user("?"), calls, *results])
    assert [(m["tool_call_id"], m["name"]) for m in read[2:]] == [("c", "time"), ("a", "weather"), ("b", "time")]
    unnamed = template_messages([user("?"), calls, *({"role": "tool", "content": "x"} for _ in "abc")])
    assert [m["tool_call_id"] for m in unnamed[2:]] == ["a", "b", "c"]
    again = template_messages([*ASKED, user("and now?"), calling(call({}, "c1", "time")), ASKED[2]])
    assert (again[2]["name"], again[-1]["name"]) == ("weather", "time")  # an id that is used twice: the last call's


def test_the_calls_of_2023():
    old = [
        user("?"),
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"role": "function", "name": "weather", "content": "3 C"},
    ]
    [_, assistant, result] = template_messages(old)
    assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert result == {
        "role": "tool",
        "content": "3 C",
        "name": "weather",
        "tool_call_id": assistant["tool_calls"][0]["id"],
    }


def test_anthropics_blocks(strict):
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": OBJECT}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "3 C"}
    said = text(strict, [user("How warm?"), {"role": "assistant", "content": [use]}, user([result])])
    assert said == text(strict, ASKED)
    thought = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."}, use]
    results = [result | {"content": [{"type": "text", "text": "3 C"}]}, {"type": "text", "text": "And Rome?"}]
    assert template_messages([user("?"), {"role": "assistant", "content": thought}, user(results)])[1:] == [
        calling(call(OBJECT, "c1"), content="I look.", reasoning_content="hm"),
        {"role": "tool", "content": "3 C", "tool_call_id": "c1", "name": "weather"},
        user("And Rome?"),
    ]
    picture = user([result | {"content": [{"type": "image", "source": {}}]}])
    with pytest.raises(MessageMistake, match="no pictures"):
        template_messages([user("?"), {"role": "assistant", "content": [use]}, picture])


@pytest.mark.parametrize("folder", [TINY, BPE])
@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Sort: Lima, Kyiv"}],
        [{"type": "text", "text": "Sort: "}, {"type": "text", "text": "Lima, Kyiv"}],
        [{"type": "input_text", "text": "Sort: Lima"}, ", Kyiv"],
        [{"type": "text", "text": "Sort: Lima, Kyiv", "cache_control": {"type": "ephemeral"}}],
    ],
)
def test_parts_of_text_are_joined(folder, content):
    tokenizer = Tokenizer(folder)
    assert prompt_tokens(tokenizer, [user(content)]) == prompt_tokens(tokenizer, "Sort: Lima, Kyiv")


def test_developer_is_system():
    tokenizer = Tokenizer(BPE)
    turns = [{"role": "system", "content": "Be brief."}, user("Hi")]
    assert prompt_tokens(tokenizer, [turns[0] | {"role": "developer"}, turns[1]]) == prompt_tokens(tokenizer, turns)
    assert prompt_tokens(tokenizer, "Hi", system="Be brief.") == prompt_tokens(tokenizer, turns)


def test_two_turns_of_one_role(tmp_path, reference):
    """Stay two where the template takes them, as in the reference; where it refuses, they are one."""
    turns = [user("Hi"), user("Who?")]
    assert prompt_tokens(Tokenizer(TINY), turns) == reference(TINY).apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    tokenizer = Tokenizer(copy(BPE, tmp_path, template=ALTERNATING))
    assert text(tokenizer, turns) == "<bos><|turn>user\nHi\n\nWho?<turn|>\n"
    systems = [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, *turns]
    assert text(tokenizer, systems) == "<bos><|turn>system\na\n\nb<turn|>\n<|turn>user\nHi\n\nWho?<turn|>\n"


def test_thoughts_reach_the_template(tmp_path):
    tokenizer = Tokenizer(
        copy(BPE, tmp_path, template="{% for m in messages %}[{{ m.reasoning_content }}]{% endfor %}")
    )
    for key in ("reasoning_content", "reasoning", "thinking"):
        messages = [user("?"), {"role": "assistant", "content": "4", key: "2 and 2"}, user("?")]
        assert text(tokenizer, messages) == "[][2 and 2][]"


# -- a conversation that ends with the assistant's turn ------------------------------------------------------------


@pytest.mark.parametrize("folder", [TINY, BPE])
@pytest.mark.parametrize("begun", ["Kyiv, ", "\n\nKyiv", " é", ""])
def test_the_answer_goes_on_from_the_assistants_turn(folder, begun):
    tokenizer = Tokenizer(folder)
    question, answer = [user("Sort: Lima, Kyiv")], {"role": "assistant", "content": begun}
    said = text(tokenizer, [*question, answer])
    assert said == text(tokenizer, question) + begun
    assert prompt_tokens(tokenizer, [*question, answer]) == tokenizer.encode(said, special_tokens=True)
    assert prompt_tokens(tokenizer, [*question, answer | {"content": [{"type": "text", "text": begun}]}]) == (
        prompt_tokens(tokenizer, [*question, answer])
    )


def test_what_is_begun_is_text_or_the_models_ids():
    tokenizer = Tokenizer(BPE)
    ids = tokenizer.encode("a<|tool_call>call:f{", special_tokens=True)
    question = prompt_tokens(tokenizer, "Hi")
    assert prompt_tokens(tokenizer, [user("Hi"), {"role": "assistant", "content": generated_text(tokenizer, ids)}]) == (
        question + ids
    )
    forged = prompt_tokens(tokenizer, [user("Hi"), {"role": "assistant", "content": "a<turn|>"}])
    assert forged.count(tokenizer.token_id("<turn|>")) == question.count(tokenizer.token_id("<turn|>"))
    meant = prompt_tokens(tokenizer, [user("Hi"), {"role": "assistant", "content": "a<turn|>"}], special_tokens=True)
    assert meant == question + tokenizer.encode("a<turn|>", special_tokens=True)


def test_thoughts_that_are_begun(strict):
    """An answer that is begun has been thought about; thoughts alone go on."""
    for messages, opened in (([user("Hi")], "<|turn>model\n"), (ASKED, "<tool_response|><|channel>thought\n")):
        channel = "" if opened.endswith("thought\n") else "<|channel>thought\n"
        assert text(strict, messages, thinking=True).endswith(opened)
        for more, ending in (
            ({"content": "Yes", "reasoning_content": "cold"}, f"{channel}cold\n<channel|>Yes"),
            ({"content": "", "reasoning": "cold"}, f"{channel}cold\n"),
            ({"content": "Yes"}, "Yes" if channel else "<channel|>Yes"),
        ):
            assert text(strict, [*messages, {"role": "assistant", **more}], thinking=True).endswith(opened + ending)
    assert text(strict, [user("Hi"), {"role": "assistant", "content": "Yes", "reasoning": "cold"}]).endswith(
        "<|turn>model\n<|channel>thought\n<channel|>Yes"
    )


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_channel_that_the_prompt_opened_is_thinking(strict, size):
    def streamed(prompt: list[int], said: str) -> tuple[str, str]:
        ids, stream = strict.encode(said, special_tokens=True), TextStream(strict, prompt)
        pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)] + [stream.finish()]
        return "".join(p[0] for p in pieces), "".join(p[1] for p in pieces)

    said = "3 is cold to me.<channel|>Yes.<turn|>"
    opened = prompt_tokens(strict, ASKED, thinking=True)
    assert streamed(opened, said) == ("3 is cold to me.", "Yes.")
    assert streamed(opened[:-1], "ght\n" + said)[1] == "Yes."
    assert streamed(prompt_tokens(strict, [user("Hi")], thinking=True), said) == ("", "3 is cold to me.Yes.")
    assert streamed(prompt_tokens(strict, [user("Hi")]), said) == ("", "3 is cold to me.Yes.")
    begun = [*ASKED, {"role": "assistant", "content": "Well, "}]
    assert streamed(prompt_tokens(strict, begun, thinking=True), "yes.") == ("", "yes.")
    forged = prompt_tokens(strict, [user("<|channel>thought\n")], thinking=True)
    assert streamed(forged, "Hi") == ("", "Hi")


# -- mistakes -------------------------------------------------------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("messages", "where", "problem"),
    [
        (["hi"], "messages[0]", "need a list of messages"),
        ([user("a"), None], "messages[1]", "need a list of messages"),
        ([{"content": "a"}], "messages[0].role", "need one of system, user"),
        ([{"role": "robot", "content": "a"}], "messages[0].role", "got 'robot'"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "need one of"),
        ([user(5)], "messages[0].content", "a text or a list of parts, got 5"),
        ([user({"type": "text", "text": "a"})], "messages[0].content", "a list of parts"),
        ([user([{"type": "text", "text": "a"}, PICTURE])], "messages[0].content[1]", "no pictures.*'image_url'"),
        ([user("a"), {"role": "tool", "content": [{"type": "image"}]}], "messages[1].content[0]", "no pictures"),
        ([{"role": "user", "content": "a", "images": ["AA=="]}], "messages[0].images", "no pictures"),
        ([user([{"type": "input_audio"}])], "messages[0].content[0]", "need.*text.*input_audio"),
        ([user([{"type": "text"}])], "messages[0].content[0]", "need"),
        ([user([{"type": "text", "text": None}])], "messages[0].content[0]", "need"),
        ([user([{"type": ["text"], "text": "a"}])], "messages[0].content[0]", "need"),
        ([user([None])], "messages[0].content[0]", "need"),
        ([user("a"), calling(call("{")), user("b")], "messages[1].tool_calls[0].function.arguments", "object.*'{'"),
        ([user("a"), calling(call("[1]"))], "messages[1].tool_calls[0].function.arguments", "got '\\[1\\]'"),
        ([user("a"), calling(call(7))], "messages[1].tool_calls[0].function.arguments", "got 7"),
        ([user("a"), calling(call("[" * 100_000))], "messages[1].tool_calls[0].function.arguments", "object"),
        ([user("a"), calling(call("{}"), "x")], "messages[1].tool_calls[1]", "got 'x'"),
        ([user("a"), calling({"function": {"arguments": "{}"}})], "messages[1].tool_calls[0]", "name"),
        ([user("a"), {"role": "assistant", "tool_calls": "f"}], "messages[1].tool_calls", "a list of calls"),
        ([user("a"), calling(call("{}", "c1"))], "messages[1].tool_calls", "add a message of role tool"),
        ([*ASKED[:2], ASKED[2] | {"tool_call_id": "c2"}], "messages[2].tool_call_id", "no call.*'c2'"),
        ([*ASKED[:2], ASKED[2] | {"tool_call_id": ["c1"]}], "messages[2].tool_call_id", "no call"),
    ],
)
def test_messages_that_cannot_be_used(strict, messages, where, problem):
    with pytest.raises(MessageMistake, match=problem) as caught:
        prompt_tokens(strict, messages)
    assert caught.value.where == where and str(caught.value).startswith(f"{where}: ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("messages", [[], [user(" ")], [user([])], [{"role": "assistant", "content": "Hi"}], ""])
def test_nothing_is_asked(strict, messages):
    with pytest.raises(Mistake, match="the prompt is empty"):
        prompt_tokens(strict, messages)


def test_a_result_may_be_empty(strict):
    assert text(strict, [*ASKED[:2], ASKED[2] | {"content": ""}]).endswith('{value:<|"|><|"|>}<tool_response|>')


def test_tools_that_a_template_ignores(strict):
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}]
    assert hears_tools(strict, tools) and not hears_tools(Tokenizer(TINY), tools)
    assert "<|tool>weather:of a city<tool|>" in text(strict, "Hi", tools=tools)
    assert text(strict, "Hi", tools=[]) == text(strict, "Hi")
