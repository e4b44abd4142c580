"""`python -m mlx_dgemma.fill`, as its user meets it."""

from __future__ import annotations

import json

import pytest
from terminals import Stdin, mistake

ASKED = "Extract JSON: Tess is 40 and works as a vet in Accra."
BEFORE, BEHIND = '{"name": "', '", "age": 40, "job": "vet", "city": "Accra"}'


@pytest.mark.parametrize("how", ["text", "file", "stdin", "marks"])
def test_the_command(run, monkeypatch, tmp_path, how):
    arguments = ["--prefix", BEFORE, "--suffix", BEHIND]
    if how == "file":
        (tmp_path / "before").write_bytes(BEFORE.encode())
        arguments[1] = str(tmp_path / "before")
    elif how == "stdin":
        monkeypatch.setattr("sys.stdin", Stdin(BEHIND.encode()))
        arguments[3] = "-"
    elif how == "marks":
        arguments = ["--fill", f"{BEFORE}<fill>{BEHIND}"]
    code, out, err = run("--prompt", ASKED, *arguments)
    assert (code, out) == (0, f"{BEFORE}Tess{BEHIND}") and "4 tokens (of 4 lengths tried)" in err
    assert ("--prefix is the file" in err) == (how == "file")
    assert run("--prompt", ASKED, *arguments, "--gap", "4", "--gap-only")[1] == "Tess"


def test_the_command_without_a_prompt_in_json_and_raw(run):
    code, out, _ = run("--fill", "a<fill>b<fill>\r\nc", "--gap", "2,3", "--json", "--max-denoising-steps", "2")
    found = json.loads(out)
    assert code == 0 and found["lengths"] == [2, 3] and found["text"] == f"a{found['gaps'][0]}b{found['gaps'][1]}\r\nc"
    assert run("--raw", "--prompt", "x", "--prefix", "a", "--gap", "2", "--max-denoising-steps", "2")[1].startswith("a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prefix", "FILE"], ["FILE is not text", "0xe9 at offset 3"]),
        (["--suffix", "ZERO"], ["ZERO is not text", "0x00 at offset 1"]),
        (["--prefix", "\udcff"], ["valid Unicode"]),
        (["--prefix", "a", "--gap", "5000"], ["a gap of 5000 tokens", "context", "4032"]),
        (["--prefix", "a", "--gap", "0"], ["--gap", ">= 1", "'0'"]),
        (["--prefix", "a", "--gap", "1,2"], ["gap has 2 lengths", "1 gaps"]),
        (["--prefix", "", "--suffix", ""], ["no text"]),
        (["--fill", "a"], ["<fill>"]),
        (["--fill", "a<fill><fill>b"], ["nothing between"]),
        (["--fill", "a<fill>", "--suffix", "b"], ["--suffix", "--fill"]),
        (["--prompt", "x", "--gap", "3"], ["--gap", "--prefix"]),
        (["--prefix", "a", "--prompts", "b"], ["--prompts", "--prefix"]),
        (["--prefix", "a", "--raw"], ["--raw needs --prompt"]),
        (["--prefix", "-", "--suffix", "-"], ["standard input", "once"]),
        (["--prefix", "a", "--prompt", ""], ["prompt is empty"]),
        (["--prefix", "a", "--strength", "1"], ["--strength", "--prefix"]),
        (["--prefix", "a", "--canvas-length", "65"], ["canvas_length <= 64"]),
    ],
    ids=lambda value: " ".join(value)[:30].encode("ascii", "replace").decode(),
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_bytes(b"caf\xe9")
    (tmp_path / "ZERO").write_bytes(b"a\0b")
    mistake(run(*arguments), *words)
