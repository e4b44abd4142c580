"""What a conversion tells, the card that it leaves, and the hub at both of its ends, played by a fake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import huggingface_hub
import pytest
from conversions import check, converted, fails, mx, run, source
from huggingface_hub.errors import LocalTokenNotFoundError, NotASafetensorsRepoError

from mlx_dgemma.checkpoint.folder import read_header, read_tensors
from mlx_dgemma.convert import report


def test_dry_run(tmp_path, capsys):
    """The table goes to stdout; no weight is read, for there is none."""
    code, out, lines = run(capsys, "--hf-path", checkpoints.published(tmp_path), "-q", "--dry-run", "--text-only")
    assert (code, lines) == (0, []) and sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    table = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert table["experts"][-6:] == ["4-bit,", "groups", "of", "64", "4.50", "12.85"] or "12.85 GB" in out
    for words in ("22.84 B", "8-bit, groups of 64", "15.40 GB", "a Mac with 24 GB or more", "self-conditioning"):
        assert words in out
    assert "relative error" not in out


def test_the_table_and_the_card(tmp_path, capsys):
    original, made = source(tmp_path / "source"), tmp_path / "made"
    lines = converted(capsys, original, made, "-q", "--q-mode", "mxfp4", "--dtype", "bfloat16")
    card = (made / "README.md").read_text(encoding="utf-8")
    for text in ("\n".join(lines), card):
        for words in ("mxfp4, groups of 32", "8-bit, groups of 64", "norms and scalars", "relative error", "Mac"):
            assert words in text
    for words in (
        "library_name: mlx", "base_model: google/", "local folder `source`", "license: apache-2.0",
        "--hf-path source -q --q-mode mxfp4 --dtype bfloat16",
    ):  # fmt: skip
        assert words in card
    assert str(tmp_path) not in card
    assert huggingface_hub.ModelCard.load(made / "README.md").data.library_name == "mlx"


def test_relative_errors_are_those_of_the_weights(tmp_path, capsys):
    _, out, _ = run(capsys, "--hf-path", checkpoints.TINY, "--mlx-path", tmp_path / "made", "-q", "--json")
    errors = {line["name"]: line["relative_error"] for line in json.loads(out)["classes"]}
    whole = mx.load(str(checkpoints.TINY / "model.safetensors"))["model.decoder.embed_tokens.weight"]
    again = mx.dequantize(*mx.quantize(whole, group_size=64, bits=8), group_size=64, bits=8)
    exact = (mx.square(whole - again).sum() / mx.square(whole).sum()).sqrt().item()
    assert abs(errors["embedding"] / exact - 1) < 0.1 and errors["vision"] == 0


def test_macs():
    assert report.macs(int(16.9e9))[0] == 24 and report.macs(int(29e9))[0] == 48
    assert report.macs(int(53e9))[0] == 96 and report.macs(10**13) == []


class Hub:
    """`HfApi` and `snapshot_download`, on a folder."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache, self.sent, self.fetched, self.revisions = folder, cache, [], [], []
        self.login: Exception | None = None

    def snapshot_download(self, repo_id, *, revision, allow_patterns, ignore_patterns=(), local_files_only=False):
        self.revisions.append(revision)
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing there")
        self.cache.mkdir(exist_ok=True)
        names = [file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file()]
        filtered = huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=list(ignore_patterns)
        )
        for name in filtered:
            self.fetched.append(name)
            (self.cache / name).parent.mkdir(exist_ok=True)
            shutil.copy(self.folder / name, self.cache / name)
        return str(self.cache)

    def api(self):
        return self

    def model_info(self, repo_id, revision, files_metadata):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors", size=1000)])

    def get_safetensors_metadata(self, repo_id, revision):
        files = {}
        for path in self.folder.glob("*.safetensors"):
            start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            tensors = {
                name: SimpleNamespace(
                    dtype=t.dtype, shape=list(t.shape), data_offsets=(t.start - start, t.start - start + t.nbytes)
                )
                for name, t in read_header(path).items()
            }
            files[path.name] = SimpleNamespace(tensors=tensors)
        if not files:
            raise NotASafetensorsRepoError("no such file")
        return SimpleNamespace(files_metadata=files)

    def whoami(self):
        if self.login:
            raise self.login

    def create_repo(self, name, *, repo_type, exist_ok):
        self.sent.append(name)

    def upload_folder(self, *, repo_id, folder_path, repo_type):
        if repo_id.endswith("broken"):
            raise OSError("the line is dead\nand more")
        self.sent.append(sorted(file.name for file in Path(folder_path).iterdir()))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = source(tmp_path / "hub")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "run.py").write_text("raise SystemExit")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.safetensors").write_text("")
    fake = Hub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_only_what_is_needed_is_fetched(tmp_path, capsys, hub):
    converted(capsys, "someone/model", tmp_path / "made", "-q")
    assert set(hub.fetched) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    check(tmp_path / "made", hub.folder, mx.float32, quantized=True)


def test_a_revision_is_fetched(tmp_path, capsys, hub):
    converted(capsys, "someone/model", tmp_path / "made", "--revision", "v2")
    converted(capsys, "someone/model@v2", tmp_path / "again")
    assert set(hub.revisions) == {"v2"}
    assert "--hf-path someone/model@v2" in (tmp_path / "made" / "README.md").read_text(encoding="utf-8")


def test_a_dry_run_of_a_hub_id_fetches_headers(tmp_path, capsys, hub):
    code, out, _ = run(capsys, "--hf-path", "someone/model", "-q", "--dry-run", "--json")
    assert code == 0 and set(hub.fetched) == {"config.json", "generation_config.json"}
    _, local, _ = run(capsys, "--hf-path", hub.folder, "-q", "--dry-run", "--json")
    assert json.loads(out)["bytes"] == json.loads(local)["bytes"]


def test_what_is_wrong_is_known_before_it_is_fetched(tmp_path, capsys, hub, monkeypatch):
    argv = ["--hf-path", "someone/model", "--mlx-path", tmp_path / "made"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 4_000_000))
    code, _, lines = run(capsys, *argv)
    assert code == 2 and "needs" in lines[0] and "fetch" in lines[0] and "4.0 MB are free" in lines[0]
    (hub.folder / "model.safetensors").unlink()
    code, _, lines = run(capsys, *argv)
    assert code == 2 and len(lines) == 1 and "someone/model has no weights" in lines[0]
    assert "model.safetensors" not in hub.fetched


def test_upload(tmp_path, capsys, hub):
    lines = converted(capsys, hub.folder, tmp_path / "made", "-q", "--upload-repo", "me/mine")
    assert lines[-1].endswith("sent to https://huggingface.co/me/mine")
    files = [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
        "tokenizer.json",
    ]  # fmt: skip
    assert hub.sent == ["me/mine", files]


def test_uploads_that_fail(tmp_path, capsys, hub):
    argv = ["--hf-path", hub.folder, "--mlx-path", tmp_path / "made", "--upload-repo"]
    fails(capsys, tmp_path, [*argv, "no/such/name"], "no/such/name", "name")
    hub.login = LocalTokenNotFoundError("no token")
    fails(capsys, tmp_path, [*argv, "me/mine"], "me/mine", "login", "HF_TOKEN")
    hub.login = None
    code, _, lines = run(capsys, *argv, "me/broken")
    assert code == 2 and f"{tmp_path / 'made'} is whole" in lines[-1] and "the line is dead" in lines[-1]
    assert read_tensors(tmp_path / "made")
