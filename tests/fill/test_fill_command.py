"""`python -m mlx_dgemma.fill`, as its user meets it."""

from __future__ import annotations

import json
import os
import threading

import pytest
from ptys import Pty, lines_shown
from runs import HARD
from terminals import Stdin, caller, mistake

from mlx_dgemma.fill.__main__ import main
from mlx_dgemma.terminal.file_or_text import read_file_or_text

ASKED = "Extract JSON: Tess is 40 and works as a vet in Accra."
BEFORE, BEHIND = '{"name": "', '", "age": 40, "job": "vet", "city": "Accra"}'


@pytest.fixture
def run(capfd):
    return caller(main, capfd)


@pytest.mark.parametrize("how", ["text", "file", "stdin", pytest.param("marks", marks=pytest.mark.slow)])
def test_the_command(run, monkeypatch, tmp_path, how):
    """Only the gap of `marks` is searched."""
    arguments = ["--prefix", BEFORE, "--suffix", BEHIND, "--gap", "4"]
    if how == "file":
        (tmp_path / "before").write_bytes(BEFORE.encode())
        arguments[1] = str(tmp_path / "before")
    elif how == "stdin":
        monkeypatch.setattr("sys.stdin", Stdin(BEHIND.encode()))
        arguments[3] = "-"
    elif how == "marks":
        arguments = [f"{BEFORE}<fill>{BEHIND}"]
    code, out, err = run("--prompt", ASKED, *arguments)
    assert (code, out) == (0, f"{BEFORE}Tess{BEHIND}") and "4 tokens" in err
    assert ("4 tokens (of 4 lengths tried)" in err) == (how == "marks")
    assert ("--prefix is the file" in err) == (how == "file")


def test_the_gap_alone(run):
    assert run("--prompt", ASKED, f"{BEFORE}<fill>{BEHIND}", "--gap", "4", "--gap-only")[1] == "Tess"


def test_the_command_without_a_prompt_in_json_and_raw(run):
    code, out, _ = run("a<fill>b<fill>\r\nc", "--gap", "2,3", "--json", "--max-denoising-steps", "2")
    found = json.loads(out)
    assert code == 0 and found["lengths"] == [2, 3] and found["text"] == f"a{found['gaps'][0]}b{found['gaps'][1]}\r\nc"
    assert run("--raw", "--prompt", "x", "--prefix", "a", "--gap", "2", "--max-denoising-steps", "2")[1].startswith("a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prefix", "FILE"], ["FILE is not UTF-8", "0xe9 at offset 3"]),
        (["--suffix", "ZERO"], ["ZERO is not text", "0x00 at offset 1"]),
        (["--prefix", "\udcff"], ["valid Unicode"]),
        (["--prefix", "a", "--gap", "5000"], ["a gap of 5000 tokens", "context", "4032"]),
        (["--prefix", "a", "--gap", "0"], ["--gap", ">= 1", "'0'"]),
        (["--prefix", "a", "--gap", "1,2"], ["gap has 2 lengths", "1 gaps"]),
        (["--prefix", "", "--suffix", ""], ["no text"]),
        (["a"], ["'a' is no file", "<fill>"]),
        (["GONE"], ["'GONE' is no file"]),
        (["FILLED"], ["<fill>"]),
        (["a<fill><fill>b"], ["nothing between"]),
        (["a<fill>", "--suffix", "b"], ["--suffix", "TEXT"]),
        (["--prompt", "x", "--gap", "3"], ["nothing to fill", "<fill>", "--prefix"]),
        (["--prefix", "befor.py"], ["--prefix befor.py looks like a file", "did you mean before.py?"]),
        (["--prefix", "a", "--suffix", "./src/after.py"], ["--suffix ./src/after.py looks like a file"]),
        (["--prefix", "gone.txt"], ["--prefix gone.txt looks like a file"]),
        (["--prefix", "."], ["--prefix . is a folder"]),
        (["--prefix", "a", "--mode", "ar"], ["--mode"]),
        (["--prefix", "a", "--preset", "temp=1"], ["temp", "left to right", "t_max"]),
        (["--prefix", "a", "--raw"], ["--raw needs --prompt"]),
        (["--prefix", "-", "--suffix", "-"], ["standard input", "once"]),
        (["--prefix", "a", "--prompt", ""], ["prompt is empty"]),
        (["--prefix", "a", "--raw", "--prompt", "x", "--system", "y"], ["--raw", "--system"]),
        (["--prefix", "a", "--deadline", "0"], ["deadline > 0", "0.0"]),
        (["--prefix", "a", "--preset", "canvas_length=65"], ["canvas_length <= 64"]),
    ],
    ids=lambda value: " ".join(value)[:30].encode("ascii", "replace").decode(),
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_bytes(b"caf\xe9")
    (tmp_path / "ZERO").write_bytes(b"a\0b")
    (tmp_path / "before.py").write_bytes(b"x = [")
    (tmp_path / "FILLED").write_bytes(b"nothing is missing")
    mistake(run(*arguments), *words)


@pytest.mark.parametrize("text", ["os.path", "x", "1/2", "a = b.c", "return f.x", "def f(a):\n    x.py"])
def test_a_text_is_a_text(text):
    assert read_file_or_text("--prefix", text) == text


def test_a_pipe_is_a_file(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("Eve, <fill>"))
    writer.start()
    assert run(str(tmp_path / "pipe"), "--gap", "2", "--max-denoising-steps", "1")[1].startswith("Eve, ")
    writer.join()


def test_a_gap_is_checked(run):
    arguments = [
        "--prompt",
        HARD,
        "Bonn, <fill> Zoe",
        "--gap",
        "30",
        "--max-denoising-steps",
        "1",
        "--verify",
    ]
    code, out, err = run(*arguments)
    assert code == 0 and out.startswith("Bonn, ") and out.endswith(" Zoe")
    assert any(line.startswith("block 1: ") and "written again from token" in line for line in err.splitlines()), err
    notes = json.loads(run(*arguments, "--json")[1])["notes"]
    assert notes == [line for line in err.splitlines() if line.startswith("block ")]


@pytest.mark.parametrize("gap", [["--gap", "4"], []], ids=["given", "searched"])
def test_a_gap_has_a_deadline(run, gap):
    arguments = ["--prompt", ASKED, f"{BEFORE}<fill>{BEHIND}", "--deadline", "0.001", *gap]
    code, out, err = run(*arguments)
    assert code == 0 and out.startswith(BEFORE) and out.endswith(BEHIND)
    assert "in 1 steps" in err and "as it stood at the deadline" in err
    assert json.loads(run(*arguments, "--json")[1])["finish_reason"] == "deadline"


def test_watch_is_nothing_without_a_terminal(run):
    arguments = ["--prompt", ASKED, f"{BEFORE}<fill>{BEHIND}", "--gap", "4"]
    assert run(*arguments, "--watch")[1] == f"{BEFORE}Tess{BEHIND}" == run(*arguments)[1]


@pytest.mark.slow
def test_the_canvas_is_drawn_while_lengths_are_searched():
    with Pty("mlx_dgemma.fill", "--watch", "--prompt", ASKED, f"{BEFORE}<fill>{BEHIND}") as terminal:
        seen = terminal.until(b"lengths tried")
    assert b"64 of 64 accepted" in seen and b"step 1 of at most 48" in seen
    assert lines_shown(seen.decode())[-2] == f"{BEFORE}Tess{BEHIND}" and "4 tokens" in lines_shown(seen.decode())[-1]
