"""What editors, Ollama's, Anthropic's and OpenAI's newer clients ask for, and what they read of the reply."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from served import served
from test_openai import ANSWER, CODE, FEW, QUESTION, TOOL, tiny

from mlx_dgemma.edit.__main__ import main as edit
from mlx_dgemma.fill.__main__ import main as fill
from mlx_dgemma.seam.model import Text

BEFORE, BEHIND = "def scale(a, w):\n    return [w * ", " for w in a]\n"
USER = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server():
    with served(tiny) as running:
        yield running


def in_two_steps():
    model, tokenizer, ask = tiny()
    return model, tokenizer, replace(ask, sampling=replace(ask.sampling, max_denoising_steps=2))


@pytest.fixture(scope="module")
def hasty():
    """A server for what is the same however well it is written: a search takes many passes."""
    with served(in_two_steps) as running:
        yield running


@pytest.fixture(scope="module")
def gap(hasty):
    """What stands in the gap."""
    return hasty.post("/v1/fim/completions", {"prompt": BEFORE, "suffix": BEHIND})[1]["choices"][0]["text"]


@pytest.mark.slow
def test_a_gap_is_the_command_s(gap, capsys):
    few = ["--tries", "4", "--max-denoising-steps", "2"]
    assert fill(["--prefix", BEFORE, "--suffix", BEHIND, "--json", *few]) == 0
    assert json.loads(capsys.readouterr().out)["gaps"] == [gap] and gap


@pytest.mark.parametrize(
    "prompt",
    [
        f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{BEHIND}<|fim_middle|>",
        f"<fim_prefix>{BEFORE}<fim_suffix>{BEHIND}<fim_middle>",
        f"<PRE> {BEFORE} <SUF>{BEHIND} <MID>",
        f"<｜fim▁begin｜>{BEFORE}<｜fim▁hole｜>{BEHIND}<｜fim▁end｜>",
        f"[SUFFIX]{BEHIND}[PREFIX]{BEFORE}",
    ],
)
def test_sentinels_that_an_editor_wrote_are_a_gap(prompt):
    from mlx_dgemma.server.fim import sentinels

    assert sentinels(prompt) == (BEFORE, BEHIND)
    assert sentinels("def f():\n    pass # <fim_prefix>") is None


@pytest.mark.slow
def test_a_gap_in_every_way_in_which_it_is_asked_for(hasty, gap):
    sentinels = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{BEHIND}<|fim_middle|>"
    replies = [
        hasty.post("/v1/completions", {"prompt": BEFORE, "suffix": BEHIND})[1]["choices"][0]["text"],
        hasty.post("/v1/completions", {"prompt": sentinels})[1]["choices"][0]["text"],
        hasty.post("/v1/fim/completions", {"prompt": BEFORE, "suffix": BEHIND})[1]["choices"][0]["message"]["content"],
        hasty.post("/api/generate", {"prompt": BEFORE, "suffix": BEHIND, "stream": False})[1]["response"],
        hasty.post("/api/generate", {"prompt": sentinels, "raw": True, "stream": False})[1]["response"],
        hasty.post("/infill", {"input_prefix": BEFORE[:10], "prompt": BEFORE[10:], "input_suffix": BEHIND})[1][
            "content"
        ],
    ]
    assert replies == [gap] * len(replies)
    chunks = hasty.stream("/v1/fim/completions", {"prompt": BEFORE, "suffix": BEHIND, "stream": True, "drafts": True})
    shown = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(choice["delta"].get("content") or "" for choice in shown) == gap
    assert "".join(choice["text"] for choice in shown) == gap
    drafts = [chunk for chunk in chunks[:-1] if chunk.get("type") == "diffusion_frame"]
    assert drafts and all(BEHIND not in draft["text"] for draft in drafts)  # of the gap alone


def test_several_gaps(server):
    _, reply = server.post(
        "/v1/completions", {"fill": "def <fill>(a, w):\n    return [w * <fill> for w in a]\n", "gap": [5, 2]}
    )
    first, second = reply["gaps"]
    assert reply["choices"][0]["text"] == f"def {first}(a, w):\n    return [w * {second} for w in a]\n"


FACTS = "Extract JSON: Tess is 40 and works as a vet in Accra."
GAPS = '{"name": "<fill>", "age": <fill>, "job": "<fill>", "city": "Accra"}'


@pytest.mark.slow
def test_gaps_that_a_prompt_tells_are_the_command_s(server, capsys):
    assert fill([GAPS, "--prompt", FACTS, "--gap", "4,2,3", "--json"]) == 0
    body = {"fill": GAPS, "prompt": FACTS}
    _, reply = server.post("/v1/completions", body | {"tries": 5})
    assert reply["gaps"] == json.loads(capsys.readouterr().out)["gaps"] == ["Tess", "40", "vet"]
    chunks = server.stream("/v1/completions", body | {"gap": [4, 2, 3], "stream": True, "drafts": "tokens"})
    drafts = [chunk["diffusion"] for chunk in chunks[:-1] if chunk.get("type") == "diffusion_frame"]
    assert drafts and all(draft["gaps"] == [0] * 4 + [1] * 2 + [2] * 3 for draft in drafts)


@pytest.mark.slow
def test_infill_as_llama_cpp_has_it(hasty):
    body = {"input_prefix": BEFORE, "input_suffix": BEHIND, "response_fields": ["content", "timings/prompt_n", "other"]}
    assert set(hasty.post("/infill", body)[1]) == {"content", "timings/prompt_n"}
    extra = [{"filename": "a.py", "text": "x = 1\n", "time": 1}]
    assert hasty.post("/infill", {"input_prefix": BEFORE, "n_predict": 0, "input_extra": extra}) == (200, {})
    *_, last = hasty.stream("/infill", body | {"stream": True, "response_fields": None})
    assert last["stop"] is True


@pytest.mark.slow
def test_a_warm_up_is_a_prefill(hasty):
    long = "x = 1\n" * 120
    before = hasty.metric("prefix_tokens_hit_total")
    hasty.post("/infill", {"input_prefix": long, "n_predict": 0})
    hasty.post("/infill", {"input_prefix": long, "input_suffix": "\nz", "n_predict": 1})
    assert hasty.metric("prefix_tokens_hit_total") - before > 700


def test_a_deadline_cuts_the_search_and_says_so(server):
    body = {"input_prefix": BEFORE, "input_suffix": BEHIND, "t_max_predict_ms": 1}
    _, reply = server.post("/infill", body)
    assert reply["stop_type"] == "limit" and "deadline" in reply["warnings"][0] and reply["content"]


def test_a_plain_completion(server):
    _, reply = server.post("/v1/completions", {"prompt": QUESTION})
    assert reply["object"] == "text_completion" and reply["choices"][0]["text"] == ANSWER
    chunks = server.stream("/v1/completions", {"prompt": [QUESTION], "stream": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == ANSWER
    assert server.post("/v1/completions", {"prompt": [2, 40, 41]})[0] == 200
    for wrong in ([], ["a", []], [2, 10**6], [2, "a"], "", ["a"] * 65, [[2], [10**6]], [[2, True]]):
        status, refused = server.post("/v1/completions", {"prompt": wrong})
        assert (status, refused["error"]["param"]) == (400, "prompt")
    for field in ({"echo": True}, {"logprobs": 0}):
        assert server.post("/v1/completions", {"prompt": "a", "suffix": "b", **field})[0] == 400


SHORT = {"max_tokens": 6, "max_denoising_steps": 1}


def test_several_prompts_in_one_request(server):
    """Each is what it is alone; the answers to one stand together, and are counted together."""
    prompts = ["Sort: b, a", "Reverse: Eve, Kofi"]
    alone = [server.post("/v1/completions", {"prompt": each, "n": 2, **SHORT})[1] for each in prompts]
    texts = [choice["text"] for reply in alone for choice in reply["choices"]]
    _, reply = server.post("/v1/completions", {"prompt": prompts, "n": 2, **SHORT})
    assert [choice["index"] for choice in reply["choices"]] == list(range(4))
    assert [choice["text"] for choice in reply["choices"]] == texts
    for count in ("prompt_tokens", "completion_tokens"):
        assert reply["usage"][count] == sum(each["usage"][count] for each in alone)
    streamed = dict.fromkeys(range(4), "")
    body = {"prompt": prompts, "n": 2, "stream": True, "echo": True, **SHORT}
    for chunk in server.stream("/v1/completions", body)[:-1]:
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["text"]
    assert list(streamed.values()) == [prompts[i // 2] + text for i, text in enumerate(texts)]
    ids = [[2, *range(40, 60)], [2, *range(70, 99)]]
    both = server.post("/v1/completions", {"prompt": ids, **SHORT})[1]["choices"]
    assert [c["text"] for c in both] == [
        server.post("/v1/completions", {"prompt": each, **SHORT})[1]["choices"][0]["text"] for each in ids
    ]
    assert server.metric("rows_running") == 0


def test_the_score_of_a_prompt(server):
    """As lm-eval asks for it: token ids, echo, one token more; it reads the log-probabilities of the prompt."""
    ids = [2, *server.engine.tokenizer.encode("Sort: b, a")]
    body = {"prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    _, reply = server.post("/v1/completions", body | {"max_denoising_steps": 1})
    choice = reply["choices"][0]
    scores = choice["logprobs"]
    [expected] = server.engine.model.encode([Text(ids)], [server.engine.model.new_cache()], score=True)
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    assert scores["token_logprobs"][1 : len(ids)] == pytest.approx(expected.logprob[1:].tolist(), abs=1e-5)
    tops = [max(top.values()) for top in scores["top_logprobs"][1 : len(ids)]]
    assert tops == pytest.approx(expected.top[:-1].tolist(), abs=1e-5)
    assert len(scores["tokens"]) == len(ids) + 1 and choice["text"].startswith("Sort: b, a")
    assert [choice["text"][at] for at in scores["text_offset"][1:5]] == list("Sort")
    _, plain = server.post("/v1/completions", {"prompt": "Sort: b, a", "logprobs": 0, **SHORT})
    assert plain["choices"][0]["logprobs"]["top_logprobs"] is None


def lines_of(server, path: str, body: dict) -> list[dict]:
    return [json.loads(line) for line in server.send("POST", path, body)]


def test_ollama_streams_unless_it_is_told_not_to(server):
    lines = lines_of(server, "/api/chat", {"model": "m", "messages": USER})
    assert "".join(line["message"]["content"] for line in lines) == ANSWER
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == "stop" and lines[-1]["eval_count"] == len(ANSWER) + 1
    _, whole = server.post("/api/generate", {"model": "m", "prompt": QUESTION, "stream": False, "think": False})
    assert whole["response"] == ANSWER and whole["done"]
    cut = {"num_predict": 5, "num_ctx": 2048, "seed": -1, "mirostat": 1}
    _, short = server.post("/api/chat", {"messages": USER, "stream": False, "options": cut})
    assert short["message"]["content"] == ANSWER[:5] and short["done_reason"] == "length"
    assert short["warnings"] == ["mirostat is not known here and has no effect"]
    assert server.post("/api/generate", {"model": "m"})[1]["done_reason"] == "load"
    for template, warnings in (
        ("", []),
        ("{{ .Prompt }}", ["template of the prompt is not known here and has no effect"]),
    ):
        body = {"prompt": QUESTION, "template": template, "stream": False, "options": {"num_predict": 5}}
        _, reply = server.post("/api/generate", body)
        assert (reply["response"], reply.get("warnings", [])) == (ANSWER[:5], warnings)
    drafts = [line for line in lines_of(server, "/api/chat", {"messages": USER, "drafts": True}) if "type" in line]
    assert drafts and all(line["message"]["content"] == "" and not line["done"] for line in drafts)


def test_ollama_s_forms_and_tools(server):
    schema = {"type": "object", "properties": {"n": {"enum": ["a", "b"]}}, "required": ["n"]}
    _, reply = server.post("/api/chat", {"messages": USER, "format": schema, "stream": False})
    assert json.loads(reply["message"]["content"])["n"] in ("a", "b")
    assert server.post("/api/chat", {"messages": USER, "format": "yaml"})[0] == 400


def test_ollama_lists_the_model(server):
    [entry] = json.loads(server.get("/api/tags")[1])["models"]
    assert entry["name"] == "tiny:latest" and json.loads(server.get("/api/ps")[1])["models"]
    shown = server.post("/api/show", {"name": entry["name"]})[1]
    assert ".Suffix" in shown["template"] and {"completion", "insert"} <= set(shown["capabilities"])
    assert shown["model_info"]["diffusion_gemma.context_length"] == 4096
    assert "version" in json.loads(server.get("/api/version")[1])
    status, reply = server.post("/api/chat", {"messages": [{"role": "user", "content": ""}]})
    assert status == 400 and isinstance(reply["error"], str)


def test_messages(server):
    body = {"max_tokens": 100, "messages": USER, "system": [{"type": "text", "text": "Be brief."}]}
    _, reply = server.post("/v1/messages?beta=true", body)
    assert reply["content"] == [{"type": "text", "text": ANSWER}] and reply["stop_reason"] == "end_turn"
    assert reply["usage"]["output_tokens"] == len(ANSWER) + 1
    events = server.stream("/v1/messages", body | {"stream": True})
    kinds = [name for name, _ in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(v["delta"]["text"] for name, v in events if name == "content_block_delta") == ANSWER
    counts = reply["usage"]
    _, counted = server.post("/v1/messages/count_tokens", body)
    assert counted["input_tokens"] == counts["input_tokens"] + counts["cache_read_input_tokens"]
    assert server.post("/v1/messages", body)[1]["usage"]["input_tokens"] < counted["input_tokens"]  # the rest is cached
    _, cut = server.post("/v1/messages", body | {"stop_sequences": ['"job"']})
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", '"job"')
    assert cut["content"][0]["text"] == ANSWER.split('"job"')[0]
    status, wrong = server.post("/v1/messages", {"messages": USER})
    assert status == 400 and wrong["type"] == "error" and "max_tokens" in wrong["error"]["message"]


def test_messages_of_a_form(server):
    """`output_config` was passed over with a warning."""
    schema = {"type": "object", "properties": {"n": {"enum": ["a", "b"]}}, "required": ["n"]}
    form = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"effort": "low", "format": form}}, {"output_format": form}):
        _, reply = server.post("/v1/messages", {"max_tokens": 100, "messages": USER, **fields, **FEW})
        assert json.loads(reply["content"][0]["text"])["n"] in ("a", "b") and "warnings" not in reply


def test_messages_call_tools(server):
    tool = {"name": "pick", "input_schema": TOOL["function"]["parameters"]}
    body = {"max_tokens": 100, "messages": USER, "tools": [tool], "tool_choice": {"type": "any"}, **FEW}
    _, reply = server.post("/v1/messages", body)
    [block] = reply["content"]
    assert (block["type"], block["name"], reply["stop_reason"]) == ("tool_use", "pick", "tool_use")
    assert block["input"]["n"] in ("a", "b")
    events = server.stream("/v1/messages", body | {"stream": True})
    [partial] = [v["delta"]["partial_json"] for name, v in events if name == "content_block_delta"]
    assert json.loads(partial) == block["input"]
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "done"}
    turns = [*USER, {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    assert server.post("/v1/messages", {"max_tokens": 9, "messages": turns, "tools": [tool], **FEW})[0] == 200


def test_responses(server):
    body = {"input": QUESTION, "store": False, "include": ["x"], "tools": [{"type": "web_search"}]}
    _, reply = server.post("/v1/responses", body)
    assert reply["status"] == "completed" and reply["output"][0]["content"][0]["text"] == ANSWER
    assert "left out" in reply["warnings"][0]
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    events = server.stream("/v1/responses", {"input": parts, "instructions": "Be brief.", "stream": True})
    assert [value["sequence_number"] for _, value in events] == list(range(len(events)))
    assert all(name == value["type"] for name, value in events)
    assert "".join(v["delta"] for name, v in events if name == "response.output_text.delta") == ANSWER
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == ANSWER
    for field in ({"previous_response_id": "a"}, {"n": 3}):
        assert server.post("/v1/responses", {"input": "x", **field})[0] == 400
    items = [*parts, {"type": "item_reference", "id": "a"}]
    status, refused = server.post("/v1/responses", {"input": items, "instructions": "Be brief."})
    assert (status, refused["error"]["param"]) == (400, "input[1]") and "a call" in refused["error"]["message"]


def test_responses_call_tools(server):
    tool = {"type": "function", **TOOL["function"]}
    body = {"input": QUESTION, "tools": [tool], "tool_choice": "required", **FEW}
    _, reply = server.post("/v1/responses", body)
    [call] = reply["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"])["n"] in ("a", "b")
    events = server.stream("/v1/responses", body | {"stream": True})
    assert "response.function_call_arguments.done" in [name for name, _ in events]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
    turns = [{"role": "user", "content": QUESTION}, call, result]
    assert server.post("/v1/responses", {"input": turns, "tools": [tool], "max_output_tokens": 9, **FEW})[0] == 200


FILE = "def scale(a, w):\n    return [w * 43 for w in a]\n"


@pytest.mark.slow
def test_an_edit_is_the_command_s(server, tmp_path, capsys):
    (tmp_path / "f.py").write_text(FILE)
    assert edit([str(tmp_path / "f.py"), "--lines", "2", "--prompt", CODE, "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)["text"]
    _, reply = server.post("/v1/edit/completions", {"text": FILE, "lines": "2", "prompt": CODE})
    assert reply["new_text"] == wanted and "+    return [w * 44 for w in a]" in reply["diff"]
    assert reply["choices"][0]["message"]["content"] == "    return [w * 44 for w in a]"
    for wrong, param in (({"lines": "9"}, None), ({"lines": "a"}, "lines"), ({"strength": 2}, "strength")):
        status, refused = server.post("/v1/edit/completions", {"text": FILE, "lines": "2", "prompt": CODE, **wrong})
        assert (status, refused["error"]["param"]) == (400, param)


@pytest.mark.slow
def test_an_edit_as_inception_s_clients_write_it(hasty):
    marked = FILE.replace("    return", "<|code_to_edit|>\n    re<|cursor|>turn").replace(
        "in a]", "in a]\n<|/code_to_edit|>"
    )
    asked = f"{CODE}\n<|current_file_content|>\ncurrent_file_path: f.py\n{marked}<|/current_file_content|>"
    body = {"messages": [{"role": "user", "content": asked}], "gap": 30}
    status, reply = hasty.post("/v1/edit/completions", body)
    assert status == 200 and "new_text" not in reply and reply["choices"][0]["message"]["content"]
    snippet = "<|original_code|>\nx = 1\n<|/original_code|>\n<|update_snippet|>\nx = 2\n<|/update_snippet|>"
    status, reply = hasty.post("/v1/apply/completions", {"messages": [{"role": "user", "content": snippet}]})
    assert status == 200 and reply["choices"][0]["text"]
    assert hasty.post("/v1/apply/completions", {"messages": USER})[0] == 400
