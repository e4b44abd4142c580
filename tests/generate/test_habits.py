"""What people type who come from other programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import forked
import pytest
from ptys import Pty
from terminals import SOLVED, SUDOKU, mistake

from mlx_dgemma.__main__ import COMMANDS
from mlx_dgemma.__main__ import main as listed
from mlx_dgemma.tokens.stops import Stops
from mlx_dgemma.version import __version__


@pytest.mark.parametrize(
    "arguments",
    [(SUDOKU,), ("-p", SUDOKU), (SUDOKU, "-m", "tiny"), ("-q", SUDOKU), ("--quiet", "--model", "tiny", "-p", SUDOKU)],
    ids=lambda arguments: " ".join(arguments)[:12],
)
def test_an_answer(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (0, SOLVED + "\n")
    assert ("no --model given" in err) == (
        "-m" not in arguments and "-q" not in arguments and "--quiet" not in arguments
    )
    assert ("tokens in" in err) == ("-q" not in arguments and "--quiet" not in arguments)


def test_names_of_mlx_lm(run):
    code, out, _ = run(
        "--prompt",
        "Reverse: Oslo, Rome",
        "--mode",
        "ar",
        "--temp",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "5",
        "--max-tokens",
        "9",
    )
    same = run("Reverse: Oslo, Rome", "--mode", "ar", "--preset", "temp=0.5,top_p=0.9,top_k=5", "--max-tokens", "9")
    assert code == 0 and same[:2] == (code, out)
    mistake(run("x", "--top-p", "0.9", "--mode", "ar"), "top_p", "temp=T")
    mistake(run("x", "--temp", "0.7"), "temp is of writing left to right", "t_min")
    turns = "<|turn>user\nSort: Lima, Kyiv<turn|>\n<|turn>model\n"
    code, out, _ = run("-p", turns, "--ignore-chat-template", "--max-denoising-steps", "2")
    assert out == run("Sort: Lima, Kyiv", "--preset", "max_denoising_steps=2")[1]
    for flag in ("--system", "--system-prompt"):
        assert run(SUDOKU, flag, "Be brief.")[1] == SOLVED + "\n"


def piped(data: bytes | None, *arguments: str, **stdin) -> subprocess.CompletedProcess:
    return forked.run("-m", "mlx_dgemma.generate", *arguments, typed=data, **stdin)


@pytest.mark.slow
def test_what_is_piped_in_stands_behind_the_prompt(tmp_path):
    first, rest = SUDOKU.split("\n", 1)
    found = piped(b"\xef\xbb\xbf" + rest.replace("\n", "\r\n").encode(), first, "--json", "--max-denoising-steps", "2")
    whole = piped(None, f"{first}\n\n{rest}", "--json", "--max-denoising-steps", "2")
    one, other = json.loads(found.stdout), json.loads(whole.stdout)
    assert (one["text"], one["prompt_tokens"]) == (other["text"], other["prompt_tokens"])
    assert f"{len(rest)} characters" in found.stderr
    (tmp_path / "file").write_text(rest)
    with (tmp_path / "file").open() as file:
        found = piped(None, first, "--json", "--max-denoising-steps", "2", stdin=file)
    assert json.loads(found.stdout)["text"] == one["text"]


@pytest.mark.slow
def test_what_is_piped_in_is_the_prompt():
    assert piped(SUDOKU.encode()).stdout == SOLVED + "\n"
    assert piped(SUDOKU.encode(), "-").stdout == SOLVED + "\n"
    found = piped(b"\n ")
    assert found.returncode == 2 and "there is no prompt" in found.stderr


@pytest.mark.slow
def test_a_pipe_that_sends_nothing_is_left_alone():
    """As that of whoever starts the command and holds it open."""
    reading, writing = os.pipe()
    found = piped(None, SUDOKU, stdin=reading)
    os.close(reading), os.close(writing)
    assert found.stdout == SOLVED + "\n" and "sent nothing" in found.stderr


def test_a_terminal_is_asked_for_the_prompt():
    with Pty("mlx_dgemma.generate", "-p", "-") as terminal:
        terminal.until(b"type the prompt, then Ctrl-D")
        terminal.type(SUDOKU.encode() + b"\n\x04")
        assert SOLVED.replace("\n", "\r\n").encode() in terminal.until(b"tokens in")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("there is no prompt", "--prompt")),
        (("one", "--prompt", "two"), ("two prompts", "'one'", "'two'")),
        (("--prompt", "-5x"), ("expected one argument", "--flag=VALUE")),
        (("x", "--stop", ""), ("--stop is an empty text",)),
        (("x", "--stop", "a", "--choices", "a,b"), ("--stop", "--choices")),
        (("Why", "is", "it?"), ("unrecognized arguments: is it?",)),
        (("",), ("prompt is empty",)),
    ],
)
def test_mistakes(run, arguments, words):
    mistake(run(*arguments), *words)


def test_a_prompt_that_begins_with_a_line(run):
    assert run("--prompt=-5 + 3", "--max-denoising-steps", "2")[0] == 0


def test_the_text_ends_before_a_stop(run):
    code, out, _ = run(SUDOKU, "--stop", "9", "--stop", "\n13", "--json")
    found = json.loads(out)
    assert (code, found["text"], found["finish_reason"]) == (0, SOLVED[:9], "stop")
    code, out, _ = run(SUDOKU, "--stop", "4")
    assert (code, out.strip()) == (0, "")


def test_no_further_block_is_written_behind_a_stop(run, endless):
    first = json.loads(
        run(SUDOKU, "--model", str(endless), "--max-denoising-steps", "2", "--json", "--max-tokens", "200")[1]
    )
    assert first["blocks"] == 4
    found = json.loads(
        run(SUDOKU, "--model", str(endless), "--max-denoising-steps", "2", "--json", "--stop", first["text"][3])[1]
    )
    assert found["blocks"] == 1 and first["text"].startswith(found["text"]) and len(found["text"]) <= 3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_stops_wherever_the_pieces_part_them(size):
    text = "one two\n\nthree four"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for stops, kept in ((["\n\n"], "one two"), (["three", "two"], "one "), (["o"], ""), (["four!"], text), ([], text)):
        cut = Stops(stops)
        found = "".join(cut.push(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces))
        assert found == kept and bool(cut.found) == (kept != text)


def test_the_commands_are_listed(capsys):
    assert listed([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS) and "--help" in out
    assert listed(["generate", SUDOKU]) == 0 and capsys.readouterr().out == SOLVED + "\n"
    for arguments in (["--version"], ["generate", "--version"], ["convert", "--version"]):
        with pytest.raises(SystemExit, match="0"):
            listed(arguments)
        assert capsys.readouterr().out == f"mlx_dgemma {__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        listed(["genrate"])


def test_as_a_module():
    found = subprocess.run([sys.executable, "-m", "mlx_dgemma"], capture_output=True, text=True)
    assert found.returncode == 0 and "generate" in found.stdout
