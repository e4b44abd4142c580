"""The file that is edited: whole or as it was, with its names, links and permissions; protected ones are left alone."""

from __future__ import annotations

import os
import stat
import subprocess

import forked
import pytest
from kills import killed, seconds
from terminals import caller, mistake

from mlx_dgemma.edit import target
from mlx_dgemma.edit.__main__ import main
from mlx_dgemma.errors import Mistake
from mlx_dgemma.fill.edit import unified_diff

PUZZLE = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
RIGHT, WRONG = "4213\n3124\n1342\n2431", "4213\n3142\n1342\n2431"
EDIT = ["--lines", "2:2", "--prompt", PUZZLE, "--gap", "4", "--write"]


@pytest.fixture
def run(capfd):
    return caller(main, capfd)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "grid"
    path.write_text(WRONG)
    return path


def test_permissions_links_and_attributes_are_kept(path, tmp_path):
    link = tmp_path / "link"
    path.chmod(0o640)
    link.symlink_to(path)
    os.utime(path, (1, 1))
    target.write(link, WRONG, "new\r\n")
    assert path.read_bytes() == b"new\r\n" and link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_mtime > 1  # or make would not see that it has changed
    assert sorted(os.listdir(tmp_path)) == ["grid", "link"]


@pytest.mark.parametrize("new", ["new", "much longer than it was\n" * 9, ""])
def test_other_names_of_a_file_see_the_change(path, tmp_path, new):
    os.link(path, tmp_path / "other")
    target.write(path, WRONG, new)
    assert (tmp_path / "other").read_text() == path.read_text() == new
    assert path.stat().st_nlink == 2 and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("names", [1, 2])
def test_a_full_disk_leaves_it_as_it_was(path, tmp_path, monkeypatch, names):
    if names == 2:
        os.link(path, tmp_path / "other")
    written, fsync = [], os.fsync

    def full(descriptor):
        written.append(descriptor)
        if len(written) == names:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Mistake, match=r"grid cannot be changed, and is as it was: No space left"):
        target.write(path, WRONG, "newer")
    assert path.read_text() == WRONG and len(os.listdir(tmp_path)) == names


def test_a_file_of_another_owner_in_a_protected_folder(path, monkeypatch):
    """Root cannot be kept out, so access is played."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    inode = path.stat().st_ino
    target.write(path, WRONG, RIGHT)
    assert path.read_text() == RIGHT and path.stat().st_ino == inode and len(os.listdir(path.parent)) == 1


def test_write_protection_is_told_before_anything_is_loaded(run, path):
    path.chmod(0o444)
    code, out, err = run(str(path), *EDIT)
    assert "no --model given" not in err and path.read_text() == WRONG
    mistake((code, out, err), "grid is write-protected", "chmod u+w", "--write")
    assert run(str(path), *EDIT[:-1])[0] == 0  # a diff needs no permission


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "long", "gone"])
def test_what_is_no_file(run, tmp_path, kind):
    names = {"device": "/dev/full", "long": "x" * 300, "folder": str(tmp_path)}
    name = names.get(kind, str(tmp_path / "it"))
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "loop":
        os.symlink(name, name)
    words = {"pipe": "no regular file", "device": "no regular file", "folder": "directory"}
    words |= {"loop": "symbolic links", "long": "name too long", "gone": "no such file"}
    code, out, err = run(name, *EDIT)
    mistake((code, out, err.replace("File name", "file name")), words[kind])


def test_more_than_a_search_covers_needs_a_length(run, tmp_path):
    """19 KB once became four tokens without a word."""
    (tmp_path / "code").write_text("x = 1\n" * 40)
    arguments = [str(tmp_path / "code"), "--lines", "1:40", "--prompt", "x", "--max-denoising-steps", "2", "--write"]
    before = (tmp_path / "code").read_text()
    mistake(run(*arguments), "239 tokens long", "up to 63", "--gap")
    assert (tmp_path / "code").read_text() == before
    code, _, err = run(*arguments[:-1], "--gap", "200")
    assert code == 0 and "200 tokens" in err


@pytest.mark.parametrize("name", ["my file", 'a "b"', "tab\tand\nline", "é ü", "back\\slash", "end "])
def test_a_diff_of_any_name_applies(tmp_path, name):
    (tmp_path / name).write_text(WRONG)
    diff = unified_diff(WRONG, RIGHT, name)
    subprocess.run(["patch", "-s", "-p1"], input=diff.encode(), cwd=tmp_path, check=True)
    assert (tmp_path / name).read_text() == RIGHT and stat.S_ISREG((tmp_path / name).stat().st_mode)


@pytest.mark.slow
@pytest.mark.parametrize("names", [1, 2])
def test_kills_at_random_moments(path, tmp_path, names):
    """The file is as it was or as it is to be, whenever the process is killed."""
    if names == 2:
        os.link(path, tmp_path / "other")

    def start():
        arguments = ["-m", "mlx_dgemma.edit", str(path), *EDIT]
        return forked.start(*arguments, stdout=forked.DEVNULL, stderr=forked.PIPE)

    longest = seconds(start)
    assert path.read_text() == RIGHT
    path.write_text(WRONG)
    for code, _ in killed(start, 1.1 * longest):
        text = path.read_text()
        assert text == RIGHT or (code and text == WRONG)
        path.write_text(WRONG)
    target.write(path, WRONG, RIGHT)
    assert path.read_text() == RIGHT
