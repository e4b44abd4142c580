"""The benchmark from end to end on the CPU: its report, its tables and its pictures; and what it says of bad input."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from mlx_dgemma.benchmark import measure
from mlx_dgemma.benchmark.__main__ import main
from mlx_dgemma.benchmark.report import KEY, VERSION, show
from mlx_dgemma.benchmark.runs import spread, summary
from mlx_dgemma.errors import Mistake
from mlx_dgemma.terminal import machine
from mlx_dgemma.tiny.tasks import TASKS

QUICK = ["--context", "64", "--repeat", "3", "--seeds", "2", "--each", "1", "--max-denoising-steps", "2"]
QUICK += ["--max-tokens", "5"]
CEILINGS = "mlx_dgemma.mlx_backend.measure.ceilings"  # which take seconds; one slow test measures them
RATES = {"copy_bytes_per_second": 1e10, "product_flops_per_second": 1e11}
pytest.importorskip("matplotlib", reason="plots need matplotlib")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of a whole run, and its report."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CEILINGS, lambda dtype: RATES)
        assert main([*QUICK, "--out", str(folder / "report.json"), "--plot", str(folder / "report.png")]) == 0
    return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(CEILINGS, lambda dtype: RATES)


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.mark.slow
def test_every_figure_is_there(made):
    folder, report = made
    [point] = report["passes"]
    copy, product = (report["ceilings"][rate] for rate in ("copy_bytes_per_second", "product_flops_per_second"))
    for name, times in (("step", 3), ("commit", 3), ("token", 6)):
        one, median = point[name], point[name]["seconds"]["median"]
        assert one["seconds"]["n"] == times  # the first is kept apart
        assert one["share_of_copy"] == pytest.approx(sum(one["bytes"].values()) / median / copy)
        assert one["share_of_product"] == pytest.approx(sum(one["flops"].values()) / median / product)
        assert one["floor_seconds"] == pytest.approx(median * max(one["share_of_copy"], one["share_of_product"]))
    assert point["prefill_tokens_per_second"] > 0
    assert point["peak_memory"] > sum(report["weight_bytes"].values())
    assert set(point["parts"]["floor_seconds"]) == set(point["parts"]["seconds"]) - {"rest"}
    diffusion, other = (report["modes"][mode]["summary"] for mode in ("diffusion", "autoregression"))
    for one in (diffusion, other):
        assert one["tokens_per_second"]["n"] == 2 and one["runs"] == 2 * len(TASKS)
        assert 0 <= one["solved"]["median"] <= 1 and one["seconds_to_first"]["median"] > 0
    assert set(diffusion["steps_per_block"]) == {"mean", "p50", "p90", "at_cap"}
    assert diffusion["tokens_per_forward"]["median"] > 1
    assert is_picture(folder / "report.png")


@pytest.mark.slow
def test_enough_to_repeat_it(made):
    _, report = made
    assert report[KEY] == VERSION and report["command"][1:3] == QUICK[:2]
    assert report["settings"]["seeds"] == 2 and report["settings"]["sampling"]["max_denoising_steps"] == 2
    assert {"mlx_dgemma", "python", "mlx"} <= set(report["versions"])
    assert report["config"]["model_type"] == "diffusion_gemma" and report["bits"]["experts"] == 32
    cold = report["modes"]["diffusion"]["cold"]
    [same] = [
        run for run in report["modes"]["diffusion"]["runs"] if (run["prompt"], run["seed"]) == (cold["prompt"], 0)
    ]
    assert (cold["text"], cold["steps_per_block"]) == (same["text"], same["steps_per_block"])


@pytest.mark.slow
def test_what_is_unknown_says_why(made):
    _, report = made
    state = report["state"]["before"]
    assert {name for name, value in state.items() if value is None} <= set(report["missing"])
    assert "AR model" in report["missing"] and "baseline" not in report["modes"]


@pytest.mark.parametrize("failing", [64, 32])
@pytest.mark.slow
def test_passes_that_find_too_little_memory(monkeypatch, tmp_path, quick_ceilings, failing):
    """Those before them are written already, and the others go on."""
    out, usual = tmp_path / "report.json", measure.measure_passes

    def measured(passes, *rest):
        if passes.context != failing:
            return usual(passes, *rest)
        assert not out.exists() or [point["context"] for point in json.loads(out.read_text())["passes"]] == [32]
        raise Mistake("out of device memory for 32 caches")

    monkeypatch.setattr(measure, "measure_passes", measured)
    shape = ["--dummy", "tiny", "--precision", "float32", "--context", "32,64,48", "--repeat", "2", "--out", str(out)]
    assert main(shape) == (2 if failing == 32 else 0)  # the first says that nothing fits
    if failing == 64:
        report = json.loads(out.read_text())
        assert [point["context"] for point in report["passes"]] == [32, 48]
        assert "32 caches" in report["missing"]["passes of 1 x 64 tokens"]


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_end(made, monkeypatch, tmp_path, capsys, quick_ceilings):
    """What was measured is shown, and the file that was there is whole."""
    out = tmp_path / "report.json"
    out.write_text(json.dumps(made[1]))
    before = out.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert (
        main(["--dummy", "tiny", "--precision", "float32", "--context", "32", "--repeat", "2", "--out", str(out)]) == 2
    )
    said = capsys.readouterr()
    assert "denoise step" in said.out and "No space left on device" in said.err.splitlines()[-1]
    assert out.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.slow
def test_one_line_a_figure(made, capsys):
    show(made[1])
    out = capsys.readouterr().out
    for figure in ("machine", "ceilings", "denoise step", "break-even", "tokens/s of kept text", "solved", "linears"):
        assert figure in out


@pytest.mark.slow
def test_random_weights_assume_their_steps(capsys, tmp_path):
    plot = tmp_path / "dummy.png"
    given = ["--dummy", "tiny", "--precision", "float32", "--steps-per-block", "7", "--batch", "1,2", "--json"]
    assert main([*QUICK, *given, "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)  # nothing else is there
    assert "ceilings of the device …" in err
    assert [(one["context"], one["rows"]) for one in report["passes"]] == [(64, 1), (64, 2)]
    assert all(one["assumed"]["steps"] == 7 for one in report["passes"])
    rates = [value for name, value in report["ceilings"].items() if name.endswith("_per_second")]
    assert len(rates) == 2 and min(rates) > 1e6
    assert report["modes"] == {} and "assumed, not measured" in report["missing"]["answers"]
    assert is_picture(plot)


@pytest.mark.slow
def test_prompts_of_a_file(made, tmp_path, capsys, quick_ceilings):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Sort: Lima, Kyiv"}\n\n{"prompt": "Reverse: Pia", "max_tokens": 5}\n')
    assert main([*QUICK, "--prompts", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["modes"]["diffusion"]
    assert [run["prompt"] for run in found["runs"]] == ["prompt 1", "prompt 2"] * 2
    assert found["runs"][1]["tokens"] <= 5 and found["summary"]["solved"] is None


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_measured(monkeypatch, tmp_path, capsys, quick_ceilings):
    asked = []

    def interrupted(prompt, seed):
        asked.append(prompt)
        if len(asked) > 8:
            raise KeyboardInterrupt
        return {
            "prompt": prompt.name,
            "seed": seed,
            "tokens": 3,
            "seconds": 1.0,
            "seconds_to_first": 1.0,
            "solved": True,
        }

    writer = measure.writer
    monkeypatch.setattr(measure, "writer", lambda *a: interrupted if a[-1].mode == "ar" else writer(*a))
    out = tmp_path / "report.json"
    assert main([*QUICK, "--out", str(out)]) == 130
    report = json.loads(out.read_text())
    assert report["interrupted"] and report["passes"]
    assert report["modes"]["diffusion"]["summary"]["runs"] == 2 * len(TASKS)
    assert report["modes"]["autoregression"]["summary"]["runs"] == 7  # the eighth and the cold one: none of these
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.slow
def test_reports_side_by_side(made, tmp_path, capsys):
    folder, report = made
    other = tmp_path / "other.json"
    device = {**report["machine"]["device"], "name": "Another GPU", "shared_memory": False}
    other.write_text(json.dumps({**report, "machine": {**report["machine"], "device": device}}))
    plot = tmp_path / "both.png"
    paths = [str(folder / "report.json"), str(other)]
    assert main(["compare", *paths, *paths, "--plot", str(plot)]) == 0  # as many as there are
    out = capsys.readouterr().out
    assert "Another GPU" in out and "shared with the CPU" in out and "the GPU's own" in out
    assert is_picture(plot)
    assert main(["compare", *paths, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (
        first["diffusion"]
        == second["diffusion"]
        == report["modes"]["diffusion"]["summary"]["tokens_per_second"]["median"]
    )


def test_reports_of_machines(capsys):
    """All that lie in the repository are read, and tell no path of a machine."""
    paths = sorted((Path(__file__).parents[2] / "examples" / "benchmarks" / "reports").glob("*.json"))
    assert main(["compare", *map(str, paths), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(paths) > 0
    for path in paths:
        report = json.loads(path.read_text())
        assert report["passes"] and not [word for word in report["command"] if word.startswith("/")], path.name


@pytest.mark.slow
def test_a_prediction_beside_the_report(made, capsys):
    folder, report = made
    assert main(["predict", "--report", str(folder / "report.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"][0]["step"] == report["passes"][0]["step"]["seconds"]["median"]
    assert found["seconds"]["step"] == pytest.approx(report["passes"][0]["step"]["floor_seconds"])
    assert found["break_even"]["steps"] != found["measured"][0]["steps"]
    reached = found["reached"]["middle"]
    assert reached["break_even"]["steps"] == found["measured"][0]["steps"]
    assert reached["autoregression"] == pytest.approx(report["passes"][0]["assumed"]["autoregression"])


def test_a_prediction_from_data_alone(capsys):
    assert main(["predict", "--device", "h100", "--precision", "fp8"]) == 0
    out = capsys.readouterr().out
    assert "H100" in out and "break-even" in out and "vLLM" in out and "prose" in out and "by slow builds" in out
    assert main(["predict", "--device", "m1", "--precision", "bf16"]) == 0
    assert "does not fit" in capsys.readouterr().out


MISTAKES = {
    "unknown device": (["predict", "--device", "m9"], "m1, m1-pro"),
    "device and report": (["predict"], "--device NAME or --report"),
    "memory and device": (["predict", "--device", "m1", "--memory", "16"], "--memory GB"),
    "device and published": (["predict", "--device", "m1", "--published"], "--device NAME or --report"),
    "a plot of what is not published": (["predict", "--device", "m1", "--plot", "x.png"], "--published"),
    "unknown shape": (["--dummy", "30b"], "need one of 26b-a4b, tiny"),
    "unknown precision": (["--dummy", "tiny", "--precision", "int3"], "'int3'"),
    "fp8 on MLX": (["--dummy", "tiny", "--precision", "fp8", "--backend", "mlx"], "float32, bf16, 4bit"),
    "precision of a checkpoint": (["--precision", "4bit"], "--dummy"),
    "a dummy has no tokenizer": (["--dummy", "tiny", "--prompts", "x.jsonl"], "leave out --prompts"),
    "too long a context": (["--context", "5000"], "room for 3968"),
    "no such folder": (["--out", "/no/such/report.json"], "--out /no/such/report.json cannot be written: No such file"),
    "a folder": (["--out", "/tmp"], "--out /tmp is no regular file"),
    "a device": (["--out", "/dev/null"], "--out /dev/null is no regular file"),
    "no name": (["--out", ""], "--out . is no regular file"),
    "another file": (["--out", __file__], "is not JSON"),
    "a picture in no folder": (["--plot", "/no/such/x.png"], "--plot /no/such/x.png cannot be written"),
    "a wrong AR model": (["--ar-model", str(Path(__file__).parent), *QUICK], "cannot load it"),
    "no picture": (["--plot", "report.doc"], "ends in one of"),
    "no such report": (["compare", "none.json"], "no such file"),
    "no such AR model": (["--ar-model", "/no/such", *QUICK, "--seeds", "1"], "/no/such"),
}


IMPORTS_MLX_LM = "a wrong AR model"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == IMPORTS_MLX_LM)) for name in MISTAKES]
)
def test_a_mistake_is_one_line(name, capsys):
    given, said = MISTAKES[name]
    assert main(given) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mlx_dgemma.benchmark") and said in last


def test_a_report_of_another_version_or_none(tmp_path, capsys):
    for content, said in (
        ('{"mlx_dgemma_benchmark": 0}', f"version 0, this program reads version {VERSION}"),
        ("[]", "no report of this benchmark"),
        ("{", "not JSON"),
    ):
        file = tmp_path / "old.json"
        file.write_text(content)
        for command in (["compare", str(file)], ["predict", "--report", str(file)]):
            assert main(command) == 2
            err = capsys.readouterr().err
            assert said in err and len(err.strip().splitlines()) == 1


def test_a_bad_line_of_prompts_is_named(tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Sort: Lima, Kyiv"}\n{"prompt": 3}\n')
    assert main([*QUICK, "--prompts", str(file)]) == 2
    assert f"{file}, line 2" in capsys.readouterr().err


def test_spread_and_summary():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3} and spread([]) is None
    runs = [
        {"seed": seed, "tokens": 10, "seconds": seconds, "seconds_to_first": 1.0, "solved": solved,
         "steps_per_block": blocks, "tokens_per_forward": 2.0}
        for seed, seconds, solved, blocks in ((0, 1.0, True, [2, 8]), (0, 3.0, False, [4]), (1, 2.0, None, [2]))
    ]  # fmt: skip
    found = summary(runs, cap=8)
    assert found["tokens_per_second"] == {"median": 5.0, "min": 5.0, "max": 5.0, "n": 2}
    assert found["solved"] == {"median": 0.5, "min": 0.5, "max": 0.5, "n": 1}
    assert found["steps_per_block"]["mean"] == 4 and found["steps_per_block"]["at_cap"] == 0.25


def test_what_the_system_tells_is_read(monkeypatch):
    line = "NVIDIA H200, 570.1, 84.2, 700.00, 31, 1980, 3201, 0x0000000000000001"
    monkeypatch.setattr(machine, "_output", lambda *command: line if command[0] == "nvidia-smi" else None)
    told = machine.state()
    assert told["nvidia"] == [dict(zip(machine.QUERY, line.split(", "), strict=True))]
    assert "nvidia" not in machine.missing(told) and "thermal" in machine.missing(told)
    assert machine.revision() is None


@pytest.mark.slow
def test_peak_memory_and_settings_do_not_name_the_machine(made):
    _, report = made
    assert all(mode["peak_memory"] > 0 for mode in report["modes"].values())
    assert isinstance(Namespace(**report["settings"]).context, list)
