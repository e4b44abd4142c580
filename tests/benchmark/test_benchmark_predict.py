"""Predictions from published measurements: how near they come, and that they say what people see."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from mlx_dgemma.benchmark.__main__ import main
from mlx_dgemma.benchmark.devices import DEVICES, ROWS, alike, device, expected, left_out
from mlx_dgemma.benchmark.predict import cells, error

README = (Path(__file__).parents[2] / "mlx_dgemma" / "benchmark" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["step", "token"])
def test_each_published_row_is_predicted_from_the_others(kind):
    pairs = [pair for pair in left_out() if pair[0].kind == kind]
    assert len(pairs) >= 15 and statistics.median(error(*pair) for pair in pairs) <= 0.25
    far = [row for row, predicted in pairs if error(row, predicted) > math.log(2)]
    assert len(far) <= 1 and all(row.reason for row in far)
    assert all(error(row, predicted) > math.log(2) for row, predicted in pairs if row.reason)  # or none is needed


def test_a_row_has_no_part_in_its_own_prediction(monkeypatch):
    [before] = [predicted for row, predicted in left_out() if row.source == "llama.cpp #24423"]
    [row] = [row for row in ROWS if row.source == "llama.cpp #24423"]
    object.__setattr__(row, "step", 10 * row.step)
    try:
        [after] = [predicted for row, predicted in left_out() if row.source == "llama.cpp #24423"]
        others = [predicted for row, predicted in left_out() if row.source == "arXiv 2608.00146: 19.7 tokens a forward"]
    finally:
        object.__setattr__(row, "step", row.step / 10)
    assert before == after and not others


def test_the_readme_has_every_row():
    lines = {line.replace(" ", "") for line in README.splitlines()}
    for pair in left_out():
        assert f"|{'|'.join(cells(*pair))}|".replace(" ", "") in lines, cells(*pair)


def test_every_row_is_of_a_device_and_none_is_faster_than_its_ceiling():
    assert {row.device for row in ROWS} <= set(DEVICES)
    assert all(0.1 < row.floor / row.seconds < 1 for row in ROWS)


def predicted(capsys, *arguments) -> dict:
    assert main(["predict", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_two_ranks_send(capsys):
    """Sixty sums of a canvas's hidden states behind attention and experts, two of embeddings, all in bfloat16."""
    found = predicted(capsys, "--device", "m4-max")
    assert found["sent"] == 256 * (62 * 2816 * 2 + 40)
    seconds = {"10 GbE": 0.0715, "Thunderbolt 5": 0.00894, "NVLink": 0.000199}
    assert found["links"] == pytest.approx(seconds, rel=0.01)


def test_what_people_see_on_an_m4_max(capsys):
    """60 to 90 tokens a second left to right; mlx-vlm's step takes 331 ms by the count of its kernels."""
    found = predicted(capsys, "--device", "m4-max")
    slow, middle, fast = (found["reached"][name] for name in ("slowest", "middle", "fastest"))
    assert slow["autoregression"] < 60 < middle["autoregression"] < 90 < fast["autoregression"]
    assert fast["seconds"]["step"] < 0.331 < slow["seconds"]["step"]
    assert found["autoregression"] > 150  # at the ceiling
    assert found["advice"]["prose"] == "autoregression" and found["advice"]["JSON, short answers"] == "diffusion"


@pytest.mark.parametrize("name", ["m1", "m2-max", "m3-ultra", "m4-max", "m5-max", "rtx-4090", "h200", "dgx-spark"])
@pytest.mark.parametrize("precision", ["4bit", "8bit", "bf16"])
def test_what_is_reached_is_slower_than_the_ceiling(capsys, name, precision):
    found = predicted(capsys, "--device", name, "--precision", precision, "--context", "4096")
    ranges = [found["reached"][speed] for speed in ("fastest", "middle", "slowest")]
    for kind, floor in found["seconds"].items():
        assert floor <= ranges[0]["seconds"][kind] < ranges[1]["seconds"][kind] < ranges[2]["seconds"][kind]


def test_rows_that_speak_for_a_machine():
    near = alike("step", "M1-M4", "bf16", ROWS)
    assert {row.precision for row in near} == {"8bit", "bf16"} and {device(row.device).family for row in near} == {
        "M1-M4"
    }
    assert {row.precision for row in alike("step", "NVIDIA", "4bit", ROWS)} == {"4bit", "fp8"}  # one alone is too few


def test_few_rows_do_not_make_a_prediction_sure():
    [one] = [row for row in ROWS if row.source == "llama.cpp #24423"]
    fastest, middle, slowest = expected(one.floor, [one])
    assert (fastest, slowest) == pytest.approx((middle / 1.25, middle * 1.25)) and middle == pytest.approx(one.seconds)


@pytest.mark.slow
def test_the_published_rows_as_tables_picture_and_json(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert main(["predict", "--published", "--plot", str(tmp_path / "published.png")]) == 0
    out = capsys.readouterr().out
    assert out.count("median |log ratio|") == 2 and "llama.cpp" in out
    assert (tmp_path / "published.png").stat().st_size > 10_000
    assert len(predicted(capsys, "--published")) == len(ROWS)


def test_what_goes_into_a_small_mac(capsys):
    """By hand: 16.6 GB of 4-bit weights, a pass and a little text go into the 17.2 GB of a Mac with 24, no smaller."""
    found = {memory: predicted(capsys, "--memory", str(memory)) for memory in (16, 18, 24)}
    assert [table["4bit"]["tokens"] > 8192 for table in found.values()] == [False, False, True]
    assert found[24]["4bit"]["weights"] == pytest.approx(15.4e9, rel=0.01)
    assert found[24]["4bit"]["needed"] == pytest.approx(16.6e9, rel=0.01) and not found[24]["8bit"]["tokens"]
    assert [found[16][name]["tokens"] > 0 for name in ("3bit-uniform", "2bit")] == [False, True]
    assert found[18]["3bit-uniform"]["tokens"] > 8192
    assert main(["predict", "--memory", "18"]) == 0
    out = capsys.readouterr().out
    assert "12.9 GB" in out and "--q-bits 3 --quant-predicate uniform" in out
