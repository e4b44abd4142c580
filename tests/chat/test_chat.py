"""The chat, as whoever types meets it: from a pipe, on a terminal, and what it puts on the screen."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import forked
import pytest
from kills import killed, seconds
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from ptys import Pty
from scripted import random_bpe, scripted
from terminals import SOLVED, SUDOKU, Stdin, caller, mistake

from mlx_dgemma.chat.__main__ import main, read_text
from mlx_dgemma.chat.session import COMMANDS, Session, unquoted
from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import load
from mlx_dgemma.terminal.keyboard import Completer, Interrupt, line_editor
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.conversation import Conversation
from mlx_dgemma.writing.sampling import Sampling

PIPED = SUDOKU.replace("\n", "\\\n") + "\n"
EDITING = b"\x1b[?2004h"  # bracketed paste: a line may be typed
COMMAND = ("-m", "mlx_dgemma.chat")


@pytest.fixture(autouse=True)
def no_chats(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def run(capfd, monkeypatch):
    def call(typed: str | bytes, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", Stdin(typed if isinstance(typed, bytes) else typed.encode()))
        return caller(main, capfd)(*arguments)

    return call


def test_two_turns_from_a_pipe(run):
    code, out, err = run(f"{PIPED}\n{PIPED}", "--max-denoising-steps", "8")
    assert code == 0 and out.startswith(SOLVED + "\n")
    first, second = [line for line in err.splitlines() if "read" in line and "of" in line][-2:]
    assert "20 tokens" in first and "read 54 of 54 tokens" in first
    assert "read 74 of 128 tokens" in second  # the answer, which no pass has encoded, and the question


def test_a_turn_ends_before_a_stop(run, tmp_path):
    few = ["--max-denoising-steps", "8"]
    code, out, _ = run(f"{PIPED}\n/save {tmp_path / 'kept'}", "--stop", SOLVED[5:8], *few)
    assert (code, out) == (0, SOLVED[:5] + "\n" * (SOLVED[4] != "\n"))
    code, _, err = run("", "--load", str(tmp_path / "kept"), *few)
    assert code == 0 and err.rstrip().endswith(SOLVED[:5].rstrip())


def test_commands(run, tmp_path):
    folder = tmp_path / "chat"
    typed = [
        SUDOKU.replace("\n", "\\\n"),
        "/mode",
        "/steps 2",
        "/steps",
        f"/save {folder}",
        "/reset",
        f"/load {folder}",
    ]
    code, out, err = run("\n".join([*typed, "/help", "/quit", "never asked"]))
    assert (code, out) == (0, SOLVED + "\n")
    for words in ("mode: diffusion", "at most 2 steps", f"saved to {folder}", "forgotten", f"> {SUDOKU}", *COMMANDS):
        assert words in err, words
    assert json.loads((folder / "conversation.json").read_text())["messages"][1]["content"] == SOLVED
    code, out, err = run("/quit", "--load", str(folder))
    assert (code, out) == (0, "") and SOLVED in err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("/stepz 3", ["/stepz", "/help"]),
        ("/steps few", ["'few'", ">= 1"]),
        ("/steps 0", ["'0'"]),
        ("/mode slow", ["slow", "diffusion"]),
        ("/save", ["need a folder"]),
        ("/load no/such", ["no/such", "no saved chat"]),
        (f"/load {'x' * 300}", ["no saved chat"]),
        ("/load ~no_such_user/x", ["~no_such_user/x"]),
        ("/save /dev/null/x", ["cannot be saved", "Not a directory"]),
        (f"/save {'x' * 300}", ["cannot be saved", "name too long"]),
        ("/save \0", ["cannot be saved", "null byte"]),
        ("/retry", ["nothing was asked"]),
        ("/undo", ["nothing was asked"]),
        ("/set seed=x", ["seed", ">= 0", "'x'"]),
        ("/set speed 9", ["speed"]),
        ("/set temperature 0.7", ["temp is of writing left to right", "--mode ar"]),
        ("/set thinking=maybe", ["thinking=on", "'maybe'"]),
        ("/set deadline -1", ["deadline > 0"]),
        ("x" * 5000, ["longer than the context", "/reset", "/undo"]),
        (b"caf\xe9", ["not UTF-8"]),
    ],
)
def test_mistakes_in_a_pipe(run, typed, words):
    mistake(run(typed), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--load", "no/such"], ["no/such", "no saved chat"]),
        (["--load", "x", "--system", "y"], ["--load", "--system"]),
        (["--load", "x", "--continue"], ["--continue and --load"]),
        (["--continue", "--thinking"], ["--continue", "--thinking"]),
        (["--continue"], ["no chat was kept"]),
        (["--load", ""], ["need a folder"]),
        (["--tools", "no/such"], ["no/such: no such file"]),
        (["--model", "no/such/folder"], ["no such folder"]),
        (["--prompt", "x"], ["--prompt"]),
        (["--preset", "temp=1"], ["temp", "--mode ar or auto"]),
        (["--max-tokens", "0"], ["--max-tokens"]),
        (["--stop", ""], ["--stop", "empty"]),
    ],
)
def test_mistakes_at_the_start(run, arguments, words):
    mistake(run("", *arguments), *words)


def test_a_saved_chat_of_another_model(run, bpe, tmp_path):
    conversation = scripted(*bpe, "Hello<turn|>")
    list(conversation.ask("Hi"))
    conversation.save(tmp_path / "chat")
    mistake(run("", "--load", str(tmp_path / "chat")), "another model", "--model")
    mistake(run(f"/load {tmp_path / 'chat'}"), "another model", "--model")


def test_tools_that_the_template_ignores_are_told(run, tmp_path):
    (tmp_path / "mcp.json").write_text('{"tools": [{"name": "weather", "inputSchema": {"type": "object"}}]}')
    code, _, err = run("Hi\n", "--tools", str(tmp_path / "mcp.json"), "--max-denoising-steps", "1")
    assert code == 0 and "no place for tools" in err


def test_a_pipe_goes_on_behind_a_mistake(run, tmp_path):
    typed = f"{PIPED}/save /dev/null/x\n/mode zip\n/set seed 4\n/save {tmp_path / 'chat'}\n"
    code, out, err = run(typed, "--max-denoising-steps", "8")
    assert (code, out) == (2, SOLVED + "\n") and (tmp_path / "chat" / "conversation.json").exists()
    assert "Not a directory" in err and "zip is not a mode" in err and "seed: 4" in err


def test_what_other_programs_taught(run):
    typed = '''"""Solve this sudoku:
...3
.124
1342
2.3."""
/system Be brief.
/system
/set stop content
/set
/retry
/undo
/undo
/bye
never asked
'''
    code, out, err = run(typed, "--max-denoising-steps", "8", "-q")
    assert code == 2 and out == f"{SOLVED}\n" * 2  # the second /undo finds nothing
    for words in (
        "system turn: Be brief.",
        "stop: content",
        "stop='content'",
        "seed 1",
        "forgotten: Solve this",
        "nothing",
    ):
        assert words in err, words
    assert "steps, " not in err  # the numbers


def test_three_quotes():
    lines = iter(['"""one', "two", 'three"""', "plain", '"""all"""', '/system """a', 'b"""', '"""never closed'])
    typed = []
    with pytest.raises(EOFError):
        while True:
            typed.append(unquoted(read_text(lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError), "> ")))
    assert typed == ["one\ntwo\nthree", "plain", "all", '/system """a\nb"""', "never closed"]


def test_a_chat_is_kept_as_it_goes(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    few = ["--max-denoising-steps", "8"]
    assert run(PIPED, *few)[0] == 0
    [path] = (tmp_path / "mlx_dgemma" / "chats").iterdir()
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    code, out, err = run("/undo\n", "--continue", *few)
    assert (code, out) == (0, "") and SOLVED in err and "forgotten: Solve" in err
    assert json.loads(path.read_text())["messages"] == [] and len(list(path.parent.iterdir())) == 1
    assert run(f"{PIPED}/reset\nSort: Lima, Kyiv\n", *few)[0] == 0  # what was forgotten is kept, too
    assert len(list(path.parent.iterdir())) == 3
    path.write_text(path.read_text().replace("e", "a"))
    os.utime(path)
    mistake(run("", "--continue"), "is damaged")


def test_the_last_chats_are_kept(bpe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("mlx_dgemma.chat.chat_file.MOST", 2)
    folder = tmp_path / "mlx_dgemma" / "chats"
    session = Session(scripted(*bpe, *["Hello<turn|>"] * 4), watched=False, interactive=True)
    for number in range(4):
        monkeypatch.setattr("time.strftime", lambda _, number=number: f"20260101-00000{number}")
        session.take(f"question {number}")
        (folder / "mine.json").touch()
        session.take("/reset")
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 3 and kept[-1] == "mine.json" and "000002" in kept[0] and "000003" in kept[1]


def test_where_a_chat_cannot_be_kept_it_goes_on(run, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    code, out, err = run(f"{PIPED}/undo\n{PIPED}", "--max-denoising-steps", "8")
    assert (code, out) == (0, f"{SOLVED}\n" * 2) and err.count("is not kept") == 1


def test_a_full_disk_does_not_end_it(bpe, capfd, tmp_path, monkeypatch):
    session = Session(scripted(*bpe, "Hello<turn|>", "Bye<turn|>"), watched=False, interactive=True)
    session.take("Hi")
    with monkeypatch.context() as patch, pytest.raises(Mistake, match="No space left"):
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        session.take(f"/save {tmp_path / 'chat'}")
    session.take("And?")
    session.take(f"/save {tmp_path / 'chat'}")
    assert len(session.conversation.messages) == 4 and (tmp_path / "chat").exists()


def test_the_end_of_the_context_is_told(bpe, capfd, monkeypatch):
    session = Session(scripted(*bpe, "Hello<turn|>", "Bye<turn|>"), watched=False, interactive=True)
    model = session.conversation.model.model
    session.take("Hi")
    assert "nearly full" not in capfd.readouterr().err
    monkeypatch.setattr(model, "facts", replace(model.facts, max_position_embeddings=35 + model.facts.canvas_length))
    session.take("And?")
    assert "the context is nearly full" in capfd.readouterr().err
    with pytest.raises(Mistake, match=r"shorten it, or /reset"):
        session.take("one more " * 9)


def test_tools_that_are_none(run, tmp_path):
    (tmp_path / "tools.json").write_text('{"name": "weather"}')
    mistake(run("", "--tools", str(tmp_path / "tools.json")), "tools.json", "need a list")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return random_bpe(tmp_path_factory.mktemp("bpe"))


def test_thinking_stands_apart(bpe, capfd):
    thought = "<|channel>thought\nIt may be Oslo.\n<channel|>"
    session = Session(scripted(*bpe, f"{thought}Rome\nor<turn|>", thinking=True), watched=True, interactive=True)
    session.take("Where?")
    out, err = capfd.readouterr()
    assert out == "Rome\nor\n"
    assert err.startswith("thinking:\nIt may be Oslo.\n\n") and "Rome" not in err


def test_a_tool_call_is_shown_and_answered(bpe, capfd):
    call = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|><|tool_response>'
    session = Session(
        scripted(*bpe, call, "Four degrees.<turn|>", call, "Fine.<turn|>"), watched=False, interactive=True
    )
    session.take("How warm is Oslo?")
    assert capfd.readouterr().out == 'tool call: weather{"city": "Oslo"}\n'
    assert session.prompt == "what came of weather: "
    session.take("")  # Enter alone is no answer
    session.take("/steps 1")  # a command is none either
    session.take('{"degrees": 4}')
    assert capfd.readouterr().out == "Four degrees.\n" and session.prompt == "> "
    assert "response:weather{degrees:4}" in session.conversation.messages[1]["content"]
    session.take("And now?")
    session.take("much the same")
    assert 'response:weather{value:<|"|>much the same<|"|>}' in session.conversation.messages[3]["content"]


def test_an_empty_answer_and_one_that_is_cut_are_told(bpe, capfd):
    session = Session(scripted(*bpe, "<turn|>", "one two three four", "five"), watched=False, interactive=True)
    session.take("a")
    assert "an empty answer" in capfd.readouterr().err
    conversation = session.conversation
    conversation.how = replace(conversation.how, max_tokens=3)
    session.take("b")
    assert "cut at the length asked for" in capfd.readouterr().err
    conversation.how = replace(conversation.how, max_tokens=300, deadline=1e-9)
    session.take("c")
    assert "as it stood at the deadline" in capfd.readouterr().err


def test_what_is_stopped_before_a_block_is_done_was_never_asked(bpe, capfd, monkeypatch):
    monkeypatch.setattr(Interrupt, "asked", True)  # Ctrl-C in each first pass
    call = "<|tool_call>call:a{}<tool_call|><|tool_response>"
    conversation = scripted(*bpe, call, "never said")
    session = Session(conversation, watched=False, interactive=True)
    session.take("Go")  # one pass is all it takes
    conversation.how = Ask(sampling=Sampling(max_denoising_steps=9))
    session.take("4")
    err = capfd.readouterr().err
    assert "stopped before the first block was done; read" in err
    assert conversation.messages[1]["content"].endswith("response:a{value:4}<tool_response|>")
    conversation.model.script = [[5] * conversation.model.facts.canvas_length]
    session.take("Hi")
    assert "the question is forgotten" in capfd.readouterr().err and len(conversation.messages) == 2


class TestTerminal:
    """The line editor on a terminal that is a pipe."""

    @pytest.fixture
    def typed(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

        def call(keys: str) -> list[str]:
            lines = []
            with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
                line = line_editor({})
                keyboard.send_text(keys)
                while True:
                    try:
                        lines.append(line("> "))
                    except EOFError:
                        return lines
                    except KeyboardInterrupt:
                        lines.append("^C")

        return call

    def test_lines_until_ctrl_d(self, typed):
        assert typed("one\rtwo\r\x04") == ["one", "two"]

    def test_editing_and_ctrl_c(self, typed):
        assert typed("tow\x02\x14\rgone\x03back\x01go \r\x04") == ["two", "^C", "go back"]

    def test_a_paste_is_one_text(self, typed):
        assert typed(f"\x1b[200~{SUDOKU}\x1b[201~\r\x04") == [SUDOKU]

    def test_alt_enter_begins_a_line(self, typed):
        assert typed("one\x1b\rtwo\r\x04") == ["one\ntwo"]

    def test_history_is_kept_between_sessions_and_from_others(self, typed, tmp_path):
        typed("first\rsecond\r\x04")
        assert typed("\x1b[A\x1b[A\r\x04") == ["first"]
        [path] = tmp_path.rglob("chat_history")
        assert path.stat().st_mode & 0o077 == 0
        path.chmod(0o644)
        assert typed("\x1b[A\r\x04") == ["first"] and path.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        ("text", "words"),
        [("/l", ["/load"]), ("/mode a", ["ar", "auto"]), ("/load ch", ["at"]), ("/reset x", []), ("load", [])],
    )
    def test_completion(self, text, words, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "chat").mkdir()
        commands = {"/load": Path, "/mode": ["diffusion", "ar", "auto"], "/reset": ()}
        found = Completer(commands).get_completions(Document(text), CompleteEvent())
        assert [completion.text for completion in found] == words

    def test_a_home_that_cannot_be_written(self, typed, monkeypatch):
        monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
        assert typed("one\r\x04") == ["one"]


@pytest.mark.slow
def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat(endless, tmp_path):
    environment = {"XDG_STATE_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1"}
    with Pty("mlx_dgemma.chat", "--model", str(endless), **environment) as terminal:
        terminal.until(EDITING)
        terminal.type(b"Sort: Lima, Kyiv\r")
        terminal.until(b"block 3 ")  # of the canvas as it settles
        terminal.type(b"\x03")
        assert b"what is finished is kept" in terminal.until(EDITING)
        terminal.type(b"/mode zip\r")
        assert b"zip is not a mode" in terminal.until(EDITING)
        terminal.type(b"\x04")
        assert terminal.process.wait(10) == 0


def test_ctrl_c_ends_a_pipe_with_130(endless):
    (stdin, typing), (reading, stdout) = os.pipe(), os.pipe()
    process = forked.start(*COMMAND, "--model", str(endless), stdin=stdin, stdout=stdout, stderr=forked.PIPE)
    os.write(typing, PIPED.encode())
    assert os.read(reading, 1)  # the first block is out
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    for number in (stdin, typing, reading, stdout):
        os.close(number)
    assert process.returncode == 130 and "what is finished is kept" in err and "Traceback" not in err


def test_the_session_survives_a_mistake(bpe):
    session = Session(scripted(*bpe, "Hello<turn|>"), watched=False, interactive=True)
    with pytest.raises(Mistake):
        session.take("/load nowhere")
    session.take("Hi")
    assert session.conversation.messages[-1]["content"] == "Hello"


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, monkeypatch):
    """Whatever was answered, or said to be saved, is there, whenever the process is killed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    questions = "".join(f"Sort: Lima, Kyiv, {name}\n/save {tmp_path / 'chat'}\n" for name in ("Oslo", "Rome", "Bonn"))
    (tmp_path / "typed").write_text(questions)

    def start():
        command = [*COMMAND, "--max-denoising-steps", "2"]
        with open(tmp_path / "typed") as typed:
            return forked.start(*command, stdin=typed, stdout=forked.DEVNULL, stderr=forked.PIPE)

    def forget():
        shutil.rmtree(tmp_path / "chat", ignore_errors=True)

    longest = seconds(start)
    forget()
    for _, err in killed(start, longest):
        answered, saved = err.count("; read "), err.count("saved to")
        if answered > 1:  # the last may be told before it is kept
            chats = sorted((tmp_path / "state").rglob("chats/*.json"))
            assert len(json.loads(chats[-1].read_text())["messages"]) >= 2 * (answered - 1)
        if saved:
            conversation = Conversation(*load()[:2])
            conversation.load(tmp_path / "chat")
            assert len(conversation.messages) >= 2 * saved
        forget()
