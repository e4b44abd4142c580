"""`python -m mlx_dgemma.edit`, as its user meets it."""

from __future__ import annotations

import checkpoints
import pytest
from terminals import mistake

PUZZLE = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
RIGHT, WRONG = "4213\n3124\n1342\n2431", "4213\n3142\n1342\n2431"


def test_the_command(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "grid"
    path.write_bytes(WRONG.encode())
    arguments = ["--edit", "grid", "--lines", "2:2", "--prompt", PUZZLE]
    code, out, err = run(*arguments)
    assert code == 0 and out.splitlines()[:2] == ["--- a/grid", "+++ b/grid"]
    assert "-3142\n+3124\n" in out and out.endswith(" 2431\n\\ No newline at end of file\n") and "tokens" in err
    assert path.read_text() == WRONG
    assert run(*arguments, "--write")[1] == out and path.read_bytes() == RIGHT.encode()
    code, out, err = run(*arguments, "--write", "--strength", "0.25")
    assert (code, out) == (0, "") and "nothing changed" in err
    assert run(*arguments[:-1], "Is <file> right?", "--gap", "3", "--json", "--max-denoising-steps", "2")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lines", "3:9"], ["lines 3:9", "text, which has 2 lines"]),
        (["--lines", "x"], ["--lines", "FIRST:LAST", "'x'"]),
        (["--lines", "1", "--strength", "1.5"], ["--strength", "'1.5'"]),
        (["--edit", "zero", "--lines", "1"], ["zero is not text", "0x00"]),
        (["--edit", "latin", "--lines", "1"], ["latin is not text", "0xe9 at offset 3"]),
        (["--edit", "gone", "--lines", "1"], ["gone", "no such file"]),
        (["--edit", ".", "--lines", "1"], ["directory"]),
        (["--edit", "empty", "--lines", "1"], ["which has 0 lines"]),
        ([], ["--lines"]),
        (["--lines", "1", "--watch"], ["--watch", "--edit"]),
        (["--lines", "1", "--gap-only"], ["--gap-only", "--edit"]),
        (["--lines", "1", "--prefix", "x"], ["--prefix", "--edit"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, data in (("text", b"a\nb\n"), ("zero", b"a\0"), ("latin", b"caf\xe9"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    mistake(run("--prompt", "x", "--model", str(checkpoints.TINY), "--edit", "text", *arguments), *words)
