"""Chat completions over the wire: what the command writes, alone and in company; streams, drafts, forms, mistakes."""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest
from served import served, until

from mlx_dgemma import load
from mlx_dgemma.generate.__main__ import main as generate
from mlx_dgemma.writing.ask import Ask

QUESTION = "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old."
ANSWER = '{"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}'
CODE = "Write a function scale(a, w) that multiplies each w in a by 44."
ENDLESS = "stop=entropy,entropy_threshold=1e-9,max_denoising_steps=100000"
PATH = "/v1/chat/completions"
FEW = {"max_denoising_steps": 3}  # where what is written is not the point


def tiny():
    model, tokenizer, sampling = load()
    return model, tokenizer, Ask(sampling=sampling)


@pytest.fixture(scope="module")
def server():
    with served(tiny, places=16) as running:
        yield running


def command(capsys, question: str, *flags: str) -> str:
    assert generate(["--prompt", question, "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["text"]


def text_of(reply: dict) -> str:
    return reply["choices"][0]["message"]["content"]


def deltas(chunks: list) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1] if chunk["choices"])


BRIEF = {"role": "system", "content": "Be brief."}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
STEPS = ["--max-denoising-steps", "3"]
GAPS = [  # that are the command's alone, as test_clients.py holds
    ("/v1/fim/completions", {"prompt": "def scale(a, w):\n    return [w * ", "suffix": " for w in a]\n", **FEW}),
    ("/v1/edit/completions", {"text": "a = [w * 43 for w in b]\n", "lines": "1", "prompt": CODE, "gap": 24, **FEW}),
    ("/v1/completions", {"prompt": [QUESTION, CODE], "seed": 2}),
]
REQUESTS = [
    (QUESTION, {}, []),
    (CODE, {"seed": 3, **FEW}, ["--seed", "3", *STEPS]),
    ("Reverse: clerk, Kofi, Eve, Turin", {"seed": 1, "max_tokens": 9}, ["--seed", "1", "--max-tokens", "9"]),
    ("Sort: Lima, Kyiv, Accra", {"preset": "fast,sampler=scheduled"}, ["--preset", "fast,sampler=scheduled"]),
    (CODE, {"mode": "ar", "max_tokens": 16}, ["--mode", "ar", "--max-tokens", "16"]),
    (CODE, {"mode": "ar", "temperature": 0.9, "seed": 5, "max_tokens": 16},
     ["--mode", "ar", "--preset", "temp=0.9", "--seed", "5", "--max-tokens", "16"]),
    ("Sort: c, b, a", {"preset": "verify", **FEW}, ["--preset", "verify", *STEPS]),
    ("Sort: b, a", {"verify": True, "canvas_length": 32, **FEW}, ["--verify", "--preset", "canvas_length=32", *STEPS]),
    (CODE, {"template": "def {name}({args}):\n    return {x}", **FEW},
     ["--template", "def {name}({args}):\n    return {x}", *STEPS]),
    ("Who?", FEW, STEPS),
    (QUESTION, {"json_schema": PERSON, **FEW}, ["--json-schema", "PERSON", *STEPS]),
    ("Is Paris in France?", {"choices": ["yes", "no"]}, ["--choices", "yes,no"]),
    (QUESTION, {"messages": [BRIEF, {"role": "user", "content": QUESTION}]}, ["--system", "Be brief."]),
]  # fmt: skip


@pytest.mark.slow
def test_every_text_is_the_command_s_alone_and_in_company(server, capsys, tmp_path):
    (tmp_path / "PERSON").write_text(json.dumps(PERSON))
    flags = [[str(tmp_path / flag) if flag == "PERSON" else flag for flag in flags] for _, _, flags in REQUESTS]
    wanted = [command(capsys, question, *given) for (question, _, _), given in zip(REQUESTS, flags, strict=True)]
    gaps = [[choice["text"] for choice in server.post(*each)[1]["choices"]] for each in GAPS]
    alone = [text_of(server.ask(question, **fields)[1]) for question, fields, _ in REQUESTS]
    assert alone == wanted
    together: dict[int, str] = {}

    def ask(number: int) -> None:
        time.sleep(number % 5 / 50)
        if number < len(REQUESTS):
            question, fields, _ = REQUESTS[number]
            together[number] = text_of(server.ask(question, **fields)[1])
        else:
            reply = server.post(*GAPS[number - len(REQUESTS)])[1]
            together[number] = [choice["text"] for choice in reply["choices"]]

    threads = [threading.Thread(target=ask, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(16)] == [*wanted, *gaps]
    assert server.metric("rows_running") == server.metric("requests_waiting") == 0


def test_a_reply_counts_tokens_and_passes(server):
    status, reply = server.ask(QUESTION, model="any name")
    usage = reply["usage"]
    assert status == 200 and reply["model"] == "any name" and reply["choices"][0]["finish_reason"] == "stop"
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["completion_tokens"] == len(ANSWER) + 1 and usage["diffusion"]["steps"] >= 2


def test_a_stream_is_the_answer_in_pieces(server):
    body = {"messages": [{"role": "user", "content": CODE}], "stream": True, "stream_options": {"include_usage": True}}
    chunks = server.stream(PATH, body)
    assert chunks[-1] == "[DONE]" and chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert deltas(chunks) == text_of(server.ask(CODE)[1])
    assert [len(chunk["choices"]) for chunk in chunks[:-1]] == [1] * (len(chunks) - 2) + [0]
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop" and chunks[-2]["usage"]["completion_tokens"] > 9
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1


def test_drafts_come_only_to_those_who_ask(server):
    body = {"messages": [{"role": "user", "content": CODE}], "stream": True}
    assert not [chunk for chunk in server.stream(PATH, body)[:-1] if "type" in chunk]
    chunks = server.stream(PATH, body | {"drafts": "tokens"})
    frames = [chunk for chunk in chunks[:-1] if chunk.get("type") == "diffusion_frame"]
    assert frames and deltas(chunks) == text_of(server.ask(CODE)[1])
    for frame in frames:
        details = frame["diffusion"]
        assert frame["choices"][0]["delta"] == {} and frame["step"] < frame["total"]
        assert "".join(details["tokens"]) == frame["text"]
        assert len(details["tokens"]) == len(details["accepted"]) == len(details["entropy_each"])
        accepted = [piece for piece, sure in zip(details["tokens"], details["accepted"], strict=True) if sure]
        assert "".join(frame["text"][start:end] for start, end in details["settled"]) == "".join(accepted)


def test_mercury_s_frames_hold_the_whole_text(server):
    chunks = server.stream(PATH, {"messages": [{"role": "user", "content": QUESTION}], "diffusing": True})
    shown = [chunk for chunk in chunks[:-1] if "diffusion_meta" in chunk]
    progress = [chunk["diffusion_meta"]["diffusion_progress"] for chunk in shown]
    assert (
        shown[-1]["choices"][0]["delta"]["content"] == ANSWER and progress[-1] == 1.0 and progress == sorted(progress)
    )
    assert chunks[-1] == "[DONE]" and chunks[-2]["choices"][0]["delta"] == {}


@pytest.mark.slow
def test_several_answers_have_one_seed_after_the_other(server):
    drawn = {"mode": "ar", "temperature": 2, "max_tokens": 16}
    _, reply = server.ask(CODE, n=3, seed=4, **drawn)
    alone = [text_of(server.ask(CODE, seed=4 + i, **drawn)[1]) for i in range(3)]
    assert [choice["message"]["content"] for choice in reply["choices"]] == alone and len(set(alone)) > 1


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_a_stop_cuts_the_text(server, mode):
    _, reply = server.ask(QUESTION, stop=['"job"', "zzz"], mode=mode)
    assert text_of(reply) == ANSWER.split('"job"')[0] and reply["choices"][0]["finish_reason"] == "stop"
    body = {"messages": [{"role": "user", "content": QUESTION}], "stop": ['"job"'], "stream": True, "mode": mode}
    assert deltas(server.stream(PATH, body)) == ANSWER.split('"job"')[0]
    assert server.metric("rows_running") == 0


def test_forms(server):
    _, reply = server.ask(CODE, template="def {name}({args}):\n    return {x}")
    assert reply["choices"][0]["slots"] == {"name": "scale", "args": "a, w", "x": "[w * 44 for w in a]"}
    _, reply = server.ask("Is Paris in France?", choices=["yes", "no"])
    assert sum(reply["probabilities"].values()) == pytest.approx(1) and text_of(reply) in ("yes", "no")
    schema = {"type": "object", "properties": {"n": {"enum": ["a", "b"]}}, "required": ["n"]}
    for shape in (
        {"json_schema": schema},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
    ):
        assert json.loads(text_of(server.ask("Which?", **shape, **FEW)[1]))["n"] in ("a", "b")


TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "parameters": {"type": "object", "properties": {"n": {"enum": ["a", "b"]}}, "required": ["n"]},
    },
}


def test_a_forced_tool_is_called(server):
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    for tools, choice in (([TOOL, other], {"type": "function", "function": {"name": "pick"}}), ([TOOL], "required")):
        _, reply = server.ask("Which?", tools=tools, tool_choice=choice, **FEW)
        [call] = reply["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "pick" and json.loads(call["function"]["arguments"])["n"] in ("a", "b")
        assert reply["choices"][0]["finish_reason"] == "tool_calls" and text_of(reply) is None
    _, reply = server.ask("Which?", tools=[TOOL, other], tool_choice="required", **FEW)
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] in ("pick", "other")
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [TOOL], "tool_choice": "required", "stream": True}
    body |= FEW
    chunks = server.stream(PATH, body)
    calls = [
        chunk["choices"][0]["delta"]["tool_calls"]
        for chunk in chunks[:-1]
        if "tool_calls" in chunk["choices"][0]["delta"]
    ]
    assert len(calls) == 1 and calls[0][0]["index"] == 0 and chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_logprobs_are_the_causal_score(server):
    _, reply = server.ask(QUESTION, logprobs=True)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == ANSWER
    assert all(-5 < entry["logprob"] <= 0 and bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    tops = server.ask(QUESTION, logprobs=True, top_logprobs=1)[1]["choices"][0]["logprobs"]["content"]
    for entry, alone in zip(tops, entries, strict=True):
        [top] = entry["top_logprobs"]
        assert entry["logprob"] == alone["logprob"] <= top["logprob"] + 1e-5 and not alone["top_logprobs"]
        assert (top["token"] == entry["token"]) <= (abs(top["logprob"] - entry["logprob"]) < 1e-5)


def test_what_has_no_effect_is_said(server):
    _, reply = server.ask("Sort: b, a", temperature=0, unheard_of=1, user="me", tools=[TOOL], **FEW)
    assert len(reply["warnings"]) == 3 and "user" not in " ".join(reply["warnings"])
    assert "warnings" not in server.ask("Sort: b, a", user="me", store=False, **FEW)[1]


PICTURE = {"type": "image_url", "image_url": {"url": "http://x"}}
MISTAKES = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content[0]"),
    ({"n": 99}, "n"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"seed": -2}, "seed"),
    ({"mode": "fast"}, "mode"),
    ({"preset": "nothing"}, "preset"),
    ({"preset": "temp=1"}, "preset"),
    ({"sampler": "nothing"}, "sampler"),
    ({"canvas_length": 9999}, None),
    ({"mode": "ar", "max_denoising_steps": 3}, "max_denoising_steps"),
    ({"mode": "ar", "verify": True}, "verify"),
    ({"template": "no slots"}, "template"),
    ({"template": "{a}", "choices": ["a", "b"]}, "choices"),
    ({"choices": ["a"]}, "choices"),
    ({"json_schema": {"type": 7}}, "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, None),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"deadline": 0}, "deadline"),
    ({"stream": "yes"}, "stream"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), MISTAKES, ids=[json.dumps(fields)[:60] for fields, _ in MISTAKES])
def test_a_mistake_names_its_field(server, fields, param):
    status, reply = server.ask("Sort: b, a", **fields)
    error = reply["error"]
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert error["message"]


def test_what_clients_write_for_nothing(server):
    """llama.cpp's and LM Studio's write -1, others an empty stop."""
    _, reply = server.ask(QUESTION, max_tokens=-1, seed=-1, stop="")
    assert text_of(reply) == ANSWER


def test_an_item_of_a_list_that_is_wrong_is_named(server):
    _, reply = server.ask(QUESTION, stop=["a", None])
    assert reply["error"]["message"].startswith("stop[1]: ")


def test_a_path_without_its_version_is_told(server):
    status, reply = server.post("/chat/completions", {"messages": []})
    assert status == 404 and reply["error"]["message"].endswith("there is /v1/chat/completions")


def test_a_packed_body_is_told(server):
    status, reply = server.post("/v1/chat/completions", b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert status == 415 and "gzip" in reply["error"]["message"]


def test_a_prompt_that_is_too_long_is_refused_before_it_is_read(server):
    """It was encoded first, for a minute, and a stream's refusal came as an event."""
    for length in (5000, 150_000):
        for fields in ({}, {"stream": True}, {"mode": "ar"}, {"json_schema": {"enum": ["a", "b"]}}):
            status, reply = server.ask("x" * length, **fields)
            assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")
        body = {"messages": [{"role": "user", "content": "x" * length}], "max_tokens": 9, "stream": True}
        status, reply = server.post("/v1/messages", body)
        assert status == 400 and reply["error"]["message"].startswith("prompt is too long: ")
        assert server.post("/v1/responses", {"input": "x" * length, "stream": True})[0] == 400
        assert server.post("/v1/completions", {"prompt": "x" * length})[0] == 400


DEEP = [b'{"a":' * 80 + b"1" + b"}" * 80, b'{"n": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', *DEEP])
def test_a_body_that_is_no_object(server, body):
    status, reply = server.post(PATH, body)
    assert status == 400 and "body" in reply["error"]["message"]


def test_a_body_that_is_too_large(server):
    reply = server.send("POST", PATH, b'{"a": "' + b"x" * (9 << 20))
    assert reply.status == 413


def test_one_that_leaves_is_gone(server):
    """With a stream and without one, in the midst of writing."""
    for stream in (True, False):
        before = server.metric("cancelled_total")
        endless = {
            "messages": [{"role": "user", "content": "Who?"}],
            "preset": "stop=entropy,entropy_threshold=1e-9",
            "stream": stream,
        }
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", PATH, json.dumps(endless))
        until(lambda: server.metric("rows_running") == 1)
        connection.close()
        until(lambda: server.metric("rows_running") == 0)
        assert server.metric("cancelled_total") == before + 1


def test_a_deadline_counts_from_the_request(server):
    endless = {"preset": ENDLESS, "deadline": 0.3}
    start = time.monotonic()
    status, reply = server.ask("Who?", **endless)
    assert status == 200 and reply["choices"][0]["finish_reason"] == "length" and time.monotonic() - start < 5


def test_the_model_is_there_under_any_name(server):
    listed = json.loads(server.get("/v1/models")[1])
    assert [entry["id"] for entry in listed["data"]] == ["tiny"]
    assert json.loads(server.get("/v1/models/some/other")[1])["id"] == "some/other"
    assert server.get("/health")[0] == 200 and server.get("/")[1] == "Ollama is running"
    status, text = server.get("/v1/nothing")
    assert status == 404 and json.loads(text)["error"]["type"] == "not_found_error"
    assert server.get("/v1/chat/completions")[0] == 405


def test_the_figures_of_a_request(server):
    names = ("requests_total", "tokens_total", "pass_seconds_count", "first_block_seconds_count", "block_steps_count")
    names += ("first_draft_seconds_count",)
    before = [server.metric(name) for name in names]
    usage = server.ask(QUESTION)[1]["usage"]
    grown = [server.metric(name) - value for name, value in zip(names, before, strict=True)]
    assert grown[0] > 1 and grown[1] == usage["total_tokens"] and grown[2] >= 2 and grown[3:] == [1, 1, 1]


def test_control_tokens_that_a_client_spells_are_text(server):
    plain = server.ask("Sort: b, a", **FEW)[1]["usage"]["prompt_tokens"]
    spelled = server.ask("Sort: b, a<turn|>", **FEW)[1]["usage"]["prompt_tokens"]
    assert spelled == plain + len("<turn|>")


def test_a_body_nested_beyond_what_python_reads(server):
    status, reply = server.post(PATH, b"[" * 100_000)
    assert status == 400 and "body" in reply["error"]["message"]
