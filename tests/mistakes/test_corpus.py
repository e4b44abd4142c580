"""Mistakes that were met, or that the fuzzer found: one line, exit code 2, nothing else said, no file touched."""

from __future__ import annotations

import json

import pytest
from cases import QUICK, call, contents, inside, lay_out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    lay_out(tmp_path)
    with inside(tmp_path):
        yield tmp_path


def is_mistake(folder, command: str, arguments: list[str], typed: bytes = b"") -> str:
    before = contents(folder)
    outcome = call(command, arguments, typed)
    assert (outcome.code, outcome.out, len(outcome.err)) == (2, "", 1), outcome
    [line] = outcome.err
    assert line.startswith((f"mlx_dgemma.{command}: ", f"python -m mlx_dgemma.{command}: ")) and len(line) < 1300
    assert contents(folder) == before
    return line


# An argument that names a file, where there is another one. `{}` is the file's name.
TAKE_A_FILE = {
    "requests": ("batch", ["{}"]),
    "schema": ("generate", ["x", "--json-schema", "{}"]),
    "schema of many": ("batch", ["good.jsonl", "--json-schema", "{}"]),
    "tools": ("generate", ["x", "--tools", "{}"]),
    "edit": ("edit", ["{}", "--lines", "1", "--prompt", "x"]),
    "fill": ("fill", ["{}"]),
    "prefix": ("fill", ["--prefix", "./{}"]),
    "saved chat": ("chat", ["--load", "{}"]),
    "model": ("generate", ["x", "--model", "./{}"]),
    "out": ("batch", ["good.jsonl", "--out", "{}"]),
}
TEXTS = ("null", "number", "half", "infinite", "deep")
BAD = {
    "gone": ("no file at all",),
    "folder": ("folder",),
    "loop": ("loop",),
    "no text": ("latin", "zero", "utf16"),
    "nothing": ("empty", "blank"),
    "other JSON": TEXTS,
    "no name": ("x" * 300, "a\0b", "\udcff"),
}
FITS = {("out", "gone"), ("out", "\udcff"), ("out", "empty"), ("prefix", "a\0b"), ("saved chat", "folder")}
FITS |= {(argument, name) for argument in ("edit", "prefix") for name in (*TEXTS, "blank")}  # they are texts, too
WRONG_FILES = [
    (argument, kind, name)
    for argument in TAKE_A_FILE
    for kind, names in BAD.items()
    for name in names
    if not {(argument, kind), (argument, name)} & FITS
]


@pytest.mark.parametrize(("argument", "kind", "name"), WRONG_FILES, ids=lambda value: ascii(value)[:24])
def test_a_file_of_the_wrong_kind(folder, argument, kind, name):
    command, arguments = TAKE_A_FILE[argument]
    line = is_mistake(folder, command, [part.replace("{}", name) for part in arguments])
    words = {"latin": "0xe9 at offset 3", "zero": "0x00 at offset 1", "utf16": "is UTF-16"}.get(name, "")
    assert argument in ("model", "saved chat", "out", "schema", "schema of many") or words in line


MESSAGES = [
    {"messages": ["hi"]},
    {"messages": [None]},
    {"messages": [[]]},
    {"messages": {}},
    {"messages": "hi"},
    {"messages": [{}]},
    {"messages": [{"type": []}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": {"a": 1}}]},
    {"messages": [{"role": "user", "content": [5]}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": 5, "content": "x"}]},
    {"messages": [{"role": ["user"], "content": "x"}]},
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"messages": [{"role": "assistant", "tool_calls": 5}]},
    {"messages": [{"role": "assistant", "tool_calls": [5]}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": {}, "content": "x"}]},
    {"messages": [], "prompt": None},
    {"prompt": None},
    {"prompt": ["x"]},
    {"prompt": {}},
    {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
    {"prompt": "x", "thinking": "no"},
    {"prompt": "x", "thinking": 1},
    {"prompt": "x", "thinking": None},
    {"prompt": "x", "system": 5},
    {"prompt": "x", "system": ["y"]},
    {"prompt": "x", "seed": 1.5},
    {"prompt": "x", "seed": "1"},
    {"prompt": "x", "seed": None},
    {"prompt": "x", "seed": -1},
    {"prompt": "x", "seed": True},
    {"prompt": "x", "max_tokens": 0},
    {"prompt": "x", "max_tokens": 1e3},
    {"prompt": "x", "max_tokens": []},
    {"prompt": "x", "tools": 5},
    {"prompt": "x", "tools": [5]},
    {"prompt": "x", "tools": "f"},
    {"prompt": "x", "temperature": 1},
    {"prompt": "x", "gap": 2},
    {"prompt": "\ud800"},
    {"fill": None},
    {"fill": "no mark"},
    {"fill": "<fill>"},
    {"fill": "a<fill><fill>"},
    {"fill": "a<fill>", "gap": "2"},
    {"fill": "a<fill>", "gap": 2.0},
    {"fill": "a<fill>", "gap": []},
    {"fill": "a<fill>", "gap": [None]},
    {"fill": "a<fill>", "gap": [1, 2]},
    {"fill": "a<fill>", "gap": True},
    {"fill": "a<fill>", "heal": "yes"},
    {"fill": "a<fill>", "thinking": True},
    {"fill": "\ud800<fill>"},
    {"prefix": 5},
    {"suffix": ["a"]},
    {"prefix": ""},
    {},
    [],
    5,
    None,
    "prompt",
]


@pytest.mark.parametrize("request_", MESSAGES, ids=lambda value: json.dumps(value)[:40])
def test_a_line_that_is_no_request(folder, request_):
    (folder / "lines.jsonl").write_text('{"prompt": "Sort: Lima, Kyiv"}\n' + json.dumps(request_) + "\n")
    if isinstance(request_, dict) and {"fill", "prefix", "suffix"} & set(request_):
        (folder / "lines.jsonl").write_text('{"fill": "a<fill>b", "gap": 2}\n' + json.dumps(request_) + "\n")
    assert "lines.jsonl, line 2" in is_mistake(folder, "batch", ["lines.jsonl", *QUICK])


FLAGS = [
    ("generate", ["x", "--tools=--"]),
    ("generate", ["-p--"]),
    ("generate", ["x", "--max-tokens", "0"]),
    ("generate", ["x", "--max-tokens", "1e3"]),
    ("generate", ["x", "--max-tokens", "²"]),
    ("generate", ["x", "--max-tokens", "9" * 5000]),
    ("generate", ["x", "--seed", "-1"]),
    ("generate", ["x", "--seed", "9" * 5000]),
    ("generate", ["x", "--deadline", "nan"]),
    ("generate", ["x", "--deadline", "soon"]),
    ("generate", ["x", "--deadline", "-1"]),
    ("generate", ["x", "--preset", ""]),
    ("generate", ["x", "--preset", ","]),
    ("generate", ["x", "--preset", "t_min=nan"]),
    ("generate", ["x", "--preset", "t_max=1e999"]),
    ("generate", ["x", "--preset", "entropy_bound=-1"]),
    ("generate", ["x", "--preset", "max_denoising_steps=0"]),
    ("generate", ["x", "--preset", "max_denoising_steps=2.5"]),
    ("generate", ["x", "--preset", "canvas_length=0"]),
    ("generate", ["x", "--preset", "canvas_length=100000"]),
    ("generate", ["x", "--preset", "canvas_length=wide"]),
    ("generate", ["x", "--preset", "temp=nan", "--mode", "ar"]),
    ("generate", ["x", "--preset", "temp=1,top_k=-1", "--mode", "ar"]),
    ("generate", ["x", "--temp", "hot"]),
    ("generate", ["x", "--mode", "AR"]),
    ("generate", ["x", "--backend", "jax"]),
    ("generate", ["x", "--dtype", "fp8", "--backend", "mlx"]),
    ("generate", ["x", "--dtype", "int4"]),
    ("generate", ["x", "--model", ""]),
    ("generate", ["x", "--model", "\0"]),
    ("generate", ["x", "--model", "no/such"]),
    ("generate", ["x", "--model", "~nobody_at_all/x"]),
    ("generate", ["x", "--model", "text"]),
    ("generate", ["x", "--model", "folder"]),
    ("generate", ["x", "--choices", "a,b\nc,d"]),
    ("generate", ["x", "--choices", ""]),
    ("generate", ["x", "--choices", "a,,b"]),
    ("generate", ["x", "--choices", "a,a"]),
    ("generate", ["x", "--choices", '"a,b']),
    ("generate", ["x", "--choices", "\ud800,b"]),
    ("generate", ["x", "--choices", "a,b", "--deadline", "-1"]),
    ("generate", ["x", "--template", ""]),
    ("generate", ["x", "--template", "{"]),
    ("generate", ["x", "--template", "{}"]),
    ("generate", ["x", "--template", "{a:b:c}{"]),
    ("generate", ["x", "--template", "\udcff{a}"]),
    ("generate", ["x", "--json-schema", "deep.jsonl", "--template", "{a}"]),
    ("generate", ["x", "--json-schema", "nested"]),
    ("generate", ["x", "--tools", "tools.json", "--raw"]),
    ("generate", ["\ud800"]),
    ("generate", ["x", "--system", "\ud800"]),
    ("generate", ["\t\n"]),
    ("generate", ["x", "--nonsense\x1b[2J\n"]),
    ("generate", ["x", "--stop"]),
    ("generate", ["x" * 100_000]),
    ("generate", ["x", "--json-schema", "/dev/zero"]),
    ("generate", ["x", "--tools", "/dev/zero"]),
    ("batch", ["/dev/zero"]),
    ("fill", ["--prefix", "/dev/zero"]),
    ("batch", ["surrogate"]),
    ("batch", ["good.jsonl", "--size", "0"]),
    ("batch", ["good.jsonl", "--out", "good.jsonl"]),
    ("batch", ["good.jsonl", "--out", "precious"]),
    ("batch", ["good.jsonl", "--out", "no/x.jsonl"]),
    ("batch", ["good.jsonl", "--out", ""]),
    ("batch", ["fill.jsonl", "--template", "{a}"]),
    ("batch", ["fill.jsonl", "--thinking"]),
    ("batch", ["good.jsonl", "good.jsonl"]),
    ("fill", []),
    ("fill", ["--prefix", "a", "--gap", "0"]),
    ("fill", ["--prefix", "a", "--gap", ","]),
    ("fill", ["--prefix", "a", "--gap", "1,,2"]),
    ("fill", ["--prefix", "a", "--gap", "99999999999999999999"]),
    ("fill", ["--prefix", "a", "--gap", "2", "--mode", "ar"]),
    ("fill", ["marked", "--gap", "2", "--raw"]),
    ("fill", ["<fill>"]),
    ("edit", ["text", "--lines", "1", "--prompt", "x", "--strength", "nan"]),
    ("edit", ["text", "--lines", "1", "--prompt", "x", "--strength", "1e9"]),
    ("edit", ["text", "--lines", "0:1", "--prompt", "x"]),
    ("edit", ["text", "--lines", "2:1", "--prompt", "x"]),
    ("edit", ["text", "--lines", ":", "--prompt", "x"]),
    ("edit", ["text", "--lines", "1:2:3", "--prompt", "x"]),
    ("edit", ["text", "--lines", "-1", "--prompt", "x"]),
    ("edit", ["text", "--lines", "9" * 5000, "--prompt", "x"]),
    ("edit", ["protected", "--lines", "1", "--prompt", "x", "--write"]),
    ("edit", ["/dev/null", "--lines", "1", "--prompt", "x"]),
    ("edit", ["gone link", "--lines", "1", "--prompt", "x"]),
    ("chat", ["--load", "", "--system", "x"]),
    ("chat", ["--load", "precious"]),
    ("chat", ["--continue"]),
    ("chat", ["--tools", "deep"]),
]


@pytest.mark.parametrize(("command", "arguments"), FLAGS, ids=lambda value: ascii(value)[:50])
def test_flags_that_cannot_be(folder, command, arguments):
    is_mistake(folder, command, [*arguments, *(QUICK[2:] if command != "chat" and "ar" not in arguments else [])])


TYPED = [
    b"/nonsense\n",
    b"/load\n",
    b"/load precious\n",
    b"/load folder\n",
    b"/save text\n",
    b"/save .\n",
    b"/save \0\n",
    b"/set max_tokens=0\n",
    b"/set canvas_length=x\n",
    b"/set =\n",
    b"/mode\xc2\xa0ar\n",
    b"\xff\n",
    b"/steps 99999999999999999999x\n",
]


@pytest.mark.parametrize("typed", TYPED, ids=ascii)
def test_lines_that_a_chat_cannot_take(folder, typed):
    is_mistake(folder, "chat", [], typed)


def test_they_are_many():
    assert len(WRONG_FILES) + len(MESSAGES) + len(FLAGS) + len(TYPED) >= 240
