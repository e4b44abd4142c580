"""`python -m mlx_dgemma.edit`, as its user meets it."""

from __future__ import annotations

import json

import checkpoints
import pytest
from ptys import Pty, lines_shown
from terminals import caller, mistake

from mlx_dgemma.edit.__main__ import main
from mlx_dgemma.terminal.filling import fill_gaps

PUZZLE = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
RIGHT, WRONG = "4213\n3124\n1342\n2431", "4213\n3142\n1342\n2431"


@pytest.fixture
def run(capfd):
    return caller(main, capfd)


def test_the_command(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "grid"
    path.write_bytes(WRONG.encode())
    arguments = ["grid", "--lines", "2:2", "--prompt", PUZZLE]
    code, out, err = run(*arguments)
    assert code == 0 and out.splitlines()[:2] == ["--- a/grid", "+++ b/grid"]
    assert "-3142\n+3124\n" in out and out.endswith(" 2431\n\\ No newline at end of file\n") and "tokens" in err
    assert path.read_text() == WRONG
    arguments += ["--gap", "4"]  # as was found
    assert run(*arguments, "--write")[1] == out and path.read_bytes() == RIGHT.encode()
    code, out, err = run(*arguments, "--write", "--strength", "0.25")
    assert (code, out) == (0, "") and "nothing changed" in err
    assert run(*arguments[:4], "Is <file> right?", "--gap", "3", "--json", "--max-denoising-steps", "2")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lines", "3:9"], ["lines 3:9", "text, which has 2 lines"]),
        (["--lines", "x"], ["--lines", "FIRST:LAST", "'x'"]),
        (["--lines", "1", "--strength", "1.5"], ["--strength", "'1.5'"]),
        (["zero", "--lines", "1"], ["zero is not text", "0x00"]),
        (["latin", "--lines", "1"], ["latin is not UTF-8", "0xe9 at offset 3"]),
        (["gone", "--lines", "1"], ["gone", "no such file"]),
        ([".", "--lines", "1"], ["directory"]),
        (["-", "--lines", "1"], ["standard input", "give a file"]),
        (["empty", "--lines", "1"], ["which has 0 lines"]),
        ([], ["--lines"]),
        (["--lines", "1", "--prompt", " "], ["prompt is empty"]),
        (["--lines", "1", "--gap", "0"], ["--gap", ">= 1"]),
        (["--lines", "1", "--prefix", "x"], ["--prefix"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, data in (("text", b"a\nb\n"), ("zero", b"a\0"), ("latin", b"caf\xe9"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    file = [] if arguments and not arguments[0].startswith("--") else ["text"]
    mistake(run("--prompt", "x", "--model", str(checkpoints.TINY), *file, *arguments), *words)


def test_an_edit_is_checked_and_has_a_deadline(run, tmp_path):
    (tmp_path / "grid").write_text(WRONG)
    arguments = [str(tmp_path / "grid"), "--lines", "2", "--prompt", PUZZLE, "--gap", "4", "--json"]
    assert json.loads(run(*arguments, "--verify")[1])["gaps"] == ["3124"]
    result = json.loads(run(*arguments, "--deadline", "0.001")[1])
    assert (result["finish_reason"], result["steps"]) == ("deadline", [1])


def test_a_file_that_another_program_changed_is_left_as_it_is(run, tmp_path, monkeypatch):
    path = tmp_path / "grid"
    path.write_text(WRONG)

    def changed(*arguments):
        path.write_text("theirs")
        return fill_gaps(*arguments)

    monkeypatch.setattr("mlx_dgemma.edit.__main__.fill_gaps", changed)
    mistake(run(str(path), "--lines", "2", "--prompt", PUZZLE, "--gap", "4", "--write"), "changed by another program")
    assert path.read_text() == "theirs"


@pytest.mark.slow
def test_the_canvas_is_drawn_while_an_edit_settles(tmp_path):
    (tmp_path / "grid").write_text(WRONG)
    arguments = [str(tmp_path / "grid"), "--watch", "--lines", "2", "--prompt", PUZZLE]
    with Pty("mlx_dgemma.edit", *arguments) as terminal:
        seen = terminal.until(b"lengths tried")
    assert b"step 1 of at most 36" in seen  # three quarters of the schedule
    assert {"-3142", "+3124"} <= set(lines_shown(seen.decode()))
