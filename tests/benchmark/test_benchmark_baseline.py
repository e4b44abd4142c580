"""The models to compare with: of the embedded model's weights, mlx-lm and transformers make what `autoregress` does."""

from __future__ import annotations

import json

import pytest
import twin

from mlx_dgemma.benchmark.__main__ import main
from mlx_dgemma.benchmark.runs import baseline_writer, from_tasks, written
from mlx_dgemma.load import baseline as load_baseline
from mlx_dgemma.load import load
from mlx_dgemma.writing.ask import Ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return twin.write(tmp_path_factory.mktemp("baseline") / "twin")


@pytest.fixture(scope="module")
def expected():
    """Prompts, the tokens that the embedded model writes left to right, and their text."""
    model, tokenizer, _ = load()
    prompts = [prompt for prompt in from_tasks(tokenizer, 64, 1) if prompt.name in ("sudoku 4x4", "sort")]
    ask = Ask(mode="ar", max_tokens=64)
    answers = [(prompt, written(model, tokenizer, prompt.tokens, ask)) for prompt in prompts]
    return [(prompt, answer.tokens, answer.text) for prompt, answer in answers]


@pytest.mark.parametrize(("backend", "library"), [("mlx", "mlx_lm"), ("torch", "transformers")])
@pytest.mark.slow
def test_the_same_tokens_as_ours(backend, library, folder, expected):
    for name in (library, "torch" if backend == "torch" else "mlx"):
        pytest.importorskip(name, reason=f"needs {name}")
    baseline = load_baseline(backend).Baseline(str(folder))
    assert set(baseline.bits.values()) == {32.0} and baseline.peak_memory() > 0
    for prompt, tokens, text in expected:
        given = prompt.tokens
        run = baseline_writer(baseline)(prompt, 0)
        assert (run["prompt_tokens"], run["tokens"], run["text"]) == (len(given), len(tokens), text)
        assert list(baseline.write(given, 64, seed=0)) == tokens
    assert len(list(baseline.write(given, 3, seed=0))) == 3
    some = baseline.write(given, 64, seed=0)
    assert next(some) == tokens[0]
    some.close()  # whoever has enough stops


@pytest.mark.slow
def test_our_recipe_builds_it(folder, tmp_path, capsys):
    pytest.importorskip("mlx_lm", reason="needs mlx-lm")
    assert main(["baseline", "--hf-path", str(folder), "--mlx-path", str(tmp_path / "twin-4bit")]) == 0
    bits = set(capsys.readouterr().out.strip().split(": ")[-1].split(", "))
    assert {"attention 9", "embedding 9", "experts 5"} <= bits  # half a bit of which are scales in float32


@pytest.mark.slow
def test_it_is_measured_beside_ours(folder, capsys, monkeypatch):
    rates = {"copy_bytes_per_second": 1e10, "product_flops_per_second": 1e11}
    monkeypatch.setattr("mlx_dgemma.mlx_backend.measure.ceilings", lambda dtype: rates)
    pytest.importorskip("mlx_lm", reason="needs mlx-lm")
    quick = ["--context", "16", "--repeat", "2", "--seeds", "1", "--each", "1", "--max-denoising-steps", "2"]
    quick += ["--max-tokens", "8"]
    assert main([*quick, "--ar-model", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ours, other = report["modes"]["autoregression"], report["modes"]["baseline"]
    assert other["library"].startswith("mlx-lm") and other["bits"]["experts"] == 32
    assert [run["text"] for run in other["runs"]] == [run["text"] for run in ours["runs"]]
    assert other["summary"]["solved"] == ours["summary"]["solved"]
    assert other["summary"]["tokens_per_second"]["median"] > 0


@pytest.mark.slow
def test_a_baseline_that_cannot_be_made_is_one_line(folder, tmp_path, capsys):
    pytest.importorskip("mlx_lm", reason="needs mlx-lm")
    assert main(["baseline", "--hf-path", str(folder), "--mlx-path", str(folder)]) == 2
    assert main(["baseline", "--hf-path", str(tmp_path), "--mlx-path", str(tmp_path / "x")]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("mlx_dgemma.benchmark baseline: mlx-lm cannot convert")
