"""Requests that no client should send: each is answered, none with an error of the server, and nothing is left."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import served, until
from test_openai import ANSWER, QUESTION, TOOL, text_of, tiny

USER = [{"role": "user", "content": "Sort: b, a"}]
BODIES = {  # of each endpoint, one that is right
    "/v1/chat/completions": {"messages": USER, "tools": [TOOL], "response_format": {"type": "text"}, "n": 1},
    "/v1/completions": {"prompt": "Sort: b, a", "stop": ["a"]},
    "/v1/fim/completions": {"prompt": "a = ", "suffix": "\n", "gap": 1},
    "/infill": {"input_prefix": "a = ", "input_suffix": "\n", "n_predict": 2, "input_extra": [{"text": "b"}]},
    "/api/chat": {"messages": USER, "options": {"num_predict": 4}, "format": "json", "stream": False},
    "/api/generate": {"prompt": "Sort: b, a", "system": "x", "raw": False, "stream": False},
    "/api/show": {"model": "tiny"},
    "/v1/responses": {"input": USER, "instructions": "x", "text": {"format": {"type": "text"}}, "tools": []},
    "/v1/messages": {"messages": USER, "max_tokens": 4, "system": "x", "thinking": {"type": "disabled"}},
    "/v1/messages/count_tokens": {"messages": USER},
    "/v1/edit/completions": {"text": "a\nb\n", "lines": "1", "prompt": "x", "gap": 1},
    "/v1/apply/completions": {
        "messages": [{"role": "user", "content": "<|original_code|>a<|/original_code|>"}],
        "gap": 1,
    },
}
FIELDS = (
    "messages", "prompt", "suffix", "fill", "stream", "max_tokens", "n", "stop", "seed", "temperature", "top_p",
    "top_k", "mode", "preset", "verify", "canvas_length", "sampler", "template", "choices", "json_schema", "drafts",
    "diffusing", "tools", "tool_choice", "response_format", "logprobs", "reasoning_effort", "chat_template_kwargs",
    "input", "text",
    "stream_options", "format", "options", "think", "system", "lines", "gap", "strength", "model", "input_extra",
)  # fmt: skip
QUICKLY = {"max_denoising_steps": 1, "deadline": 0.2, "canvas_length": 16}
WORDS = [
    "",
    "a",
    "auto",
    "ar",
    "tiny",
    "\ud800",
    "\x00",
    "<|turn>",
    "<fill>",
    "{a}",
    "{",
    "💥",
    "../../etc/passwd",
    "x" * 9999,
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=9),
)
NAMES = st.sampled_from(["role", "content", "type", "text", "user", "function", "name", "properties", "enum", "schema"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


@pytest.fixture(scope="module")
def server():
    with served(tiny, places=4) as running:
        yield running


@st.composite
def bodies(draw):
    """A path, and a body that is right but for a few fields; or anything else."""
    path = draw(st.sampled_from(sorted(BODIES)))
    if draw(st.integers(0, 9)) == 0:
        return path, draw(st.binary(max_size=40) | VALUES.map(encoded))
    changes = draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
    dropped = draw(st.sets(st.sampled_from(sorted(BODIES[path])), max_size=1))
    body = {name: value for name, value in BODIES[path].items() if name not in dropped}
    return path, encoded(body | QUICKLY | changes)


def encoded(value) -> bytes:
    return json.dumps(value).encode()


def check(server, path: str, body: bytes) -> None:
    reply = server.send("POST", path, body)
    data = reply.read()
    assert reply.status < 500 or reply.status == 503, (reply.status, data)
    assert b"Traceback" not in data and b"/secret" not in data
    if reply.status >= 400:
        error = json.loads(data)["error"]
        assert error if path.startswith("/api/") else error["message"]
    reply.connection.close()


def nothing_is_left(server) -> None:
    until(lambda: server.metric("requests_running") == server.metric("rows_running") == 0)
    assert text_of(server.ask(QUESTION)[1]) == ANSWER


FUZZ = int(os.environ.get("FUZZ", 0))  # examples, new ones each time; without it few, the same each time
ABOUT = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": not FUZZ}


def test_what_is_nearly_right(server):
    settings(max_examples=5, **ABOUT)(given(bodies())(lambda pair: check(server, *pair)))()
    nothing_is_left(server)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/fim/completions", "/infill"])
@pytest.mark.parametrize("value", [True, 5, ["x"], "text"])
def test_a_form_of_the_wrong_type(server, path, value):
    check(server, path, json.dumps(BODIES.get(path, {"prompt": "a"}) | {"response_format": value}).encode())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"])
@pytest.mark.parametrize("field", ["tool_choice", "thinking", "reasoning", "text", "response_format", "output_config"])
@pytest.mark.sample(4)
def test_a_field_within_a_field_of_the_wrong_type(server, path, field):
    body = {"tools": [TOOL], "max_tokens": 4} | BODIES[path] | QUICKLY
    for inner in ("type", "function", "name", "format"):
        for value in ([1], {"a": [1]}, "x", 5):
            check(server, path, encoded(body | {field: {inner: value}}))


@pytest.mark.slow
def test_many_that_are_nearly_right(server):
    settings(max_examples=FUZZ or 60, **ABOUT)(given(bodies())(lambda pair: check(server, *pair)))()
    nothing_is_left(server)


RAW = [
    b"GARBAGE\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nhost: evil.test\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /%00%ff/../.. HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET " + b"/x" * 40_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00" * 40,
]


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_what_is_no_request(server, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        while part := raw.recv(4096):
            answer += part
    assert b" 500 " not in answer.split(b"\r\n")[0]
    assert server.get("/health")[0] == 200


def test_clients_that_leave_at_any_moment(server):
    """With their request half sent, before the reply, in the middle of it."""
    draw, body = random.Random(0), json.dumps({"messages": USER, "stream": True, "drafts": True, "mode": "ar"}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall((head + body)[: draw.randint(1, 2 * len(head + body))])
            raw.settimeout(draw.choice([0.001, 0.02, 0.1]))
            with suppress(TimeoutError):
                raw.recv(draw.randint(1, 2000))
    nothing_is_left(server)


def test_nobody_reads_another_s_text(server):
    """Prompts that ask for what others wrote, while others write: each gets what it gets alone."""
    secret = "Reverse: swordfish, Kofi, Eve"
    few = {"max_denoising_steps": 4}
    alone = text_of(server.ask("Sort: Lima, Kyiv", **few)[1])
    connections = []
    for number in range(4):
        connections.append(http.client.HTTPConnection("127.0.0.1", server.port))
        question = secret if number % 2 else "Sort: Lima, Kyiv"
        body = {"messages": [{"role": "user", "content": question}], **few}
        connections[-1].request("POST", "/v1/chat/completions", json.dumps(body))
    texts = [text_of(json.loads(connection.getresponse().read())) for connection in connections]
    assert set(texts[::2]) == {alone} and "sword" not in alone and len(set(texts[1::2])) == 1
