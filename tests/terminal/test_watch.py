"""What stands on the screen once the canvas has been drawn and taken away."""

from __future__ import annotations

import io

import checkpoints
import numpy as np
import pytest
from ptys import lines_shown
from rich.console import Console
from rich.text import Text

from mlx_dgemma.terminal.live import Live
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


@pytest.mark.parametrize("columns", [10, 16, 29, 40, 80])
def test_a_terminal_that_was_made_narrower_or_wider(columns):
    """It wraps what was drawn, and all of that is taken away."""
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=24)
    with Live(Text("a" * 40 + "\n" + "b" * 30 + "\n" + "c" * 3), console=console, auto_refresh=False) as live:
        live.refresh()
        before = lines_shown(console.file.getvalue())
        assert before == ["a" * 40, "b" * 30, "c" * 3]
        wrapped = [line[i : i + columns] for line in before for i in range(0, len(line), columns)]
        console.file, console.width = io.StringIO(), columns
        live.update(Text("new"), refresh=True)
        assert lines_shown("above\n" + "\n".join(wrapped) + console.file.getvalue()) == ["above", "new"]
