"""Lines of a file, changed in place: nothing else is, whatever its newlines are."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace

import infill_rates
import numpy as np
import pytest

from mlx_dgemma.errors import Mistake
from mlx_dgemma.fill.edit import Edit, change, cut, unified_diff
from mlx_dgemma.fill.infill import infill
from mlx_dgemma.load import load
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.sampling import Sampling

PUZZLE = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
RIGHT, WRONG = "4213\n3124\n1342\n2431", "4213\n3142\n1342\n2431"
FEW = Ask(sampling=Sampling(max_denoising_steps=2))


def random_file(draw: random.Random) -> str:
    lines = ["".join(draw.choices("ab é\u2028\x0b\x0c\r", k=draw.randrange(6))) for _ in range(draw.randint(1, 8))]
    text = "".join(line + draw.choice(["\n", "\r\n"]) for line in lines)
    return text if draw.random() < 0.5 else text + "last"


def test_lines_are_cut_and_put_back_to_the_byte():
    draw = random.Random(0)
    for _ in range(300):
        text = random_file(draw)
        count = text.count("\n") + (not text.endswith("\n"))
        first = draw.randint(1, count)
        last = draw.randint(first, count)
        lines = cut(text, first, last)
        assert lines.before + lines.old + lines.behind == text
        assert lines.before.count("\n") == first - 1 and lines.old.count("\n") == last - first
        assert lines.behind.startswith(("\n", "\r\n")) or not lines.behind
    assert cut("a\r\nb\r\nc", 2, 3).with_new("x\ny\r\nz") == "a\r\nx\r\ny\r\nz"
    assert cut("a\nb\r\nc\n", 2, 2).with_new("x\ny") == "a\nx\ny\r\nc\n"


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (3, 4), (4, 4)])
def test_lines_outside_the_file(first, last):
    with pytest.raises(Mistake, match=f"lines {first}:{last} are not in it.txt, which has 3 lines"):
        cut("a\nb\nc", first, last, "it.txt")


def test_what_an_edit_starts_from():
    rng = np.random.default_rng(0)

    def start(length: int, strength: float) -> list[int]:
        tokens, hint = Edit(prompt=[2], texts=["", ""], old=[5, 6, 7, 8, 9], strength=strength).initial(length, rng)
        assert np.array_equal(tokens, hint)
        return tokens.tolist()

    assert start(5, 0.0) == [5, 6, 7, 8, 9] and start(5, 1.0) == [-1] * 5
    assert start(3, 0.0) == [5, 6, 9] and start(7, 0.0) == [5, 6, 7, -1, -1, 8, 9]
    assert 400 < sum(start(5, 0.5).count(-1) for _ in range(200)) < 600
    schedule = Edit(prompt=[2], texts=["", ""], old=[5], strength=0.25).schedule()
    assert (schedule.max_denoising_steps, schedule.t_max) == (12, pytest.approx(0.5))


@pytest.mark.slow
def test_a_wrong_line_is_put_right_and_nothing_else_is_touched():
    model, tokenizer, sampling = load()
    lines = cut(WRONG, 2, 2)
    asks = [Ask(sampling=sampling, seed=seed) for seed in range(3)]
    requests = [change(tokenizer, lines, prompt=prompt_tokens(tokenizer, PUZZLE), ask=ask) for ask in asks]
    results = infill(model, tokenizer, requests)
    assert [lines.with_new(filled.gaps[0]) for filled in results] == [RIGHT] * 3
    assert results[1].gaps == infill(model, tokenizer, requests[1:2])[0].gaps
    assert all(4 in filled.tried[0] for filled in results)


@pytest.mark.slow
def test_files_of_every_kind_keep_what_is_around():
    model, tokenizer, _ = load()
    draw = random.Random(1)
    files = [random_file(draw) for _ in range(8)]
    cuts = [cut(text, 1 + i % (text.count("\n") or 1), text.count("\n") or 1) for i, text in enumerate(files)]
    requests = [
        change(tokenizer, lines, prompt=[2, 40], length=3, ask=replace(FEW, seed=i)) for i, lines in enumerate(cuts)
    ]
    for lines, filled in zip(cuts, infill(model, tokenizer, requests), strict=True):
        new = lines.with_new(filled.gaps[0]).encode()
        assert new.startswith(lines.before.encode()) and new.endswith(lines.behind.encode())


@pytest.mark.skipif(shutil.which("patch") is None, reason="no patch program to apply the diff with")
def test_the_diff_is_one_that_patch_applies(tmp_path):
    draw, path = random.Random(2), tmp_path / "file"
    for _ in range(20):
        old, new = random_file(draw), random_file(draw)
        path.write_bytes(old.encode())
        diff = unified_diff(old, new, "file")
        subprocess.run(["patch", "--binary", "-s", "-p1"], input=diff.encode(), cwd=tmp_path, check=True)
        assert path.read_bytes() == new.encode() if diff else old == new


@pytest.mark.slow
def test_rates():
    """`infill_rates.py --edit` measures all of it."""
    rates = infill_rates.edit_rates(load(), "code", 1, seed=0)
    assert all(rates[str(strength)] >= 0.8 for strength in infill_rates.STRENGTHS), rates
