"""Files of prompts: one JSON object a line, in and out, whatever is asked of each."""

from __future__ import annotations

import json
import shutil

import jsonschema
import pytest
from checkpoints import TINY
from runs import HARD
from terminals import Stdin, caller, mistake

from mlx_dgemma.batch.__main__ import main
from mlx_dgemma.fill.__main__ import main as fill
from mlx_dgemma.generate.__main__ import main as generate

PROMPTS = [
    {"prompt": "What is 603 + 845?", "seed": 3},
    {"prompt": "Solve this sudoku:\n...3\n.124\n1342\n2.3."},
    {"messages": [{"role": "user", "content": "Extract JSON: Zoe (31) works as a vet in Oslo."}], "max_tokens": 5},
    {"prompt": "Write a function add(a, b) that adds a and b.", "system": "Be brief."},
]


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)) + "\n\n")
    return path, tmp_path / "answers.jsonl"


def texts(lines: str) -> list[str]:
    return [json.loads(line)["text"] for line in lines.splitlines()]


RECORDED = [
    {"role": "user", "content": [{"type": "text", "text": "How warm is it in Oslo?"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 2}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3 C"},
]


def test_conversations_as_clients_record_them(tmp_path, capsys):
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}{{ m.name }}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}{% endfor %}"
    )
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    tools = {"tools": [{"name": "weather", "inputSchema": {"type": "object"}}]}
    lines = [{"messages": RECORDED}, {"messages": RECORDED, "tools": tools}, {"messages": RECORDED, "tools": []}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    few = ["--max-tokens", "4", "--max-denoising-steps", "1"]
    assert main([str(tmp_path / "in.jsonl"), "--model", str(tmp_path / "model"), *few]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    prompt = len("How warm is it in Oslo?city=Oslodays=2weather3 C")
    assert [result["prompt_tokens"] for result in results] == [prompt, prompt + len("[weather]"), prompt]


def test_a_file_of_prompts_is_answered_in_order(files, capsys):
    path, _ = files
    assert main([str(path), "--size", "3", "--max-denoising-steps", "6"]) == 0
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert [r["request"] for r in results] == [0, 1, 2, 3]
    assert results[1]["text"] == "4213\n3124\n1342\n2431" and results[2]["finish_reason"] == "length"
    assert "4 answers" in err and "tokens a second" in err
    for request, result in zip(PROMPTS[:2], results, strict=False):
        arguments = [
            "--prompt",
            request["prompt"],
            "--seed",
            str(request.get("seed", 0)),
            "--max-denoising-steps",
            "6",
        ]
        generate([*arguments, "--json"])
        assert json.loads(capsys.readouterr().out)["text"] == result["text"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{no JSON", ["line 2", "not JSON"]),
        ("[1]", ["line 2", '"prompt" or "messages"']),
        ('{"prompt": ""}', ["line 2", "empty"]),
        ('{"prompt": 5}', ["line 2", "text"]),
        ('{"messages": []}', ["line 2", '"prompt" or "messages"']),
        ('{"prompt": "x", "seed": true}', ["line 2", "seed", "True"]),
        ('{"prompt": "x", "temp": 1}', ["line 2", "temp"]),
        ('{"prompt": "x", "thinking": "no"}', ["line 2", "thinking", "'no'"]),
        ('{"prompt": "x", "system": 5}', ["line 2", "system", "5"]),
        ('{"prompt": "x", "seed": -1}', ["line 2", "seed", "-1"]),
        ('{"prompt": "x", "max_tokens": 0}', ["line 2", "max_tokens"]),
        ('{"prompt": "x", "fill": "a<fill>"}', ["line 2", "two files"]),
        ('{"prompt": "' + "x" * 5000 + '"}', ["line 2", "longer than the context"]),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_a_mistake_in_a_file_is_found_before_the_first_answer(files, capsys, line, words):
    path, _ = files
    path.write_text(json.dumps(PROMPTS[0]) + "\n" + line + "\n")
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and all(word in err.splitlines()[-1] for word in words), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["latin.jsonl"], ["latin.jsonl is not UTF-8", "0xe9 at offset 3"]),
        (["empty.jsonl"], ["empty.jsonl", "no requests"]),
        (["good.jsonl", "--size", "0"], ["--size", ">= 1", "'0'"]),
        (["good.jsonl", "--out", "no/folder"], ["--out no/folder", "No such file"]),
        (["good.jsonl", "--watch"], ["--watch"]),
        (["good.jsonl", "--stop", ""], ["--stop", "empty"]),
        (["good.jsonl", "--stop", "x", "--choices", "a,b"], ["--stop", "--choices"]),
        (["gap.jsonl", "--stop", "x"], ["--stop", "filled"]),
        (["good.jsonl", "--choices", "a,b", "--mode", "ar"], ["--mode ar", "--choices"]),
        (["thinking.jsonl", "--choices", "a,b"], ["thinking.jsonl, line 1", "thinking", "--choices"]),
        ([], ["FILE.jsonl"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_mistakes_before_anything_is_loaded(tmp_path, monkeypatch, capfd, arguments, words):
    monkeypatch.chdir(tmp_path)
    files = {
        "good": b'{"prompt": "x"}',
        "latin": b"caf\xe9",
        "empty": b"\n",
        "thinking": b'{"prompt": "x", "thinking": true}',
        "gap": b'{"fill": "a<fill>b"}',
    }
    for name, data in files.items():
        (tmp_path / f"{name}.jsonl").write_bytes(data)
    result = caller(main, capfd)(*arguments)
    mistake(result, *words)
    assert "no --model given" not in result[2]


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_answers_end_before_a_stop(files, capsys, mode):
    path, _ = files
    path.write_text("\n".join(map(json.dumps, PROMPTS[:2])))
    few = [] if mode == "ar" else ["--max-denoising-steps", "4"]
    arguments = [str(path), "--mode", mode, *few, "--max-tokens", "12"]
    assert main(arguments) == 0
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stop = whole[1]["text"][4:7]
    assert main([*arguments, "--stop", stop]) == 0
    cut = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["text"] for each in cut] == [each["text"].partition(stop)[0] for each in whole]
    assert cut[1]["finish_reason"] == "stop" and (cut[1]["steps"] < whole[1]["steps"]) == (mode == "ar")


def test_standard_input(monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", Stdin(b'{"prompt": "Reverse: clerk, Kofi, Eve, Turin, Noor, Cara"}\n'))
    assert main(["-", "--mode", "ar"]) == 0
    assert texts(capfd.readouterr().out) == ["Cara, Noor, Turin, Eve, Kofi, clerk"]
    monkeypatch.setattr("sys.stdin", Stdin(b"\n{"))
    mistake(caller(main, capfd)("-"), "standard input, line 2", "not JSON")


FILL = [
    {"fill": "a<fill>b<fill>c", "gap": [2, 3]},
    {"prefix": "Eve, ", "suffix": " Noor\u2028", "prompt": "Sort: Noor, Eve", "seed": 4},
    {"prefix": "x", "gap": 2, "heal": True},
]
FEW = ["--max-denoising-steps", "2"]


def written(tmp_path, lines) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_lines_that_are_filled(tmp_path, capsys):
    """As each is alone, in their order, whatever goes together."""
    assert main([written(tmp_path, FILL), "--size", "2", *FEW]) == 0
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.split("\n") if line]
    assert [r["request"] for r in results] == [0, 1, 2] and "3 answers" in err
    for line, result in zip(FILL, results, strict=True):
        arguments = [line["fill"]] if "fill" in line else []
        arguments += [f"--{name}" for name in line if name == "heal"]
        for name in line.keys() - {"fill", "heal"}:
            value = line[name]
            arguments += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        assert fill([*arguments, *FEW, "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert all(alone[name] == result[name] for name in ("text", "gaps", "lengths", "tried", "passes", "seed"))


@pytest.mark.parametrize(
    ("line", "arguments", "words"),
    [
        ({"fill": "a"}, [], ["line 1", "<fill>"]),
        ({"fill": 5}, [], ["line 1", '"fill"', "5"]),
        ({"fill": "a<fill>", "suffix": "b"}, [], ["line 1", '"fill"', '"suffix"']),
        ({"prefix": "a", "gap": 0}, [], ["line 1", "gap", "0"]),
        ({"prefix": "a", "gap": [1, 2]}, [], ["line 1", "2 lengths", "1 gaps"]),
        ({"prefix": "a", "gap": 5000}, [], ["line 1", "5000 tokens", "context"]),
        ({"prefix": "a", "gap": 2}, ["--thinking"], ["line 1", "thinking"]),
        ({"prefix": "a", "gap": 2}, ["--mode", "ar"], ["--mode"]),
        ({"prefix": "a", "gap": 2}, ["--choices", "a,b"], ["--choices", "filled"]),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_mistakes_of_lines_that_are_filled(tmp_path, capsys, line, arguments, words):
    assert main([written(tmp_path, [line]), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and all(word in err.splitlines()[-1] for word in words), err


def test_the_choices_of_many(tmp_path, capsys):
    lines = [{"prompt": "Which is red?"}, {"prompt": "Which is blue?", "seed": 3}]
    assert main([written(tmp_path, lines), "--choices", "blood,sky"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, result in zip(lines, results, strict=True):
        generate(["--prompt", line["prompt"], "--seed", str(line.get("seed", 0)), "--choices", "blood,sky", "--json"])
        alone = json.loads(capsys.readouterr().out)
        assert alone["text"] == result["text"] and alone["probabilities"] == result["probabilities"]


def test_the_slots_of_a_template(tmp_path, run, capfd):
    lines, flags = [{"prompt": "Sort: Yan, Omar"}], ["--template", "{first}, {second:Yan|Omar}", "--max-tokens", "32"]
    code, out, _ = caller(main, capfd)(written(tmp_path, lines), *flags)
    alone = json.loads(run("--prompt", lines[0]["prompt"], *flags, "--json")[1])
    result = json.loads(out)
    assert code == 0 and result["slots"].keys() == {"first", "second"}
    assert (result["text"], result["slots"]) == (alone["text"], alone["slots"])


@pytest.mark.slow
def test_many_by_the_way_that_costs_less(tmp_path, capsys):
    """Which way is chosen goes by the clock, so only the form of the results is looked at."""
    lines = [{"prompt": "Reverse: Ivan, Zoe"}, {"prompt": "Sort: Lima, Kyiv", "max_tokens": 9}]
    assert main([written(tmp_path, lines), "--mode", "auto"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["request"], second["request"]) == (0, 1) and first["text"] and second["tokens"] <= 9
    assert all("passes" in note or "left to right" in note for one in (first, second) for note in one["notes"])
    assert first["notes"] and second["notes"]


@pytest.mark.slow
def test_many_left_to_right_and_many_checked(run, tmp_path, capfd):
    lines = ["Reverse: Ivan, Zoe, Eve", "Reverse: Oslo, Rome", "Sort: Yan, Omar"]
    path, batch = written(tmp_path, [{"prompt": line} for line in lines]), caller(main, capfd)
    for options in (["--mode", "ar", "--max-tokens", "16"], ["--verify", "--preset", "fast"]):
        many = [json.loads(line) for line in batch(path, "--size", "2", *options)[1].splitlines()]
        alone = [json.loads(run("--prompt", line, "--json", *options)[1]) for line in lines]
        for name in ("text", "steps", "finish_reason"):
            assert [result[name] for result in many] == [result[name] for result in alone]


def test_lines_that_are_filled_are_checked_and_have_a_deadline(tmp_path, capfd):
    batch, lines = caller(main, capfd), [{"prefix": "Bonn, ", "suffix": " Zoe", "prompt": HARD, "gap": 30}]
    code, out, _ = batch(written(tmp_path, lines), "--verify", "--preset", "max_denoising_steps=1")
    result = json.loads(out)
    assert code == 0 and result["text"].startswith("Bonn, ") and result["text"].endswith(" Zoe")
    assert result["notes"] and all("written again from token" in note for note in result["notes"])
    code, out, _ = batch(written(tmp_path, lines), "--deadline", "0.001")
    result = json.loads(out)
    assert (code, result["finish_reason"], result["steps"]) == (0, "deadline", 1)


def test_choices_of_many_by_a_deadline(tmp_path, capfd):
    path, batch = written(tmp_path, [{"prompt": "Which is red?"}]), caller(main, capfd)
    whole, early = (
        json.loads(batch(path, "--choices", "blood,sky", *options)[1])["probabilities"]
        for options in ([], ["--deadline", "0.001"])
    )
    assert sum(early.values()) == pytest.approx(1) and early != whole


PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
PERSON |= {"required": ["name", "age"]}


@pytest.mark.parametrize("options", [[], ["--mode", "ar"], ["--verify"], ["--deadline", "0.001"]], ids=" ".join)
@pytest.mark.slow
def test_many_within_a_schema(tmp_path, capfd, options):
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    lines = [{"prompt": "Extract JSON: Tess is 40."}, {"prompt": "Extract JSON: Zoe (31).", "max_tokens": 40}]
    arguments = ["--json-schema", str(tmp_path / "person.json"), *FEW[: 0 if "ar" in options else 2], *options]
    code, out, _ = caller(main, capfd)(written(tmp_path, lines), "--max-tokens", "64", *arguments)
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(results) == 2
    for result in results:
        jsonschema.validate(json.loads(result["text"]), PERSON)
    tight = [lines[0], lines[1] | {"max_tokens": 9}]
    mistake(caller(main, capfd)(written(tmp_path, tight), *arguments), "line 2", "shortest text", "9")


def test_a_mistake_in_messages_counts_without_the_system_turn(tmp_path, capfd):
    line = {"system": "Be brief.", "messages": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}
    assert main([written(tmp_path, [line])]) == 2
    assert "line 1: messages[1].content: need a text" in capfd.readouterr().err
