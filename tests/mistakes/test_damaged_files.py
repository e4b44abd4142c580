"""What a command reads and is damaged, in thirty ways each: an answer where that does no harm, or one line."""

from __future__ import annotations

import json
import os
import shutil
import threading

import checkpoints
import pytest
from cases import QUICK, call, inside
from damage import NAMES, damage

TINY = str(checkpoints.TINY)
TRAIN = {"data": "data", "adapter_path": "adapter", "iters": 1, "batch_size": 1, "eval_prompts": 0, "backend": "mlx"}
GENERATE = ("generate", ["x", "--adapter-path", "adapter", *QUICK])
FUSE = ("fuse", ["--adapter-path", "adapter", "--save-path", "fused"])
RESUME = ("train", ["--resume", "--config", "c.json"])
REPORT = ["--dummy", "tiny", "--precision", "float32", "--context", "8", "--repeat", "2", "--out", "report.json"]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "string", "maxLength": 3}}}
CASES = {  # what is damaged -> who reads it
    "adapter/adapter_config.json": [GENERATE, FUSE, RESUME],
    "adapter/adapters.safetensors": [GENERATE, FUSE],
    "adapter/log.jsonl": [RESUME],
    "adapter/state.safetensors": [RESUME],
    "report.json": [("benchmark", ["compare", "report.json"]), ("benchmark", ["predict", "--report", "report.json"])],
    "chat/conversation.json": [("chat", ["--load", "chat"])],
    "chat/cache-*": [("chat", ["--load", "chat"])],
    "answers.jsonl": [("batch", ["good.jsonl", "--out", "answers.jsonl", *QUICK])],
    "c.json": [("train", ["--config", "c.json"])],  # YAML, too
    "recipe.json": [("convert", ["--hf-path", TINY, "--dry-run", "-q", "--quant-predicate", "recipe.json"])],
    "schema.json": [("generate", ["x", "--json-schema", "schema.json", *QUICK])],
    "tools.json": [("generate", ["x", "--tools", "tools.json", *QUICK])],
}
NOTES = ("train of", "without --replay")  # before the folder is looked at
TEXTS = ("report.json", "c.json", "recipe.json", "schema.json", "tools.json")  # which may come out of a pipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "good.jsonl").write_text('{"prompt": "Sort: b, a"}\n{"prompt": "Reverse: b, a"}\n')
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text('{"prompt": "say", "completion": "a"}\n' * 4)
    files = {"c.json": TRAIN, "schema.json": SCHEMA, "recipe.json": {"*.experts.*": 4, "*.mlp.*": {"bits": 8}}}
    files["tools.json"] = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2))
    rates = {"copy_bytes_per_second": 1e10, "product_flops_per_second": 1e11}
    with inside(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_dgemma.mlx_backend.measure.ceilings", lambda dtype: rates)  # they take seconds
        assert call("train", ["--config", "c.json"]).code == 0
        assert call("chat", QUICK, b"Sort: b, a\n/save chat\n").code == 0
        assert call("batch", ["good.jsonl", "--out", "answers.jsonl", *QUICK]).code == 0
        assert call("benchmark", REPORT).code == 0
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", CASES)
@pytest.mark.sample(24)
def test_a_damaged_file(whole, tmp_path, file, name):
    if name == "pipe" and file in TEXTS:
        pytest.skip("is read: see below")
    for command, arguments in CASES[file]:
        folder = shutil.copytree(whole, tmp_path / f"{command} {arguments[0].strip('-')}")
        [path] = folder.glob(file)
        damage(path, name)
        with inside(folder):
            outcome = call(command, arguments)
        lines = [line for line in outcome.err if not any(note in line for note in NOTES)]
        assert outcome.code == 0 or (outcome.code, len(lines)) == (2, 1), outcome
        assert outcome.code == 0 or lines[0].startswith((f"mlx_dgemma.{command}", f"python -m mlx_dgemma.{command}"))


@pytest.mark.parametrize("file", TEXTS)
def test_a_text_out_of_a_pipe(whole, tmp_path, file):
    """As bash's <(…) gives it."""
    folder = shutil.copytree(whole, tmp_path / "folder")
    text = (folder / file).read_bytes()
    (folder / file).unlink()
    os.mkfifo(folder / file)
    writer = threading.Thread(target=(folder / file).write_bytes, args=(text,), daemon=True)
    writer.start()
    command, arguments = CASES[file][0]
    with inside(folder):
        outcome = call(command, arguments)
    writer.join(10)
    assert not writer.is_alive() and file not in " ".join(outcome.err), outcome
