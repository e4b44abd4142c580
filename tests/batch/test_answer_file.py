"""`batch --out`: nothing is written but behind the answers of this very run, and no answer is lost."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints
import forked
import pytest
from kills import killed, seconds
from terminals import caller, mistake

from mlx_dgemma.batch.__main__ import main

PROMPTS = [{"prompt": f"Sort: {names}"} for names in ("Lima, Kyiv", "Yan, Omar", "Bonn, Dan")]
FEW = ["--max-denoising-steps", "2", "--max-tokens", "32"]


@pytest.fixture
def run(capfd):
    return caller(main, capfd)


def lay_out(folder: Path) -> tuple[Path, Path]:
    """-> requests, and where the answers are to be."""
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)) + "\n")
    return path, folder / "answers.jsonl"


@pytest.fixture
def files(tmp_path):
    return lay_out(tmp_path)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    path, out = lay_out(tmp_path_factory.mktemp("answered"))
    assert main([str(path), "--out", str(out), *FEW]) == 0
    return out.read_bytes()


@pytest.fixture
def answers(files, answered):
    files[1].write_bytes(answered)
    return answered


def texts(lines: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in lines.splitlines()]


@pytest.mark.slow
def test_a_run_that_was_cut_short_is_gone_on_with(run, files, answers):
    path, out = files
    arguments = [str(path), "--out", str(out), *FEW]
    assert len(texts(answers)) == 3
    first, second, _ = answers.splitlines(keepends=True)
    for rest in (b"", second[:20], second[:-1]):
        out.write_bytes(first + rest)
        code, _, err = run(*arguments)
        assert code == 0 and "holds 1 of 3" in err and texts(out.read_bytes()) == texts(answers)
    code, _, err = run(*arguments)
    assert code == 0 and "holds 3 of 3" in err and "no --model given" not in err
    out.write_bytes(first[:-9])  # nothing but what was left unfinished
    assert run(*arguments)[0] == 0 and texts(out.read_bytes()) == texts(answers)


def test_requests_that_were_added_are_answered(run, files, answers):
    path, out = files
    path.write_text(path.read_text() + '{"prompt": "Sort: Rome, Oslo"}\n')
    code, _, err = run(str(path), "--out", str(out), *FEW)
    assert code == 0 and "holds 3 of 4" in err and out.read_bytes().startswith(answers)
    assert len(texts(out.read_bytes())) == 4


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("prompt", ["request 1", "line 2"]),
        ("order", ["request 0", "line 1"]),
        ("fewer", ["holds 3 answers", "2 requests"]),
        ("model", ["its model was tiny", "now it is", "other"]),
        ("seed", ["its seed was 0, now it is 7"]),
        ("options", ["its options were others"]),
        ("system", ["request 0"]),
    ],
)
@pytest.mark.sample(4)
def test_another_run_s_answers_are_refused(run, files, answers, tmp_path, what, words):
    path, out = files
    more = {"seed": ["--seed", "7"], "options": ["--verify"], "system": ["--system", "Be brief."]}.get(what, [])
    lines = path.read_text().splitlines()
    if what == "prompt":
        lines[1] = '{"prompt": "Sort: Rome, Oslo"}'
    elif what == "order":
        lines = lines[::-1]
    elif what == "fewer":
        lines = lines[:2]
    elif what == "model":
        more = ["--model", str(shutil.copytree(checkpoints.TINY, tmp_path / "other"))]
        (tmp_path / "other" / "generation_config.json").write_text('{"max_denoising_steps": 3}')
    path.write_text("\n".join(lines))
    code, out_text, err = run(str(path), "--out", str(out), *FEW, *more)
    assert "no --model given" not in err
    mistake((code, out_text, err), "--out", *words)
    assert out.read_bytes() == answers


OTHER_THINGS = [
    b"precious first line\nprecious last line",
    b"precious",
    b'{"a": 1}\n',
    b"{",
    b'{"request": 0, "te',
    b"\n",
    b"\n\n",
    b"[" * 5000 + b"\n",
    b"null\n",
    b'{"request": 0, "seed": 0, "run": 5, "model": "tiny"}\n',
    b'{"request": 0, "seed": 0, "run": "a", "model": "tiny"}\n',
    b"\0\1\2",
    b"caf\xe9\n",
]


@pytest.mark.parametrize("data", OTHER_THINGS, ids=lambda data: repr(data[:20]))
def test_a_file_of_other_things_is_left_as_it_is(run, files, data):
    path, out = files
    out.write_bytes(data)
    code, out_text, err = run(str(path), "--out", str(out))
    assert "no --model given" not in err
    mistake((code, out_text, err), "--out", "other things")
    assert out.read_bytes() == data


def test_what_stands_behind_the_answers_is_left_as_it_is(run, files, answers):
    path, out = files
    for rest in (b"precious", b"precious\n", b"{\n", b"\n"):
        out.write_bytes(answers + rest)
        mistake(run(str(path), "--out", str(out), *FEW), "other things")
        assert out.read_bytes() == answers + rest
    out.write_bytes(answers.splitlines(keepends=True)[0] + b"precious")
    mistake(run(str(path), "--out", str(out), *FEW), "other things")


def test_the_requests_own_file_is_left_as_it_is(run, files, tmp_path):
    path, _ = files
    asked = path.read_bytes()
    os.link(path, tmp_path / "same")
    for out in (path, tmp_path / "same"):
        mistake(run(str(path), "--out", str(out)), "other things")
        assert path.read_bytes() == asked


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "long", "loop", "below a file", "empty name"])
def test_what_is_no_file(run, files, tmp_path, kind):
    path, _ = files
    name = str(tmp_path / "it")
    if kind == "folder":
        os.mkdir(name)
    elif kind == "pipe":
        os.mkfifo(name)
    elif kind == "loop":
        os.symlink(name, name)
    name = {"device": "/dev/full", "long": "x" * 300, "below a file": f"{path}/it", "empty name": ""}.get(kind, name)
    code, out, err = run(str(path), "--out", name)
    assert "no --model given" not in err
    mistake((code, out, err), f"--out {name}")


def test_a_second_process_waits_outside(run, files):
    path, out = files
    with out.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mistake(run(str(path), "--out", str(out)), "written by another process")


def test_a_mistake_leaves_no_file_behind(run, files):
    path, out = files
    mistake(run(str(path), "--out", str(out), "--model", "no/such/folder"), "no such folder")
    assert not out.exists()
    out.touch()  # it is the user's own
    mistake(run(str(path), "--out", str(out), "--model", "no/such/folder"), "no such folder")
    assert out.exists()


@pytest.mark.slow
def test_a_full_disk_keeps_whole_answers(files):
    path, out = files
    command = ["-m", "mlx_dgemma.batch", str(path), "--out", str(out), *FEW, "--size", "1"]
    small = 650  # bytes that a file may have: one answer and a half
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))  # noqa: E731
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, preexec_fn=limit)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "cannot be written" in found.stderr and "goes on behind it" in found.stderr
    assert len(texts(out.read_bytes())) == 1
    assert forked.run(*command).returncode == 0 and len(texts(out.read_bytes())) == 3


@pytest.mark.slow
def test_ctrl_c_says_what_was_reached(files):
    path, out = files
    path.write_text("\n".join(map(json.dumps, PROMPTS * 20)))
    command = ["-m", "mlx_dgemma.batch", str(path), "--out", str(out), "--size", "1"]
    process = forked.start(*command, stderr=forked.PIPE)
    while not out.exists() or not out.stat().st_size:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "Traceback" not in err
    count = out.read_text().count("\n")
    assert f"stopped with {count} of 60 answers written; the same command goes on" in err


@pytest.mark.slow
def test_kills_at_random_moments(files):
    """Whatever was a whole line stays, and the file in the end is that of a run which nobody killed."""
    path, out = files
    path.write_text("\n".join(map(json.dumps, PROMPTS * 4)))
    command = ["-m", "mlx_dgemma.batch", str(path), "--size", "2", *FEW, "--out"]

    def start(out=out):
        return forked.start(*command, str(out), stderr=forked.PIPE)

    whole = path.with_name("whole")
    longest, seen = seconds(lambda: start(whole)), b""
    for code, _ in killed(start, longest):
        now = out.read_bytes() if out.exists() else b""
        assert now.startswith(seen) and (code or now.count(b"\n") == 12)
        seen = now[: now.rfind(b"\n") + 1]
        if code == 0:
            assert texts(now) == texts(whole.read_bytes())
            out.unlink()
            seen = b""
    seconds(start)
    assert texts(out.read_bytes()) == texts(whole.read_bytes())
