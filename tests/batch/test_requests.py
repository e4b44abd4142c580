"""Files of prompts: one JSON object a line, in and out, whatever is asked of each."""

from __future__ import annotations

import json

import pytest

from mlx_dgemma.generate.__main__ import main

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


def test_a_file_of_prompts_is_answered_in_order(files, capsys):
    path, _ = files
    assert main(["--prompts", str(path), "--batch", "3", "--max-denoising-steps", "12"]) == 0
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
            "12",
        ]
        main([*arguments, "--json"])
        assert json.loads(capsys.readouterr().out)["text"] == result["text"]


def test_a_run_that_was_cut_short_is_gone_on_with(files, capsys):
    path, out = files
    arguments = ["--prompts", str(path), "--out", str(out), "--max-denoising-steps", "2"]
    assert main(arguments) == 0
    whole = out.read_text()
    assert capsys.readouterr().out == "" and len(texts(whole)) == 4
    out.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"request": 2, "te')
    assert main(arguments) == 0
    assert texts(out.read_text()) == texts(whole)
    assert "holds 2 of 4" in capsys.readouterr().err
    assert main(arguments) == 0 and out.read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{no JSON", ["line 2", "not JSON"]),
        ("[1]", ["line 2", '"prompt" or "messages"']),
        ('{"prompt": ""}', ["line 2", "empty"]),
        ('{"prompt": 5}', ["line 2", "text"]),
        ('{"prompt": "x", "temp": 1}', ["line 2", "temp"]),
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
    assert main(["--prompts", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and all(word in err.splitlines()[-1] for word in words), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["--prompts", "x", "--prompt", "y"], ["--prompt TEXT, or --prompts"]),
        (["--prompt", "y", "--batch", "2"], ["--batch"]),
        (["--prompts", "x", "--watch"], ["--watch"]),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, words):
    assert main(arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert all(word in err for word in words)


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


def test_lines_that_are_filled(tmp_path, capsys):
    """As each is alone, in their order, whatever goes together."""
    assert main(["--prompts", written(tmp_path, FILL), "--batch", "2", *FEW]) == 0
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.split("\n") if line]
    assert [r["request"] for r in results] == [0, 1, 2] and "3 answers" in err
    for line, result in zip(FILL, results, strict=True):
        arguments = [f"--{name}" for name in line if name == "heal"]
        for name in line.keys() - {"heal"}:
            value = line[name]
            arguments += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        assert main([*arguments, *FEW, "--json"]) == 0
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
    assert main(["--prompts", written(tmp_path, [line]), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and all(word in err.splitlines()[-1] for word in words), err


def test_the_choices_of_many(tmp_path, capsys):
    lines = [{"prompt": "Which is red?"}, {"prompt": "Which is blue?", "seed": 3}]
    assert main(["--prompts", written(tmp_path, lines), "--choices", "blood,sky"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, result in zip(lines, results, strict=True):
        main(["--prompt", line["prompt"], "--seed", str(line.get("seed", 0)), "--choices", "blood,sky", "--json"])
        alone = json.loads(capsys.readouterr().out)
        assert alone["text"] == result["text"] and alone["probabilities"] == result["probabilities"]


def test_many_by_the_way_that_costs_less(tmp_path, capsys):
    """One after another. Which way is chosen goes by the clock, so only the form of what comes is looked at."""
    lines = [{"prompt": "Reverse: Ivan, Zoe"}, {"prompt": "Sort: Lima, Kyiv", "max_tokens": 9}]
    assert main(["--prompts", written(tmp_path, lines), "--mode", "auto"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["request"], second["request"]) == (0, 1) and first["text"] and second["tokens"] <= 9
    assert all("passes" in note or "left to right" in note for one in (first, second) for note in one["notes"])
    assert first["notes"] and second["notes"]
