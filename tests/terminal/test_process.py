"""A command's streams and signals, as shells and terminals are: closed, full, of few characters, hung up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import time

import pytest
from ptys import Pty
from terminals import COMMAND, SOLVED, SUDOKU

from mlx_dgemma.terminal.command import in_a_line

EMBEDDED = [*COMMAND, "--prompt", SUDOKU]
FEW = ["--max-denoising-steps", "2"]


def shell(line: str, **environment: str) -> tuple[int, str, list[str]]:
    """Runs a line of shell in which G is the command. -> exit code, stdout, lines of stderr but the first note."""
    script = f'exec 3>&1; G() {{ "{sys.executable}" -m mlx_dgemma.generate "$@"; }}; {line}'
    found = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    err = found.stderr.decode()
    assert "Traceback" not in err and "Exception ignored" not in err, err
    return found.returncode, found.stdout.decode(), [line for line in err.splitlines() if "no --model" not in line]


def test_closed_standard_input():
    code, out, _ = shell(f"G --prompt '{SUDOKU}' <&-")
    assert (code, out) == (0, SOLVED + "\n")
    code, out, err = shell("G --prompt - <&-")
    assert (code, out, len(err)) == (2, "", 1) and "standard input is closed" in err[0]


def test_closed_standard_output_and_error():
    code, _, err = shell(f"G --prompt '{SUDOKU}' >&-")
    assert code == 2 and len(err) == 1 and "standard output is closed" in err[0]
    assert shell(f"G --prompt '{SUDOKU}' 2>&-") == (0, SOLVED + "\n", [])
    assert shell(f"G --prompt '{SUDOKU}' <&- >&- 2>&-")[0] == 2


@pytest.mark.parametrize("more", ["", "--json", "--choices a,b"])
@pytest.mark.sample(1)
def test_a_full_disk_behind_standard_output(more):
    code, _, err = shell(f"G --prompt x {more} {'' if 'choices' in more else ' '.join(FEW)} >/dev/full")
    assert code == 2 and "standard output cannot be written: No space left on device" in err[-1]


@pytest.mark.parametrize("command", ["mlx_dgemma", "mlx_dgemma.benchmark predict --device m4-max"])
@pytest.mark.sample(1)
def test_a_full_disk_behind_a_table(command):
    code, _, err = shell(f"{sys.executable} -m {command} >/dev/full")
    assert code == 2 and len(err) == 1 and "cannot be written: No space left on device" in err[0]


@pytest.mark.parametrize(("where", "between"), [("2>&1 | cat", "\n"), ("-q 2>&1 | cat", "")])
@pytest.mark.slow
def test_a_line_of_numbers_begins_behind_the_text_in_the_same_file(where, between):
    fill = f"{sys.executable} -m mlx_dgemma.fill --model tiny 'a<fill>b' --gap 1 --max-denoising-steps 2"
    code, out, _ = shell(f"{fill} {where}")
    _, text, numbers = out.partition(shell(f"{fill} -q")[1])
    assert code == 0 and text and numbers[:1] == between and ("tokens in" in numbers) == bool(between)


@pytest.mark.slow
def test_a_full_disk_behind_standard_error():
    assert shell(f"G --prompt '{SUDOKU}' 2>/dev/full")[:2] == (0, SOLVED + "\n")


@pytest.mark.slow
def test_a_terminal_of_few_characters(tmp_path):
    (tmp_path / "schema").write_text('{"const": "é😀"}')
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        code, out, _ = shell(f"G --prompt x --json-schema {tmp_path}/schema --max-tokens 64", **environment)
        assert code == 0 and out.isascii() and json.loads(out) == "é😀"
        code, out, _ = shell(f"G --prompt x --json-schema {tmp_path}/schema --max-tokens 64 --json", **environment)
        assert code == 0 and json.loads(json.loads(out)["text"]) == "é😀"


@pytest.mark.slow
def test_a_file_whose_name_is_no_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(name, "w") as file:
        file.write("4213\n3142\n1342\n2431")
    edit = [sys.executable.encode(), b"-m", b"mlx_dgemma.edit", name, b"--lines", b"2", b"--prompt", SUDOKU.encode()]
    found = subprocess.run([*edit, b"--gap", b"4"], capture_output=True)
    assert found.returncode == 0 and found.stdout.startswith(b"--- " + name + b"\n"), found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.sample(1)
def test_a_signal_while_the_canvas_is_drawn(endless, number):
    with Pty("mlx_dgemma.generate", "--watch", "--prompt", SUDOKU, "--model", str(endless)) as terminal:
        before = termios.tcgetattr(terminal.theirs)
        terminal.until(b"block 2 ")
        terminal.process.send_signal(number)
        if number == signal.SIGHUP:
            assert terminal.process.wait(20) == 129
            return
        seen = terminal.until(b"\x1b[?2004l")
        assert terminal.process.wait(20) == 128 + number
        assert b"Traceback" not in seen and seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")
        assert termios.tcgetattr(terminal.theirs) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.sample(1)
def test_a_signal_while_a_line_is_typed(tmp_path, number):
    with Pty("mlx_dgemma.chat", XDG_STATE_HOME=str(tmp_path), PROMPT_TOOLKIT_NO_CPR="1") as terminal:
        before = termios.tcgetattr(terminal.theirs)
        terminal.until(b"\x1b[?2004h")
        terminal.process.send_signal(number)
        if number == signal.SIGINT:  # throws the line away
            terminal.until(b"\x1b[?2004h")
            return
        assert terminal.process.wait(20) == 128 + number
        if number == signal.SIGTERM:
            assert b"Traceback" not in terminal.until(b"\x1b[?2004l")
            assert termios.tcgetattr(terminal.theirs) == before


def interrupted(moment: float) -> subprocess.CompletedProcess:
    process = subprocess.Popen(
        EMBEDDED, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(EMBEDDED, process.returncode, out, err)


# Sooner, Python itself is not up yet, and its own imports are broken off.
@pytest.mark.parametrize("moment", [0.3, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.15, 0.45, 0.7))])
def test_ctrl_c_while_it_starts(moment):
    found = interrupted(moment)
    if "Fatal Python error" in found.stderr:
        pytest.skip("the machine is so busy that Python itself was not up yet")
    assert "mlx_dgemma/" not in found.stderr and found.returncode in (130, -signal.SIGINT, 0), found.stderr


def test_a_message_is_a_line():
    assert in_a_line("a\nb\x1b[2J\x07 é") == "a b\\x1b[2J\\x07 é"
    assert len(in_a_line("x" * 10**6)) < 1100 and in_a_line("x" * 10**6 + "see here").endswith("see here")
