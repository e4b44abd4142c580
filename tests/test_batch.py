"""Many texts at once: the same as alone, admitted and retired at any pass."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest
from fakes import FakeModel

from mlx_dgemma.batch import batch
from mlx_dgemma.config import parse_config
from mlx_dgemma.diffusion import begin, diffuse
from mlx_dgemma.generate import main
from mlx_dgemma.load import load_model
from mlx_dgemma.mlx_backend.layers import ExpertLinear
from mlx_dgemma.sampling import Sampling

ONE, STOP = [2] * 8, [4, 4, 1, 5, 5, 5, 5, 5]
SETTLING = [(ONE, [7]), (ONE, []), (STOP, []), (STOP, [])]  # two blocks of two passes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = checkpoints.config()
    folder = checkpoints.write(tmp_path_factory.mktemp("model"), config, checkpoints.weights(config, peaked=10))
    return load_model(folder, parse_config(config, checkpoints.generation_config(eos_token_id=[7])), "mlx", "float32")


def test_eight_rows_say_what_each_says_alone(model):
    prompts = [np.random.default_rng(n).integers(96, size=n) for n in (1, 5, 16, 23, 24, 40, 60, 90)]
    options = [
        {"max_tokens": 16 * (1 + n % 3), "sampling": Sampling(max_denoising_steps=5), "seed": n} for n in range(8)
    ]
    alone = [list(diffuse(model, prompt, **own)) for prompt, own in zip(prompts, options, strict=True)]
    writings = (begin(model, p, **own, request=n) for n, (p, own) in enumerate(zip(prompts, options, strict=True)))
    together = list(batch(model, writings, 8))
    for number, steps in enumerate(alone):
        found = [step for step in together if step.request == number]
        assert [(s.block, s.step, s.final, s.reason) for s in found] == [
            (s.block, s.step, s.final, s.reason) for s in steps
        ]
        for one, other in zip(found, steps, strict=True):
            assert np.array_equal(one.canvas, other.canvas) and np.array_equal(one.draft, other.draft)
            assert np.array_equal(one.entropy, other.entropy)


def test_products_of_a_pass_do_not_grow_with_its_rows(model, monkeypatch):
    calls = []
    product = ExpertLinear._scaled  # of those sorted by expert and of those that are not
    monkeypatch.setattr(ExpertLinear, "_scaled", lambda self, *a: (calls.append(1), product(self, *a))[1])
    counts = []
    for size in (1, 8):
        calls.clear()
        writings = [
            begin(model, [3, 4, n], max_tokens=16, sampling=Sampling(max_denoising_steps=1)) for n in range(size)
        ]
        list(batch(model, writings, size))
        counts.append(len(calls))
    # Gate-and-up and down in each of four layers, and the second look of the draw.
    assert counts == [9, 9]


def test_a_late_row_joins_while_another_is_in_the_middle():
    model = FakeModel(SETTLING)
    asked = []

    def writings():
        for number in range(3):
            asked.append(len(model.rows))
            yield begin(model, [9], sampling=Sampling(), request=number, max_tokens=8 if number == 0 else 16)

    steps = [(s.request, s.block, s.step) for s in batch(model, writings(), 2)]
    assert steps == [
        (0, 0, 0), (1, 0, 0),
        (0, 0, 1), (1, 0, 1),
        (1, 1, 0), (2, 0, 0),  # 0 is done after one block; 2 takes its place
        (1, 1, 1), (2, 0, 1),
        (2, 1, 0), (2, 1, 1),
    ]  # fmt: skip
    assert asked == [0, 0, 4]  # the third was asked for only when there was room


def test_a_step_arrives_before_the_next_pass():
    model = FakeModel(SETTLING)
    running = batch(model, (begin(model, [9], sampling=Sampling(), request=n) for n in range(2)), 2)
    next(running), next(running)
    assert len(model.rows) == 2
    next(running)
    assert len(model.rows) == 4


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
