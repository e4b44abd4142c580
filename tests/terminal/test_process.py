"""A command's streams and signals, as shells and terminals are: closed, full, of few characters, hung up."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import termios
import time

import forked
import pytest
from ptys import Pty
from terminals import COMMAND, SOLVED, SUDOKU

from mlx_dgemma.generate.__main__ import main as generate
from mlx_dgemma.terminal.command import in_a_line

EMBEDDED = [*COMMAND, "--prompt", SUDOKU]
FEW = ["--max-denoising-steps", "2"]


def shell(line: str, **environment: str) -> tuple[int, str, list[str]]:
    """Runs a line of shell in which G is the command. -> exit code, stdout, lines of stderr but the first note."""
    script = f'exec 3>&1; G() {{ "{sys.executable}" -m mlx_dgemma.generate "$@"; }}; {line}'
    given, environment = ["bash", "-c", script], {**os.environ, **environment}
    found = subprocess.run(given, capture_output=True, text=True, env=environment, timeout=60, stdin=subprocess.DEVNULL)
    return found.returncode, found.stdout, lines(found)


def lines(found: subprocess.CompletedProcess) -> list[str]:
    """Of stderr, without a traceback and but the first note."""
    assert "Traceback" not in found.stderr and "Exception ignored" not in found.stderr, found.stderr
    return [line for line in found.stderr.splitlines() if "no --model" not in line]


def test_closed_standard_streams():
    assert shell(f"G --prompt '{SUDOKU}' <&- 2>&-") == (0, SOLVED + "\n", [])
    code, out, err = shell("G --prompt - <&-")
    assert (code, out, len(err)) == (2, "", 1) and "standard input is closed" in err[0]
    code, _, err = shell(f"G --prompt '{SUDOKU}' >&-")
    assert code == 2 and len(err) == 1 and "standard output is closed" in err[0]
    assert shell(f"G --prompt '{SUDOKU}' <&- >&- 2>&-")[0] == 2


def full(*arguments: str) -> tuple[int, list[str]]:
    """Runs it with a full disk behind standard output. -> exit code, lines of stderr."""
    with open("/dev/full", "w") as disk:
        found = forked.run("-m", *arguments, stdout=disk)
    return found.returncode, lines(found)


@pytest.mark.parametrize("more", [FEW, [*FEW, "--json"], ["--choices", "a,b"]], ids=" ".join)
@pytest.mark.sample(1)
def test_a_full_disk_behind_standard_output(more):
    code, err = full("mlx_dgemma.generate", "--prompt", SUDOKU, *more)
    assert code == 2 and "standard output cannot be written: No space left on device" in err[-1]


@pytest.mark.parametrize("command", ["mlx_dgemma", "mlx_dgemma.benchmark predict --device m4-max"])
@pytest.mark.sample(1)
def test_a_full_disk_behind_a_table(command):
    code, err = full(*command.split())
    assert code == 2 and len(err) == 1 and "cannot be written: No space left on device" in err[0]


@pytest.mark.parametrize(("quiet", "between"), [([], "\n"), (["-q"], "")])
@pytest.mark.slow
def test_a_line_of_numbers_begins_behind_the_text_in_the_same_file(quiet, between):
    """As behind `2>&1 | cat`."""
    fill = ["-m", "mlx_dgemma.fill", "--model", "tiny", "a<fill>b", "--gap", "1", "--max-denoising-steps", "2"]
    reading, writing = os.pipe()
    code = forked.run(*fill, *quiet, stdout=writing, stderr=writing).returncode
    _, text, numbers = os.read(reading, 10_000).decode().partition(forked.run(*fill, "-q").stdout)
    os.close(reading), os.close(writing)
    assert code == 0 and text and numbers[:1] == between and ("tokens in" in numbers) == bool(between)


@pytest.mark.slow
def test_a_full_disk_behind_standard_error():
    with open("/dev/full", "w") as disk:
        found = forked.run("-m", "mlx_dgemma.generate", SUDOKU, stderr=disk)
    assert (found.returncode, found.stdout) == (0, SOLVED + "\n")


NARROW = {"strict": {"PYTHONIOENCODING": "ascii"}}
NARROW |= {"surrogateescape": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}


@pytest.mark.slow
@pytest.mark.parametrize("errors", NARROW)
def test_a_terminal_of_few_characters(tmp_path, monkeypatch, errors):
    (tmp_path / "schema").write_text('{"const": "é😀"}')
    arguments = ["--prompt", "x", "--json-schema", str(tmp_path / "schema"), "--max-tokens", "64"]
    code, out, _ = shell(f"G {' '.join(arguments)}", **NARROW[errors])
    assert code == 0 and out.isascii() and json.loads(out) == "é😀"
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii", errors)
    monkeypatch.setattr("sys.stdout", narrow)
    assert generate([*arguments, "--json"]) == 0
    assert json.loads(json.loads(narrow.buffer.getvalue())["text"]) == "é😀"


@pytest.mark.slow
def test_a_file_whose_name_is_no_text(tmp_path):
    name = f"{tmp_path}/caf\udce9"
    with open(name, "w") as file:
        file.write("4213\n3142\n1342\n2431")
    reading, writing = os.pipe()
    edit = ["-m", "mlx_dgemma.edit", name, "--lines", "2", "--prompt", SUDOKU, "--gap", "4"]
    found = forked.run(*edit, stdout=writing)
    assert found.returncode == 0 and os.read(reading, 10_000).startswith(b"--- " + os.fsencode(name) + b"\n"), found
    os.close(reading), os.close(writing)


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
