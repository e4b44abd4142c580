"""What stands on the screen once the canvas has been drawn and taken away."""

from __future__ import annotations

import io

import checkpoints
import numpy as np
import pytest
from ptys import lines_shown
from rich.console import Console

from mlx_dgemma.terminal.watch import Watch
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.writing.writing import Step

LENGTH = 64


@pytest.fixture
def tokenizer():
    return Tokenizer(checkpoints.TINY)


def step(tokenizer: Tokenizer, text: str, final: bool) -> Step:
    draft = np.array((tokenizer.encode(text) + [1] * LENGTH)[:LENGTH])
    settled = np.ones(LENGTH, bool)
    options = {"canvas": draft, "draft": draft, "accepted": settled, "entropy": np.zeros(LENGTH), "final": final}
    return Step(request=0, block=0, step=0, **options)


@pytest.mark.parametrize(
    "blocks",
    [
        ["one\n", "two\n"],
        ["a line that goes on ", "and on ", "in the next blocks"],
        ["one\ntwo", " goes on\nthree\nfour", "", "\nfive"],
        ["", "", ""],
    ],
)
def test_text_of_many_blocks_is_all_there(tokenizer, blocks):
    terminal = io.StringIO()
    terminal.write("> a question\n")
    watch = Watch(tokenizer, 48, Console(file=terminal, force_terminal=True, width=80, legacy_windows=False))
    with watch:
        for text in blocks:
            for final in (False, False, True):
                if final:
                    watch.write(text, terminal.write)
                watch.show(step(tokenizer, text, final))
    assert lines_shown(terminal.getvalue()) == ["> a question", *filter(None, "".join(blocks).split("\n"))]


def test_the_last_line_is_shown_while_it_goes_on(tokenizer):
    watch = Watch(tokenizer, 48, Console(file=io.StringIO(), width=40))
    watch.write("done\nnot yet ", lambda text: None)
    canvas, _ = watch.picture(step(tokenizer, "over", False)).renderables
    assert canvas.plain.startswith("not yet over·")
    watch.write("x" * 1000, watch.print)
    canvas, _ = watch.picture(step(tokenizer, "over", False)).renderables
    assert len(canvas.plain) == 3 * 40 + LENGTH  # the canvas stays on the screen


def test_noise_does_not_steer_the_terminal(tokenizer):
    canvas, _ = Watch(tokenizer, 48).picture(step(tokenizer, "a\x1b[2Jb\x07\x7f\tc\nd", False)).renderables
    assert canvas.plain.rstrip("·") == "a·[2Jb··\tc\nd"
