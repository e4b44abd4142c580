"""A damaged or hostile checkpoint is a mistake: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import shutil
import time

import checkpoints
import pytest
from damages import DAMAGES
from terminals import caller

from mlx_dgemma.convert.__main__ import main as convert
from mlx_dgemma.generate.__main__ import main as generate

FEW = ["--prompt", "Sort: Lima, Kyiv", "--max-tokens", "4", "--max-denoising-steps", "1"]
# What the converter only copies, or does not read.
COPIED = ("tokenizer", "no tokenizer.json", "a template", "no template", "chat_template", "generation: ")


def one_line(result: tuple[int, str, str], where: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and len(err) < 700, err[-3000:]
    assert where in err


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.sample(60)
def test_a_damaged_checkpoint(tmp_path, capfd, what):
    folder = shutil.copytree(checkpoints.TINY, tmp_path / "model")
    DAMAGES[what](folder)
    before, started = sorted(tmp_path.rglob("*")), time.thread_time()
    one_line(caller(generate, capfd)("--model", str(folder), *FEW), "mlx_dgemma.generate: ")
    if not what.startswith(COPIED):
        argv = ["--hf-path", str(folder), "--mlx-path", str(tmp_path / "made")]
        one_line(caller(convert, capfd)(*argv), "mlx_dgemma.convert: ")
    assert sorted(tmp_path.rglob("*")) == before and time.thread_time() - started < 5


def test_there_are_enough():
    assert len(DAMAGES) >= 120


def test_the_folder_itself_is_none(tmp_path, capfd):
    folder = shutil.copytree(checkpoints.TINY, tmp_path / "model")
    assert caller(generate, capfd)("--model", str(folder), *FEW)[0] == 0
    assert caller(convert, capfd)("--hf-path", str(folder), "--mlx-path", str(tmp_path / "made"))[0] == 0
