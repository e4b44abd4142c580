"""Thoughts and tool calls on the wire, by a model that writes what a script says behind a tokenizer like Gemma's."""

from __future__ import annotations

import json

import pytest
from scripted import Scripted, random_bpe
from served import served

from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.sampling import Sampling

USER = [{"role": "user", "content": "What is the weather in Oslo?"}]
THOUGHT = "<|channel>thought\nIt is cold.<channel|>Four degrees.<turn|>"
CALL = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:2}<tool_call|><|tool_response>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}]


@pytest.fixture
def serve(tmp_path):
    """A server whose answers are these texts, one after the other."""

    def start(*texts):
        def load():
            model, tokenizer = random_bpe(tmp_path / "model")
            return Scripted(model, tokenizer, texts), tokenizer, Ask(sampling=Sampling(max_denoising_steps=1))

        return served(load)

    return start


def joined(chunks: list, key: str) -> str:
    return "".join(chunk["choices"][0]["delta"].get(key) or "" for chunk in chunks[:-1] if chunk["choices"])


def test_thoughts_come_under_both_names(serve):
    with serve(*[THOUGHT] * 5) as server:
        body = {"messages": USER, "reasoning_effort": "high"}
        message = server.post("/v1/chat/completions", body)[1]["choices"][0]["message"]
        assert message["content"] == "Four degrees."
        assert message["reasoning"] == message["reasoning_content"] == "It is cold."
        chunks = server.stream("/v1/chat/completions", body | {"stream": True})
        assert joined(chunks, "content") == "Four degrees."
        assert joined(chunks, "reasoning") == joined(chunks, "reasoning_content") == "It is cold."
        reply = server.post("/api/chat", {"messages": USER, "think": True, "stream": False})[1]
        assert (reply["message"]["thinking"], reply["message"]["content"]) == ("It is cold.", "Four degrees.")
        body = {"messages": USER, "max_tokens": 99, "thinking": {"type": "enabled", "budget_tokens": 9}}
        blocks = server.post("/v1/messages", body)[1]["content"]
        assert [(block["type"], block[block["type"]]) for block in blocks] == [
            ("thinking", "It is cold."),
            ("text", "Four degrees."),
        ]
        kinds = [name for name, _ in server.stream("/v1/messages", body | {"stream": True})]
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2


def test_calls_come_as_json(serve):
    with serve(*[CALL] * 5) as server:
        body = {"messages": USER, "tools": TOOLS}
        choice = server.post("/v1/chat/completions", body)[1]["choices"][0]
        [call] = choice["message"]["tool_calls"]
        wanted = {"city": "Oslo", "days": 2}
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", wanted)
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        chunks = server.stream("/v1/chat/completions", body | {"stream": True})
        calls = [
            c["choices"][0]["delta"]["tool_calls"] for c in chunks[:-1] if "tool_calls" in c["choices"][0]["delta"]
        ]
        assert (
            len(calls) == 1 and calls[0][0]["index"] == 0 and chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
        )
        reply = server.post("/api/chat", body | {"stream": False})[1]
        assert reply["message"]["tool_calls"] == [{"function": {"name": "weather", "arguments": wanted}}]
        flat = [TOOLS[0]["function"] | {"type": "function"}]
        [item] = server.post("/v1/responses", {"input": "Oslo?", "tools": flat})[1]["output"]
        assert item["type"] == "function_call" and json.loads(item["arguments"]) == wanted
        anthropic = [{"name": "weather", "input_schema": PARAMETERS}]
        reply = server.post("/v1/messages", {"messages": USER, "max_tokens": 99, "tools": anthropic})[1]
        assert reply["content"][0]["input"] == wanted and reply["stop_reason"] == "tool_use"


def test_a_template_s_complaint_tells_no_path(serve):
    """This one takes no turn of a tool."""
    with serve() as server:
        call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        turns = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
        turns.append({"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "4 degrees"}]})
        status, reply = server.post("/v1/chat/completions", {"messages": turns, "tools": TOOLS})
        message = reply["error"]["message"]
        assert status == 400 and "the chat template failed" in message and "fixtures" not in message


def test_one_call_where_several_are_not_wanted(serve):
    """In every protocol, whole and as a stream; without the word both calls are given."""
    two = CALL.replace("<|tool_response>", "") + CALL.replace("Oslo", "Bergen")
    chat, anthropic = {"messages": USER, "tools": TOOLS}, [{"name": "weather", "input_schema": PARAMETERS}]
    with serve(*[two] * 5) as server:
        calls = [
            server.post("/v1/chat/completions", chat | more)[1]["choices"][0]["message"]["tool_calls"]
            for more in ({}, {"parallel_tool_calls": False})
        ]
        assert [len(each) for each in calls] == [2, 1] and "Oslo" in calls[1][0]["function"]["arguments"]
        chunks = server.stream("/v1/chat/completions", chat | {"parallel_tool_calls": False, "stream": True})
        shown = [len(chunk["choices"][0]["delta"].get("tool_calls", [])) for chunk in chunks[:-1]]
        assert sum(shown) == 1
        tool = {"type": "function", **TOOLS[0]["function"]}
        body = {"input": "Weather?", "tools": [tool], "parallel_tool_calls": False}
        assert len(server.post("/v1/responses", body)[1]["output"]) == 1
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        body = {"messages": USER, "max_tokens": 99, "tools": anthropic, "tool_choice": choice}
        assert len(server.post("/v1/messages", body)[1]["content"]) == 1


BOTH = THOUGHT.split("Four")[0] + CALL
CHOICE = {"type": "function", "function": {"name": "weather"}}


def test_a_forced_call_is_written_in_the_template_s_words_behind_thoughts(serve):
    wanted = {"city": "Oslo", "days": 2}
    other = {"type": "function", "function": {"name": "time", "description": "", "parameters": {"type": "object"}}}
    chat = {"messages": USER, "tools": [*TOOLS, other], "thinking": True}
    with serve(*[BOTH] * 6) as server:
        for choice in ("required", CHOICE):
            reply = server.post("/v1/chat/completions", chat | {"tool_choice": choice})[1]
            message = reply["choices"][0]["message"]
            [call] = message["tool_calls"]
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", wanted)
            assert (message["content"], message["reasoning"]) == (None, "It is cold.")
            assert "thinking" not in str(reply["warnings"])
            assert reply["choices"][0]["finish_reason"] == "tool_calls"
        chunks = server.stream("/v1/chat/completions", chat | {"tool_choice": "required", "stream": True})
        shown = [each for chunk in chunks[:-1] for each in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert json.loads(shown[0]["function"]["arguments"]) == wanted and len(shown) == 1
        assert (joined(chunks, "content"), joined(chunks, "reasoning")) == ("", "It is cold.")
        flat = {"input": "Oslo?", "tools": [TOOLS[0]["function"] | {"type": "function"}], "tool_choice": "required"}
        [item] = server.post("/v1/responses", flat | {"reasoning": {"effort": "low"}})[1]["output"]
        assert item["type"] == "function_call" and json.loads(item["arguments"]) == wanted
        anthropic = {"messages": USER, "max_tokens": 256, "tools": [{"name": "weather", "input_schema": PARAMETERS}]}
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            reply = server.post("/v1/messages", anthropic | {"tool_choice": choice, "thinking": {"type": "enabled"}})[1]
            assert [block["type"] for block in reply["content"]] == ["thinking", "tool_use"]
            assert reply["content"][1]["input"] == wanted and reply["stop_reason"] == "tool_use"


@pytest.mark.parametrize("fields", [{"tool_choice": CHOICE}, {"tool_choice": "required", "parallel_tool_calls": False}])
def test_one_forced_call_where_several_are_not_wanted(serve, fields):
    two = CALL.replace("<|tool_response>", "") + CALL.replace("Oslo", "Bergen")
    chat = {"messages": USER, "tools": TOOLS}
    with serve(two, two) as server:
        for choice, count in (({"tool_choice": "required"}, 2), (fields, 1)):
            reply = server.post("/v1/chat/completions", chat | choice)[1]["choices"][0]
            cities = [json.loads(call["function"]["arguments"])["city"] for call in reply["message"]["tool_calls"]]
            assert cities == ["Oslo", "Bergen"][:count] and reply["message"]["content"] is None


def test_a_forced_tool_is_called_whatever_is_said(serve):
    chat = {"messages": USER, "tools": TOOLS, "tool_choice": "required"}
    with serve(*["It is cold.<turn|>"] * 9) as server:
        reply = server.post("/v1/chat/completions", chat | {"max_tokens": 64})[1]["choices"][0]
        assert reply["message"]["tool_calls"] and reply["message"]["content"] is None
        wrong = TOOLS[0] | {"function": {"name": "odd", "parameters": {"properties": {"x": {"type": "y"}}}}}
        status, reply = server.post("/v1/chat/completions", chat | {"tools": [wrong]})
        assert status == 400 and reply["error"]["param"] == "tool_choice"
        assert reply["error"]["message"].startswith("odd: no JSON schema: 'y' is not valid")
