"""Whatever a text's lines end with: the model is shown the same, and the text gets its own back."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from terminals import Stdin, caller

from mlx_dgemma.batch.__main__ import main as batch
from mlx_dgemma.edit.__main__ import main as edit
from mlx_dgemma.fill.__main__ import main as fill
from mlx_dgemma.fill.infill import infill
from mlx_dgemma.fill.line_ends import BOM, line_end, normalized
from mlx_dgemma.load import load
from mlx_dgemma.terminal.keyboard import line_of_pipe
from mlx_dgemma.terminal.prompt import read_prompt
from mlx_dgemma.terminal.requests import Request, read_lines

PUZZLE = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
GRID = "4213\n3124\n1342\n2431\n"
ENDS = ["\n", "\r\n", "\r"]


@pytest.mark.parametrize(
    ("text", "end"),
    [("", "\n"), ("a\nb", "\n"), ("a\r\nb", "\r\n"), ("a\rb", "\r"), ("a\r\nb\r\nc\n", "\r\n"), ("a\r\nb\nc\n", "\n")],
)
def test_what_most_lines_end_with(text, end):
    assert line_end(text) == end
    assert "\r" not in normalized(BOM + text) and BOM not in normalized(BOM + text)


@pytest.mark.parametrize("end", ENDS, ids=repr)
@pytest.mark.parametrize("mark", ["", BOM], ids=["plain", "marked"])
@pytest.mark.sample(3)
def test_a_gap_of_many_lines(capfd, tmp_path, end, mark):
    """Two of the grid's lines are missing, with the line end between them."""
    path = tmp_path / "grid.txt"
    text = (mark + GRID.replace("3124\n1342", "<fill>")).replace("\n", end)
    path.write_bytes(text.encode())
    code, out, _ = caller(fill, capfd)(str(path), "--gap", "9", "--prompt", PUZZLE)
    assert (code, out) == (0, (mark + GRID).replace("\n", end))


@pytest.mark.parametrize("end", ENDS, ids=repr)
@pytest.mark.parametrize("mark", ["", BOM], ids=["plain", "marked"])
@pytest.mark.sample(3)
def test_lines_of_a_file(capfd, tmp_path, monkeypatch, end, mark):
    """Its first line, too, behind the mark."""
    monkeypatch.chdir(tmp_path)
    right, wrong = (mark + text.replace("\n", end) for text in (GRID, GRID.replace("4213\n3124", "4231\n3142")))
    (tmp_path / "grid").write_bytes(wrong.encode())
    arguments = ["grid", "--lines", "1:2", "--prompt", PUZZLE, "--gap", "9", "--write"]
    code, out, err = caller(edit, capfd)(*arguments)
    assert code == 0, err
    assert (tmp_path / "grid").read_bytes() == right.encode()
    if shutil.which("patch"):
        (tmp_path / "grid").write_bytes(wrong.encode())
        subprocess.run(["patch", "--binary", "-s", "-p1"], input=out.encode(), check=True)
        assert (tmp_path / "grid").read_bytes() == right.encode()


@pytest.mark.slow
def test_the_model_sees_the_same_of_every_kind():
    """All results of a search are equal, its scores too."""
    model, tokenizer, sampling = load()
    from mlx_dgemma.fill.infill import Infill
    from mlx_dgemma.tokens.messages import prompt_tokens
    from mlx_dgemma.writing.ask import Ask

    prompt, ask = prompt_tokens(tokenizer, PUZZLE), Ask(sampling=sampling)
    texts = [["4213\n", "\n1342\n2431"], ["4213\r\n", "\r\n1342\r\n2431"], [f"{BOM}4213\r", "\r1342\r2431"]]
    results = infill(model, tokenizer, [Infill(prompt=prompt, texts=text, ask=ask) for text in texts])
    assert all(result.gaps == ["3124"] and result.tried == results[0].tried for result in results)
    assert [result.texts for result in results] == texts


@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_lines_of_a_file_of_requests(capfd, tmp_path, end):
    request = {"prefix": f"{BOM}4213{end}", "suffix": f"{end}2431{end}", "gap": 9, "prompt": PUZZLE.replace("\n", end)}
    path = tmp_path / "lines.jsonl"
    path.write_bytes(f"{BOM}{json.dumps(request)}\r\n".encode())
    code, out, err = caller(batch, capfd)(str(path))
    assert code == 0, err
    assert json.loads(out)["text"] == f"{BOM}{GRID}".replace("\n", end)
    assert json.loads(out)["gaps"] == [f"3124{end}1342"]


def test_the_mark_of_a_suffix_stands_in_front(capfd, tmp_path):
    for name in ("before", "behind"):
        (tmp_path / name).write_text(f"{BOM}{name}")
    files = ["--prefix", str(tmp_path / "before"), "--suffix", str(tmp_path / "behind")]
    few = ["--gap", "2", "--max-denoising-steps", "1"]
    for arguments in (files, files[2:]):
        out = caller(fill, capfd)(*arguments, *few)[1]
        assert out.startswith(BOM) and out.count(BOM) == 1 and out.endswith("behind")
    code, _, err = caller(fill, capfd)("--prefix", BOM, *few)
    assert code == 2 and "no text" in err


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", Stdin(f"{BOM}Sort:\r\nLima, Kyiv\r\n".encode()))
    assert read_prompt("-") == "Sort:\nLima, Kyiv"
    monkeypatch.setattr("sys.stdin", Stdin(f"{BOM}a\r\nb".encode()))
    assert read_prompt("-", raw=True) == "a\r\nb"
    monkeypatch.setattr("sys.stdin", Stdin(f"{BOM}/help\r\n".encode()))
    assert line_of_pipe("") == "/help"


def test_lines_of_messages(tmp_path):
    request = {"messages": [{"role": "user", "content": "Sort:\r\nLima"}, {"role": "assistant", "content": None}]}
    (tmp_path / "lines.jsonl").write_text(json.dumps(request) + "\r\n" + '{"prompt": "a\\rb", "system": "c\\r\\nd"}')
    first, second = read_lines(str(tmp_path / "lines.jsonl"), Request())
    assert first.messages == [{"role": "user", "content": "Sort:\nLima"}, {"role": "assistant", "content": None}]
    assert [message["content"] for message in second.messages] == ["c\nd", "a\nb"]
