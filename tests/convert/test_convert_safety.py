"""A conversion that is broken off is gone on with; nothing that is wrong is written; what is written is read again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import conversions
import numpy as np
import pytest
from conversions import EXPERTS, SCALE, VISION, contents, converted, fails, run, source
from kills import killed, seconds

from mlx_dgemma.checkpoint import memory
from mlx_dgemma.convert import __main__ as command
from mlx_dgemma.convert import journal, stream

NAN = np.full((8, 64, 64), 1, np.float32)
NAN[5, 3, 2] = np.nan
MISTAKES = {  # what the source has instead of what it should, the flags, and what the line must name
    "nan": ({"tensors": {EXPERTS: NAN}}, ["-q"], [EXPERTS, "model.safetensors", "NaN"]),
    "inf": ({"tensors": {SCALE: np.full(64, np.inf, np.float32)}}, [], [SCALE, "Inf"]),
    "nan in vision": ({"tensors": {VISION + "std_bias": np.full(3, np.nan, np.float16)}}, [], ["std_bias", "NaN"]),
    "too large": ({"tensors": {SCALE: np.full(64, 1e6, np.float32)}}, ["--dtype", "float16"], [SCALE, "float16"]),
    "missing": ({"without": [EXPERTS]}, ["-q"], [EXPERTS + " is missing"]),
    "left over": ({"tensors": {"model.extra": np.zeros(3)}}, [], ["model.extra", "model.safetensors", "not part"]),
    "twice": ({"tensors": {EXPERTS + ".weight": NAN}}, [], [EXPERTS, "same parameter"]),
    "shape": ({"tensors": {SCALE: np.zeros(63, np.float32)}}, [], [SCALE, "model.safetensors", "[63]", "[64]"]),
    "dtype": ({"tensors": {SCALE: np.zeros(64, np.int32)}}, [], [SCALE, "model.safetensors", "I32"]),
    "bits": ({}, ["-q", "--q-bits", "7"], ["--q-bits", "7", "2, 3, 4, 5, 6, 8"]),
    "zero bits": ({}, ["-q", "--q-bits", "0"], ["--q-bits", "0"]),
    "group": ({}, ["-q", "--q-group-size", "16"], ["--q-group-size", "16", "32, 64"]),
    "group of 128": ({}, ["-q", "--q-group-size", "128"], ["--q-group-size 128", "704", "2112", "multiples", "64"]),
    "group of a mode": ({}, ["-q", "--q-mode", "mxfp4", "--q-group-size", "64"], ["64", "mxfp4", "32"]),
    "bits of a mode": ({}, ["-q", "--q-mode", "nvfp4", "--q-bits", "8"], ["--q-bits 8", "nvfp4", "4"]),
    "mode": ({}, ["-q", "--q-mode", "fp4"], ["--q-mode", "fp4", "mxfp4"]),
    "bits without -q": ({}, ["--q-bits", "4"], ["--q-bits", "-q"]),
    "recipe without -q": ({}, ["--quant-predicate", "uniform"], ["--quant-predicate", "-q"]),
    "both": ({}, ["-q", "-d"], ["-q", "-d"]),
    "no such recipe": ({}, ["-q", "--quant-predicate", "mixed_2_6"], ["mixed_2_6", "mlx-community", "precise"]),
    "no such dtype": ({}, ["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(tmp_path, capsys, case):
    changes, flags, named = MISTAKES[case]
    original = source(tmp_path / "source", **changes)
    fails(capsys, tmp_path, ["--hf-path", original, "--mlx-path", tmp_path / "made", *flags], *named)


RECIPES = {
    "nothing": ({"*.experts.*": 4, "*.expert.*": 8}, ["'*.expert.*'", "matches no layer", "model.decoder"]),
    "group": ({"*": {"group_size": 128}}, ["'*'", "128", "704"]),
    "bits": ({"*": 7}, ["'*'", "7", "2, 3, 4, 5, 6, 8"]),
    "word": ({"*": "four"}, ["'*'", "'four'"]),
    "key": ({"*": {"bit": 4}}, ["'*'", "bit"]),
    "list": ([4], ["object", "list"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_are_wrong(tmp_path, capsys, case):
    table, named = RECIPES[case]
    original, file = source(tmp_path / "source"), tmp_path / "own.json"
    file.write_text(json.dumps(table))
    argv = ["--hf-path", original, "--mlx-path", tmp_path / "made", "-q", "--quant-predicate", file]
    fails(capsys, tmp_path, argv, "own.json", *named)
    file.write_text("{")
    fails(capsys, tmp_path, argv, "own.json", "not JSON")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | changes.pop("text_config", {})
    (folder / "config.json").write_text(json.dumps(config | {"text_config": text} | changes))


def resize(folder, by):
    with (folder / "model.safetensors").open("rb+") as file:
        file.truncate(file.seek(0, 2) + by)


def missing_shard(folder):
    weight_map = dict.fromkeys(conversions.arrays(folder), "model-00001-of-00002.safetensors")
    weight_map["model.decoder.norm.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_broken_sources(tmp_path, capsys):
    def wrong(name, breaking, *named):
        folder = source(tmp_path / name, layout="transformers")
        breaking(folder)
        fails(capsys, tmp_path, ["--hf-path", folder, "--mlx-path", tmp_path / "made"], *named)

    wrong("cut", lambda f: resize(f, -100), "model.safetensors", "truncated")
    wrong("longer", lambda f: resize(f, 100), "model.safetensors", "header tells of")
    wrong("gptq", lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}), "gptq")
    wrong("fp8", lambda f: edit_config(f, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"}), "FP8")
    wrong("other", lambda f: edit_config(f, model_type="gemma4"), "gemma4", "diffusion_gemma")
    wrong("other sizes", lambda f: edit_config(f, text_config={"num_experts": 16}), "shape", "need [16, ")
    wrong("shard", lambda f: missing_shard(f), "model-00002-of-00002.safetensors", "fetch")
    wrong("empty", lambda f: (f / "model.safetensors").unlink(), "no weights")
    missing = tmp_path / "nowhere" / "at" / "all"
    fails(capsys, tmp_path, ["--hf-path", missing, "--mlx-path", tmp_path / "made"], str(missing), "no such folder")


def test_heads_that_the_hub_layout_cannot_express(tmp_path, capsys):
    original = source(tmp_path / "source", layout="transformers", tensors={})
    config = json.loads((original / "config.json").read_text())
    config["text_config"]["per_layer_config"]["3"] = {"head_dim": 16, "num_key_value_heads": 4}
    (original / "config.json").write_text(json.dumps(config))
    argv = ["--hf-path", original, "--mlx-path", tmp_path / "made"]
    fails(capsys, tmp_path, argv, "layers.3")


def test_destinations(tmp_path, capsys, monkeypatch):
    original, made = source(tmp_path / "source"), tmp_path / "made"

    def refused(destination, *named):
        fails(capsys, tmp_path, ["--hf-path", original, "--mlx-path", destination], *named)

    refused(original, f"{original} exists", "--mlx-path")
    refused(tmp_path / "no" / "made", "no folder", str(tmp_path / "no"))
    (tmp_path / "made.part").mkdir()
    (tmp_path / "made.part" / "mine").write_text("")
    refused(made, "made.part exists", "remove it")
    shutil.rmtree(tmp_path / "made.part")
    made.symlink_to(tmp_path / "nowhere")
    refused(made, f"{made} exists")
    made.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        refused(made, "no permission", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_500_000))
        refused(made, "too little disk", "needs 4.4 MB", "1.5 MB are free", f"{made}:")
    monkeypatch.setattr(memory, "available", lambda: 1000)
    refused(made, "too little memory", "0.0 MB are free")


def no_permission(*args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied", "some/file")


def test_a_source_that_may_not_be_read(tmp_path, capsys, monkeypatch):
    original = source(tmp_path / "source")
    monkeypatch.setattr(np, "fromfile", no_permission)
    argv = ["--hf-path", original, "--mlx-path", tmp_path / "made"]
    code, _, lines = run(capsys, *argv)
    assert code == 2 and len(lines) == 1 and "no permission for some/file" in lines[0]


def broken_off(monkeypatch, error, after):
    """The disk, or the user, stops the run at its `after`th write."""
    real, count = os.pwrite, iter(range(10**6))

    def pwrite(*args):
        if next(count) == after:
            raise error
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 10_000)
    monkeypatch.setattr(stream, "COMMIT", 50_000)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ["interrupted", "goes on"]),
        (OSError(errno.ENOSPC, "No space left on device"), 2, ["No space left", "make room", "goes on"]),
    ],
    ids=["Ctrl-C", "disk full"],
)
@pytest.mark.slow
def test_broken_off_and_gone_on_with(tmp_path, capsys, monkeypatch, small_steps, error, code, words):
    original, made, whole = source(tmp_path / "source"), tmp_path / "made", tmp_path / "whole"
    argv = ["--hf-path", original, "-q"]
    assert run(capsys, *argv, "--mlx-path", whole)[0] == 0
    with monkeypatch.context() as patch:
        broken_off(patch, error, 200)
        exit_code, out, lines = run(capsys, *argv, "--mlx-path", made)
        assert (exit_code, out, len(lines)) == (code, "", 1)
        for word in ("made.part", *words):
            assert word in lines[0]
    assert not made.exists()
    part = contents(tmp_path / "made.part")
    assert "config.json" not in part and set(part) == {"journal.jsonl", "model.safetensors"}
    other = [*argv, "--q-bits", "8", "--mlx-path", made]
    fails(capsys, tmp_path, other, "made.part", "another conversion", "--hf-path source -q")
    read = []
    real = stream.Reader.bytes
    monkeypatch.setattr(stream.Reader, "bytes", lambda *a: read.append(a[3] - a[2]) or real(*a))
    assert run(capsys, *argv, "--mlx-path", made)[0] == 0
    made_now, expected = contents(made), contents(whole)
    assert made_now.pop("README.md").replace(b"# made", b"# whole") == expected.pop("README.md")
    assert made_now == expected and not (tmp_path / "made.part").exists()
    assert sum(read) < 0.9 * (original / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """Each run goes on where the last one was killed."""
    original = source(tmp_path / "source", moe_intermediate_size=128, num_experts=32, vocab_size=4096)
    made, whole = tmp_path / "a" / "made", tmp_path / "b" / "made"
    made.parent.mkdir(), whole.parent.mkdir()
    code = (
        "import sys; from mlx_dgemma.convert import stream, __main__ as c; stream.PIECE, stream.COMMIT = 20000, 60000"
    )
    code += "; sys.exit(c.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--hf-path", str(original), "-q", "--mlx-path"]

    def start(made=made):
        return subprocess.Popen([*command, str(made)], stderr=subprocess.PIPE, text=True)

    longest = seconds(lambda: start(whole))
    for _ in killed(start, longest, least=0.3):
        if made.exists() and not (made / journal.NAME).exists():
            assert contents(made) == contents(whole)
            shutil.rmtree(made)
    if not made.exists() or (made / journal.NAME).exists():
        seconds(start)
    assert contents(made) == contents(whole)
    assert [p.name for p in made.parent.iterdir()] == ["made"]


def test_a_file_that_was_taken_away(tmp_path, capsys, monkeypatch, small_steps):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    with monkeypatch.context() as patch:
        patch.setattr(stream, "verify", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(capsys, "--hf-path", original, "--mlx-path", made)[0] == 130
    (tmp_path / "made.part" / "model.safetensors").unlink()
    code, _, lines = run(capsys, "--hf-path", original, "--mlx-path", made)
    assert code == 2 and len(lines) == 1 and "model.safetensors was taken away" in lines[0]
    converted(capsys, original, made)


def test_two_at_once(tmp_path, capsys, monkeypatch):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    (tmp_path / "made.part").mkdir()
    with journal.Journal(tmp_path / "made.part", "", "", []):
        fails(capsys, tmp_path, ["--hf-path", original, "--mlx-path", made], "made.part", "another conversion")


def test_killed_between_the_name_and_the_journal(tmp_path, capsys, monkeypatch):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    monkeypatch.setattr(os, "unlink", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, "--hf-path", original, "--mlx-path", made)[0] == 130
    monkeypatch.undo()
    assert run(capsys, "--hf-path", original, "--mlx-path", made)[0] == 0
    assert journal.NAME not in contents(made)


def test_a_journal_that_was_torn(tmp_path, capsys, monkeypatch, small_steps):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    with monkeypatch.context() as patch:
        broken_off(patch, KeyboardInterrupt(), 200)
        run(capsys, "--hf-path", original, "--mlx-path", made)
    path = tmp_path / "made.part" / journal.NAME
    path.write_bytes(path.read_bytes()[:-7])
    converted(capsys, original, made)
    conversions.check(made, original, conversions.mx.float32, quantized=False)


def test_what_the_disk_does_not_hold(tmp_path, capsys, monkeypatch):
    """A flipped bit in what was written is noticed, named, and made again."""
    original, made = source(tmp_path / "source"), tmp_path / "made"
    real = stream.verify

    def flipped(plan, folder, journal):
        with (folder / "model.safetensors").open("rb+") as file:
            file.seek(-1000, 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        return real(plan, folder, journal)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "verify", flipped)
        code, _, lines = run(capsys, "--hf-path", original, "--mlx-path", made)
    assert code == 2 and "model.safetensors does not hold" in lines[0] and not made.exists()
    converted(capsys, original, made)
    conversions.check(made, original, conversions.mx.float32, quantized=False)


def cached(folder, original):
    """As the hub's cache has it: a snapshot of links to blobs that bear their SHA-256."""
    repository = folder / "models--someone--model"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for file in original.iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_hashes_of_the_hub(tmp_path, capsys, small_steps, monkeypatch):
    original = cached(tmp_path, source(tmp_path / "source"))
    converted(capsys, original, tmp_path / "made", "-q")
    assert f"someone/model](https://huggingface.co/someone/model) at revision `{'0' * 40}" in (
        tmp_path / "made" / "README.md"
    ).read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        broken_off(patch, KeyboardInterrupt(), 200)
        assert run(capsys, "--hf-path", original, "--mlx-path", tmp_path / "again")[0] == 130
    converted(capsys, original, tmp_path / "again")
    with (original / "model.safetensors").open("rb+") as file:
        file.seek(-5000, 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    argv = ["--hf-path", original, "--mlx-path", tmp_path / "flipped"]
    fails(capsys, tmp_path, argv, "model.safetensors", "SHA-256", "fetch again")


def test_an_unforeseen_error_is_not_dressed(tmp_path, monkeypatch):
    original = source(tmp_path / "source")

    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfile", broken)
    with pytest.raises(OSError, match="Input/output"):
        command.main(["--hf-path", str(original), "--mlx-path", str(tmp_path / "made")])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name", ["LICENSE", "tokenizer.json", "config.json", "model.safetensors", "generation_config.json"]
)
def test_no_link_leads_out_of_the_source(tmp_path, capsys, name):
    original = source(tmp_path / "source")
    (tmp_path / "key").write_text("a private key")
    if (original / name).exists():
        shutil.move(original / name, tmp_path / "key")
    (original / name).symlink_to(tmp_path / "key")
    fails(capsys, tmp_path, ["--hf-path", original, "--mlx-path", tmp_path / "made"], name, "link", "out of the folder")


def test_links_within_the_source_and_to_it(tmp_path, capsys):
    original = source(tmp_path / "source")
    (original / "notice").write_text("mine")
    (original / "NOTICE").symlink_to("notice")
    (original / "mine").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(original)
    converted(capsys, tmp_path / "link", tmp_path / "made")
    assert (tmp_path / "made" / "NOTICE").read_text() == "mine" and not (tmp_path / "made" / "mine").exists()


def shifted(original, place):
    """Change one byte of a tensor, and keep the file's size and times."""
    path = original / "model.safetensors"
    stat = path.stat()
    with path.open("rb+") as file:
        file.seek(place, 0 if place > 0 else 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def stopped(tmp_path, capsys, monkeypatch):
    """(source, destination, arguments) of a conversion that was broken off."""
    original, made = source(tmp_path / "source"), tmp_path / "made"
    argv = ["--hf-path", original, "-q", "--mlx-path", made]
    with monkeypatch.context() as patch:
        broken_off(patch, KeyboardInterrupt(), 200)
        assert run(capsys, *argv)[0] == 130
    return original, made, argv


def test_a_source_that_changes_while_a_conversion_waits(tmp_path, capsys, monkeypatch, small_steps):
    """Its size and time are kept: what was read before the run was stopped is compared."""
    original, made, argv = stopped(tmp_path, capsys, monkeypatch)
    start = 8 + int.from_bytes((original / "model.safetensors").read_bytes()[:8], "little")
    shifted(original, start + 5)  # of the first tensor that was converted
    code, out, lines = run(capsys, *argv)
    assert (code, out, len(lines)) == (2, "", 1) and "model.safetensors has changed since" in lines[0]
    assert not (tmp_path / "made.part").exists()
    assert run(capsys, *argv)[0] == 0
    conversions.check(made, original, conversions.mx.float32, quantized=True)


def test_a_source_that_only_looks_changed(tmp_path, capsys, monkeypatch, small_steps):
    original, made, argv = stopped(tmp_path, capsys, monkeypatch)
    os.chmod(original / "model.safetensors", 0o600)
    assert run(capsys, *argv)[0] == 0
    conversions.check(made, original, conversions.mx.float32, quantized=True)


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[]", b"5", b'{"job": 0}', b'{"job": [], "rows": 1, "sums": [], "source": [], "error": []}']
)
def test_a_journal_that_is_damaged(tmp_path, capsys, monkeypatch, small_steps, line):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    argv = ["--hf-path", original, "--mlx-path", made]
    with monkeypatch.context() as patch:
        broken_off(patch, KeyboardInterrupt(), 200)
        assert run(capsys, *argv)[0] == 130
    path = tmp_path / "made.part" / journal.NAME
    path.write_bytes(path.read_bytes() + line + b"\n")
    fails(capsys, tmp_path, argv, "journal.jsonl is damaged", "remove")


def test_a_recipe_of_fractions(tmp_path, capsys):
    original = source(tmp_path / "source")
    for entry in (4.0, {"bits": 4.0}, {"bits": True}, {"bits": 4, "group_size": "64"}):
        (tmp_path / "own.json").write_text(json.dumps({"*": entry}))
        argv = [
            "--hf-path",
            original,
            "--mlx-path",
            tmp_path / "made",
            "-q",
            "--quant-predicate",
            tmp_path / "own.json",
        ]
        fails(capsys, tmp_path, argv, "own.json", "*")
