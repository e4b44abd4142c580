"""The command, as its user meets it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess

import checkpoints
import forked
import jsonschema
import pytest
from runs import HARD
from terminals import COMMAND, SOLVED, SUDOKU, Stdin, mistake

from mlx_dgemma.writing.batch import Batch


def test_an_answer(run):
    code, out, err = run("--prompt", SUDOKU)
    assert (code, out) == (0, SOLVED + "\n")
    notice, numbers = err.splitlines()
    assert "no --model given" in notice and "--model mlx-community/diffusiongemma-26B-A4B-it-4bit" in notice
    for word in (
        "20 tokens in",
        " s: 1 block,",
        "steps a block",
        "tokens per forward",
        "first block after",
        "prompt ",
        "answer ",
        "tokens a second",
        "peak memory",
    ):
        assert word in numbers, numbers


def test_json(run):
    code, out, _ = run("--prompt", SUDOKU, "--json", "--seed", "3", "--model", str(checkpoints.TINY))
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    wanted = "text tokens prompt_tokens blocks steps tokens_per_forward seconds seconds_to_first_block peak_memory"
    wanted += " prompt_tokens_per_second tokens_per_second"
    assert set(wanted.split()) | {"finish_reason", "seed", "model"} <= set(found)
    assert (found["text"], found["finish_reason"], found["seed"]) == (SOLVED, "stop", 3)
    assert (found["tokens"], found["blocks"]) == (20, 1)
    assert found["tokens_per_forward"] == pytest.approx(20 / found["steps"])
    assert 0 < found["seconds_to_first_block"] <= found["seconds"]
    assert found["peak_memory"] > 9_000_000  # bytes; the weights alone are that many


def test_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", Stdin(SUDOKU.encode()))
    assert run("--prompt", "-")[1] == SOLVED + "\n"
    monkeypatch.setattr("sys.stdin", Stdin(b"caf\xe9"))
    mistake(run("--prompt", "-"), "standard input is not UTF-8", "0xe9", "offset 3")


def test_cut_at_max_tokens(run):
    code, out, err = run("--prompt", SUDOKU, "--max-tokens", "7")
    assert (code, out) == (0, SOLVED[:7] + "\n") and "cut at the length" in err


def test_fewer_denoising_steps(run):
    code, out, _ = run("--prompt", HARD, "--max-denoising-steps", "3", "--json", "--max-tokens", "64")
    assert (code, json.loads(out)["steps"]) == (0, 3)


def test_system_and_raw(run):
    templated = f"<|turn>system\nBe brief.<turn|>\n<|turn>user\n{SUDOKU}<turn|>\n<|turn>model\n"
    one, other = (
        run("--prompt", SUDOKU, "--system", "Be brief.", "--json"),
        run("--raw", "--prompt", templated, "--json"),
    )
    one, other = json.loads(one[1]), json.loads(other[1])
    assert one["prompt_tokens"] == other["prompt_tokens"] and one["text"] == other["text"]
    mistake(run("--raw", "--prompt", "x", "--system", "y"), "--raw", "--system")


def test_tools(run, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text('[{"type": "function", "name": "weather", "description": "of a city"}]')
    code, _, err = run("--prompt", "Sort: Lima", "--tools", str(path), "--max-denoising-steps", "1")
    assert code == 0 and "no place for tools" in err
    mistake(run("--prompt", "x", "--tools", str(path), "--raw"), "--raw", "--tools")
    path.write_text("[" * 100_000)
    mistake(run("--prompt", "x", "--tools", str(path)), f"--tools {path}")
    mistake(run("--prompt", "x", "--tools", "no/such"), "no/such: no such file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], ["prompt is empty"]),
        (["--prompt", " \n"], ["prompt is empty"]),
        (["--prompt", "", "--raw"], ["prompt is empty"]),
        (["--prompt", "x", "--max-tokens", "0"], ["--max-tokens", ">= 1", "'0'"]),
        (["--prompt", "x", "--max-denoising-steps", "few"], ["--max-denoising-steps", "'few'"]),
        (["--prompt", "x", "--seed", "-1"], ["--seed", "'-1'"]),
        (["--prompt", "x", "--preset", "temp=0.7"], ["temp", "t_min", "t_max", "--mode ar"]),
        (["--prompt", "x", "--preset", "top_k=5", "--mode", "ar"], ["--preset", "top_k", "temp="]),
        (["--prompt", "x", "--preset", "temp=hot", "--mode", "ar"], ["--preset", "temp", "'hot'"]),
        (["--prompt", "x", "--preset", "temp=1,top_p=2.0", "--mode", "ar"], ["top_p", "2.0"]),
        (["--prompt", "x", "--mode", "fast"], ["--mode", "'fast'", "diffusion", "ar", "auto"]),
        (["--prompt", "x", "--preset", "slow"], ["--preset", "'slow'", "fast", "chat", "reference", "quality"]),
        (["--prompt", "x", "--preset", "speed=9"], ["--preset", "'speed=9'", "NAME=VALUE", "entropy_bound"]),
        (["--prompt", "x", "--preset", "sampler=topk"], ["sampler", "entropy-bound", "confidence-threshold"]),
        (["--prompt", "x", "--preset", "stop=never"], ["stop", "settled", "content", "entropy"]),
        (["--prompt", "x", "--mode", "ar", "--verify"], ["--verify", "--mode ar"]),
        (["--prompt", "x", "--mode", "ar", "--preset", "fast"], ["--preset", "--mode ar"]),
        (["--prompt", "x", "--deadline", "0"], ["deadline > 0", "0.0"]),
        (["--prompt", "x" * 5000], ["longer than the context", "4096"]),
        (["--prompt", "x", "--model", "no/such/folder"], ["no/such/folder", "no such folder"]),
        (["--prompt", "\udcff"], ["valid Unicode"]),
        (["--prompt", "x", "--max", "3"], ["--max"]),
        ([], ["--prompt"]),
    ],
    ids=lambda value: " ".join(value)[:30].encode("ascii", "replace").decode(),
)
def test_mistakes(run, arguments, words):
    mistake(run(*arguments), *words)


def test_a_tokenizer_without_a_chat_template(run, tmp_path):
    folder = shutil.copytree(checkpoints.TINY, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    mistake(run("--model", str(folder), "--prompt", "x"), "no chat template", "--raw")
    assert run("--model", str(folder), "--prompt", "x", "--raw", "--max-denoising-steps", "2")[0] == 0


def test_an_error_of_ours_is_not_dressed_as_a_mistake(run, monkeypatch):
    monkeypatch.setattr("mlx_dgemma.writing.writing.renoise", lambda *_: [][1])
    with pytest.raises(IndexError):
        run("--prompt", SUDOKU)
    monkeypatch.setattr("mlx_dgemma.writing.writing.renoise", lambda *_: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        run("--prompt", SUDOKU)


@pytest.mark.parametrize("json_too", [False, True])
def test_ctrl_c_keeps_what_is_finished(run, monkeypatch, endless, json_too):
    step_of = Batch.step

    def interrupted(batch):
        if batch.texts[0].block == 1:
            raise KeyboardInterrupt
        return step_of(batch)

    monkeypatch.setattr(Batch, "step", interrupted)
    arguments = ["--prompt", SUDOKU, "--model", str(endless), *(["--json"] if json_too else [])]
    code, out, err = run(*arguments)
    assert code == 130
    if json_too:
        found = json.loads(out)
        assert (found["finish_reason"], found["blocks"]) == ("interrupted", 1) and found["text"]
    else:
        assert out.strip() and "1 block" in err


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(endless):
    reading, stdout = os.pipe()
    arguments = ["--prompt", SUDOKU, "--model", str(endless)]
    process = forked.start("-m", "mlx_dgemma.generate", *arguments, stdout=stdout, stderr=forked.PIPE)
    assert os.read(reading, 1)  # the first block is out
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    os.close(reading), os.close(stdout)
    assert process.returncode == 130 and "Traceback" not in err and "tokens in" in err


@pytest.mark.slow
def test_a_closed_pipe_is_quiet(endless):
    """As behind `head -c 1`."""
    reading, stdout = os.pipe()
    arguments = ["--prompt", "x", "--model", str(endless), "--max-denoising-steps", "2"]
    process = forked.start("-m", "mlx_dgemma.generate", *arguments, stdout=stdout, stderr=forked.PIPE)
    os.close(stdout)
    assert os.read(reading, 1)
    os.close(reading)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141 and "Traceback" not in err and "BrokenPipe" not in err


def test_watch_is_nothing_without_a_terminal(run):
    assert run("--prompt", SUDOKU, "--watch")[:2] == (0, SOLVED + "\n")


def test_watch_tells_accepted_from_unsettled():
    import numpy as np
    from rich.console import Console

    from mlx_dgemma.terminal.watch import ACCEPTED, EMPTY, UNSETTLED, Watch
    from mlx_dgemma.tokens.tokenizer import Tokenizer
    from mlx_dgemma.writing.writing import Step

    tokenizer = Tokenizer(checkpoints.TINY)
    draft = np.array([*tokenizer.encode("a€b"), 1, 1])
    accepted = np.array([True, True, True, True, False, True, True])
    step = Step(
        request=0, block=0, step=4, canvas=draft, draft=draft, accepted=accepted, entropy=np.zeros(7), final=False
    )
    canvas, status = Watch(tokenizer, 48, Console(file=io.StringIO())).picture(step).renderables
    assert canvas.plain == f"a€b{EMPTY * 2}"
    assert [(span.start, span.end, span.style) for span in canvas.spans] == [
        (0, 2, ACCEPTED), (2, 3, UNSETTLED), (3, 5, ACCEPTED),
    ]  # fmt: skip
    assert "block 1" in status.plain and "step 5" in status.plain and "6 of 7 accepted" in status.plain


def test_a_whole_process():
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    process = subprocess.run([*COMMAND, "--prompt", SUDOKU], capture_output=True, text=True, env=environment)
    assert process.stdout == SOLVED + "\n"


REVERSE = "Reverse: clerk, Kofi, Eve, Turin, Noor, Cara"
REVERSED = "Cara, Noor, Turin, Eve, Kofi, clerk"


def test_left_to_right(run):
    code, out, _ = run("--prompt", REVERSE, "--mode", "ar", "--json")
    found = json.loads(out)
    assert (code, found["text"], found["steps"], found["blocks"]) == (0, REVERSED, 36, 1)
    drawn = [
        run("--prompt", REVERSE, "--mode", "ar", "--preset", "temp=4", "--seed", str(seed), "--max-tokens", "9")[1]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_auto_says_what_it_chose_and_why(run):
    code, out, err = run("--prompt", REVERSE, "--mode", "auto", "--max-tokens", "80")
    assert (code, out) == (0, REVERSED + "\n")
    assert any(line.startswith("block 1: ") for line in err.splitlines()), err
    err = run("--prompt", HARD, "--mode", "auto", "--max-tokens", "80")[2]
    assert any(line.startswith("block 1: ") and "tokens settled" in line for line in err.splitlines()), err


def test_verify_says_what_is_written_again(run):
    code, out, err = run("--prompt", REVERSE, "--verify")
    assert (code, out) == (0, REVERSED + "\n") and "written again" not in err
    err = run("--prompt", HARD, "--verify", "--preset", "fast")[2]
    assert any(line.startswith("block 1: ") and "written again from token" in line for line in err.splitlines()), err


@pytest.mark.parametrize("mode", ["diffusion", "ar", "auto"])
def test_a_deadline(run, mode):
    code, out, err = run("--prompt", HARD, "--deadline", "0.001", "--mode", mode, "--json")
    found = json.loads(out)
    assert (code, found["finish_reason"], found["steps"]) == (0, "deadline", 1)
    assert "as it stood at the deadline" in err


@pytest.mark.slow
def test_samplers_stop_rules_and_presets(run):
    steps = {}
    for options in ("reference", "fast", "sampler=scheduled-cosine", "stop=entropy"):
        code, out, _ = run("--prompt", "Sort: c, b, a", "--max-tokens", "64", "--json", "--preset", options)
        assert code == 0
        steps[options] = json.loads(out)["steps"]
    assert steps["fast"] == 8 and steps["reference"] > steps["stop=entropy"]
    plain = json.loads(run("--prompt", "Sort: c, b, a", "--max-tokens", "64", "--json")[1])["steps"]
    assert plain == steps["reference"]


PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
PERSON |= {"required": ["name", "age"]}


@pytest.mark.parametrize(
    "options", [["--deadline", "0.001"], ["--mode", "ar"], ["--verify", "--max-denoising-steps", "4"]]
)
@pytest.mark.sample(1)
def test_a_schema_goes_with_every_way_to_write(run, tmp_path, options):
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    asked = ["--prompt", "Extract JSON: Tess is 40.", "--json-schema", str(tmp_path / "person.json")]
    code, out, err = run(*asked, "--max-tokens", "64", *options)
    jsonschema.validate(json.loads(out), PERSON)
    assert code == 0 and ("at the deadline" in err) == ("--deadline" in options)


def test_choices_by_a_deadline(run):
    asked = ["--prompt", "Which is red?", "--choices", "blood,sky", "--json"]
    whole, early = (json.loads(run(*asked, *options)[1])["probabilities"] for options in ([], ["--deadline", "0.001"]))
    assert sum(early.values()) == pytest.approx(1) and early != whole
