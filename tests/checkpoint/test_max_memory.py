"""--max-memory: the context that goes into it, what is said where nothing does, and that it is kept to."""

from __future__ import annotations

import json
from dataclasses import replace

import mlx.core as mx
import pytest
from checkpoints import TINY

from mlx_dgemma import Ask, load
from mlx_dgemma.benchmark.subject import published
from mlx_dgemma.checkpoint.memory import limit_context, longest_text, metal_limit, working_memory
from mlx_dgemma.errors import Mistake
from mlx_dgemma.generate.__main__ import main
from mlx_dgemma.writing.diffuse import diffuse

CONFIG = published("26b-a4b")


@pytest.fixture
def limits():
    """Limits of MLX's allocator are the process's."""
    before = mx.get_memory_limit()
    yield
    mx.set_memory_limit(before)


def test_the_context_is_what_goes_into_the_rest():
    tokens = longest_text(CONFIG, 2e9)
    assert working_memory(CONFIG, tokens) <= 2e9 < working_memory(CONFIG, tokens + 1)
    assert longest_text(CONFIG, 2e9, 4) < tokens and longest_text(CONFIG, 1e12) == CONFIG.max_position_embeddings
    assert longest_text(CONFIG, 1e9) == -1
    assert limit_context(CONFIG, int(15.4e9), int(17.4e9), "it").max_position_embeddings == tokens


def test_what_does_not_fit_says_what_it_needs():
    with pytest.raises(Mistake, match=r"--max-memory 16 is too little .* needs 16\.6 GB \(15\.4 GB of weights"):
        limit_context(CONFIG, int(15.4e9), int(16e9), "a checkpoint")


def test_what_macs_were_seen_to_tell():
    """recommendedMaxWorkingSetSize in logs of llama.cpp: M1 with 16 GB, M2 with 24."""
    assert [metal_limit(size * 2**30) / 1e6 for size in (16, 24)] == pytest.approx([11453.25, 17179.87], abs=0.1)
    assert metal_limit(64 * 2**30) == 48 * 2**30


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_command_is_told_its_context_and_refuses_more(backend, capsys, limits):
    if backend == "torch":
        pytest.importorskip("torch")
    few = ["--backend", backend, "--max-memory", "0.0273"]
    assert main([*few, "--prompt", "Sort: Lima, Kyiv"]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "--max-memory" in line]
    room = int(line.split()[-2].replace(",", ""))
    assert 128 <= room < 2000
    assert main([*few, "--quiet", "--raw", "--prompt", "a " * room]) == 2
    err = capsys.readouterr().err
    assert f"do not fit in {room}; shorten it" in err


@pytest.mark.parametrize(("given", "said"), [("0.001", "it needs 25.6 MB"), ("x", "above 0"), ("inf", "above 0")])
def test_a_mistake_is_one_line(given, said, capsys):
    try:
        code = main(["--max-memory", given, "--prompt", "a"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_it_is_kept_to(limits):
    """The longest text that is let in, and an answer to it: what MLX's allocator holds at a time."""
    most = 27_300_000
    model, tokenizer, sampling = load(max_memory=most)
    room = model.facts.max_position_embeddings
    assert mx.get_memory_limit() == most and model.free_memory() < most
    mx.clear_cache()
    mx.reset_peak_memory()
    tokens = tokenizer.encode("Kyiv, " * room)[: room - model.facts.canvas_length]
    for _ in diffuse(model, tokens, Ask(sampling=replace(sampling, max_denoising_steps=2), max_tokens=8)):
        pass
    assert room < json.loads((TINY / "config.json").read_text())["text_config"]["max_position_embeddings"]
    assert mx.get_peak_memory() <= most
