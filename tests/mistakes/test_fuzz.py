"""Whatever flags, files and lines a command is given: an answer or one line, in time, and no file that was not asked
for is changed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cases import COMMANDS, FILES, QUICK, Outcome, call, contents, inside, lay_out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = [*FILES, "folder", "loop", "gone link", "protected", "nowhere", "no/such", "folder/x", "x" * 300]
VALUES = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(["", "-", "--", "0", "1", "2", "8", "-1", "1e400", "nan", "1:2", "2:9", "a,b", "{a}", "a<fill>b"]),
    st.sampled_from(
        ["fast", "verify", "temp=1", "t_min=0", "max_denoising_steps=1", "canvas_length=auto", "ar", "é😀"]
    ),
    st.text(max_size=8),
    st.integers(-3, 40).map(str),
)
LEFT_OUT = ("--max-tokens", "--max-denoising-steps", "--backend", "--adapter-path", "--help", "--model")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
REQUEST_WORDS = ["prompt", "messages", "system", "fill", "prefix", "suffix", "gap", "heal", "thinking", "seed", "tools"]
MESSAGE_WORDS = ["role", "content", "tool_calls", "tool_call_id", "name", "type", "text", "function", "arguments", "id"]
SCHEMA_WORDS = ["type", "properties", "required", "items", "enum", "const", "anyOf", "$ref", "pattern", "minLength"]
TOOL_WORDS = ["type", "function", "name", "parameters", "input_schema", "tools", "description"]


def documents(words: list[str]) -> st.SearchStrategy:
    """JSON whose objects have these keys, and words and names as values, so that more than its outside is read."""
    leaf = JSON | st.sampled_from([*words, "user", "assistant", "tool", "string", "object", "a<fill>b", "#/properties"])
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(words), inner, max_size=4),
        max_leaves=10,
    )


CALLS = [(command, "__main__", ()) for command in (*COMMANDS, "convert", "fuse")]
CALLS += [("train", "options", ()), *(("benchmark", name, (name,)) for name in ("compare", "predict", "baseline"))]


@st.composite
def command_lines(draw) -> tuple[str, list[str], bytes]:
    command, module, first = draw(st.sampled_from(CALLS))
    parser = importlib.import_module(f"mlx_dgemma.{command}.{module}").parser()
    actions = [action for action in parser._actions if not set(action.option_strings) & set(LEFT_OUT)]
    arguments = list(first)
    for action in draw(st.lists(st.sampled_from(actions), max_size=4)):
        flag = draw(st.sampled_from(action.option_strings)) if action.option_strings else None
        takes = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
        value = [draw(VALUES)] if takes or flag is None else []
        arguments += [f"{flag}={value[0]}"] if flag and flag.startswith("--") and value else [flag] * bool(flag) + value
    arguments += draw(st.lists(VALUES, max_size=2))
    return command, arguments, draw(st.binary(max_size=20))


def holds(command: str, arguments: list[str], typed: bytes, files: dict[str, bytes] | None = None) -> Outcome:
    """Calls the command in a new folder. -> what came of it, which is right in all that holds for every call."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        lay_out(folder)
        for file, data in (files or {}).items():
            (folder / file).write_bytes(data)
        before = contents(folder)
        with inside(folder):
            outcome = call(command, [*arguments, *(QUICK if command in COMMANDS else ())], typed)
        after = contents(folder)
    assert outcome.code in (0, 2, 3), outcome
    assert outcome.code != 2 or command == "chat" or (outcome.out == "" and len(outcome.err) >= 1), outcome
    changed = {file for file in before | after if before.get(file) != after.get(file)}
    asked = " ".join(arguments) + typed.decode("utf-8", "replace")
    assert all(file.split("/")[0] in asked for file in changed), changed
    assert not {"precious", "protected", "latin", "zero"} & changed, changed
    return outcome


FUZZ = int(os.environ.get("FUZZ", 0))  # examples of a kind, new ones each time; without it few, the same each time


def up_to(examples: int):
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    about = {"deadline": None, "suppress_health_check": checks, "database": None, "derandomize": not FUZZ}
    return settings(max_examples=FUZZ or examples, **about)


def flags_and_files(line):
    holds(*line)


def requests(lines, flags):
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    holds("batch", ["lines.jsonl", *flags], b"", {"lines.jsonl": data})


def messages(turns):
    data = json.dumps({"messages": turns}).encode()
    holds("batch", ["lines.jsonl"], b"", {"lines.jsonl": data})


def schemas(document):
    holds("generate", ["x", "--json-schema", "s.json"], b"", {"s.json": json.dumps(document).encode()})


def tools(document):
    holds("generate", ["x", "--tools", "t.json"], b"", {"t.json": json.dumps(document).encode()})


def typed(lines):
    holds("chat", [], "\n".join(lines).encode("utf-8", "surrogatepass"))


def damaged(data, place):
    """A few bytes of a file of answers, somewhere."""
    folder = {"out.jsonl": data[: place % (len(data) + 1)] + bytes([place % 256]) + data[place % (len(data) + 1) :]}
    holds("batch", ["good.jsonl", "--out", "out.jsonl"], b"", folder)


OBJECTS = {
    "flags": (flags_and_files, (command_lines(),)),
    "requests": (
        requests,
        (
            st.lists(st.dictionaries(st.sampled_from(REQUEST_WORDS), documents(REQUEST_WORDS), max_size=3), max_size=2),
            st.sampled_from([[], ["--thinking"], ["--system", "x"], ["--choices", "a,b"], ["--template", "{a:x|y}"]]),
        ),
    ),
    "messages": (
        messages,
        (st.lists(st.dictionaries(st.sampled_from(MESSAGE_WORDS), documents(MESSAGE_WORDS), max_size=4), max_size=3),),
    ),
    "schemas": (schemas, (documents(SCHEMA_WORDS),)),
    "tools": (tools, (documents(TOOL_WORDS),)),
    "typed": (
        typed,
        (
            st.lists(
                st.one_of(
                    st.tuples(
                        st.sampled_from(
                            ["/save", "/load", "/set", "/mode", "/steps", "/system", "/undo", "/retry", "/reset", '"""']
                        ),
                        VALUES,
                    ).map(" ".join),
                    st.just("Sort: Lima, Kyiv"),
                    st.text(max_size=6),
                ),
                max_size=4,
            ),
        ),
    ),
    "answers": (
        damaged,
        (st.binary(max_size=60) | st.just(b'{"request": 0, "seed": 0, "run": "'), st.integers(0, 10**6)),
    ),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("examples", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_whatever_is_given(kind, examples):
    check, strategies = OBJECTS[kind]
    up_to(examples)(given(*strategies)(check))()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_at_any_moment(tmp_path, number):
    """From when Python itself is up, to when it leaves."""
    lay_out(tmp_path)
    line = [sys.executable, "-m", "mlx_dgemma.batch", "good.jsonl", "--out", "out.jsonl"]
    for moment in range(9):
        process = subprocess.Popen(
            line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            process.wait(0.15 + moment * 0.22)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        err = process.communicate(timeout=30)[1].decode()
        if "Fatal Python error" in err:
            continue  # Python itself was not up yet
        assert process.returncode in (0, 128 + number, -number), err
        assert "mlx_dgemma/" not in err.replace(str(tmp_path), ""), err
        out = tmp_path / "out.jsonl"
        assert not out.exists() or [json.loads(answer)["request"] for answer in out.read_text().splitlines()] == [0]
        out.unlink(missing_ok=True)
