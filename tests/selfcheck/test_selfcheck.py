"""The self-check holds here, and does not hold when a part of the arithmetic is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.load import load
from mlx_dgemma.mlx_backend import layers, sweep
from mlx_dgemma.selfcheck import __main__ as command
from mlx_dgemma.selfcheck import parts as selfcheck
from mlx_dgemma.selfcheck.parts import Sizes

SMALL = Sizes(queries=8, past=23, heads=16, experts=3, rows=16, positions=16, vocabulary=512, width=64, text=4096)
PARTS = {
    "attention": partial(selfcheck.attention, dim=256, dtype="float32"),
    "text": partial(selfcheck.attention, dim=512, causal=True, dtype="float32"),
    "window": partial(selfcheck.attention, dim=256, causal=True, dtype="float32"),
    "fused": partial(selfcheck.attention, dim=512, fused=True, dtype="bfloat16"),
    "quantized experts": partial(selfcheck.experts, shape=(64, 704), bits=4, dtype="float32"),
    "half experts": partial(selfcheck.experts, shape=(64, 704), bits=4, dtype="float16"),
    "experts": partial(selfcheck.experts, shape=(64, 704), bits=None, dtype="float32"),
    "flat": partial(selfcheck.vocabulary, spread=1.0),
    "peaked": partial(selfcheck.vocabulary, spread=12.0),
    "flat half": partial(selfcheck.vocabulary, spread=1.0, dtype="bfloat16"),
    "peaked half": partial(selfcheck.vocabulary, spread=12.0, dtype="bfloat16"),
    "in place": partial(selfcheck.in_place, ahead=False),
    "in place ahead": partial(selfcheck.in_place, ahead=True),
}


@pytest.fixture(scope="module")
def loaded():
    return load(dtype="float32")


@pytest.fixture
def run(monkeypatch, capfd):
    """The command with these parts and small sizes -> exit code, standard output, standard error."""
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")  # which the command leaves behind

    def call(*arguments: str, parts=PARTS) -> tuple[int, str, str]:
        monkeypatch.setattr(selfcheck, "checks", lambda loaded: iter(parts.items()))
        code = command.main(list(arguments), SMALL)
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A second stream on the CPU, so that there are two sides to compare."""
    monkeypatch.setattr(mx, "gpu", mx.new_stream(mx.cpu))
    monkeypatch.setattr(selfcheck, "device", lambda: "gpu")


def broken(function, wrong):
    return lambda *arguments, **options: wrong(function(*arguments, **options))


@pytest.mark.slow
def test_the_command():
    code = "import sys; from mlx_dgemma.selfcheck import __main__ as command\n"
    code += f"from mlx_dgemma.selfcheck.parts import Sizes; sys.exit(command.main(sys.argv[1:], {SMALL}))"
    for arguments in ([], ["--json"]):
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        *table, line = found.stdout.splitlines()
        report = json.loads(line)
        names = [part["name"] for part in report["parts"]]
        assert names == [name for name, _ in selfcheck.checks(())] and len(set(names)) == len(names)
        assert [sum(line.startswith(f"{name} ") for line in table) for name in names] == [not arguments] * len(names)
        assert bool(table) is not bool(arguments)
    assert all(name in found.stderr for name in names)
    assert {"python", "mlx", "mlx_dgemma", "system", "device_info", "memory", "peak_memory"} <= set(report)
    assert (report["verdict"], report["tf32"]) == ("ok", "0")
    for part in report["parts"]:
        assert part["verdict"] in ("ok", "not available"), part
        if part["verdict"] == "ok":
            assert part["seconds"] > 0 and part["peak_memory"] > 0
            assert part["name"].endswith("left to right") or part["exact_error"] <= part["bound"]
    milliseconds, step = report["step"]["milliseconds"], report["step"]
    assert {"linears", "experts", "attention", "head and draw", "self-conditioning", "rest"} == set(milliseconds)
    assert 0 < step["kernels"] < sum(step["primitives"].values()) and step["primitives"]["GatherMM"] == 12
    if report["device"] == "cpu":
        assert "there is no GPU" in found.stderr
        lacking = [part for part in report["parts"] if "fused" in part["name"] or part["name"].startswith("kernel ")]
        assert len(lacking) > 20 and {part["verdict"] for part in lacking} == {"not available"}


def test_help_imports_no_framework():
    code = "import sys\nfrom mlx_dgemma.selfcheck.__main__ import main\ntry:\n    main(['--help'])\nfinally:\n"
    code += "    assert not {'mlx', 'mlx.core', 'torch'} & set(sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0 and "--json" in found.stdout, found.stderr


@pytest.mark.parametrize(
    ("part", "where", "name", "wrong"),
    [
        ("attention", selfcheck, "attend", lambda y: y * 1.001),
        ("window", selfcheck, "attend", lambda y: mx.roll(y, 1, axis=1)),
        ("quantized experts", layers.ExpertLinear, "_gathered", lambda y: mx.roll(y, 1, axis=0)),
        ("experts", layers.ExpertLinear, "_gathered", lambda y: y * 1.001),
        ("flat", layers.Linear, "product", lambda y: y.astype(mx.bfloat16).astype(mx.float32)),
        ("peaked", layers.Linear, "product", lambda y: y * 1.001),
    ],
)
@pytest.mark.sample(1)
def test_a_wrong_part_differs(monkeypatch, run, part, where, name, wrong):
    monkeypatch.setattr(where, name, broken(getattr(where, name), wrong))
    code, out, _ = run("--json", parts={part: PARTS[part], "fused": PARTS["fused"]})
    report = json.loads(out)
    verdicts = {found["name"]: found["verdict"] for found in report["parts"]}
    assert (code, report["verdict"], verdicts[part]) == (1, "differs", "differs")


@pytest.mark.parametrize("name", ["argmax", "sample", "entropy", "confidence", "top", "soft"])
@pytest.mark.parametrize("part", ["flat", "peaked"])
def test_a_wrong_sweep_differs(monkeypatch, part, name):
    def run(self):
        result = right(self)
        array = np.array(getattr(result, name))
        array[5] = (array[5] + 7) % 512 if array.dtype == np.int32 else array[5] * 1.01
        return replace(result, **{name: mx.array(array)})

    right = sweep.Sweep.run
    assert PARTS[part](part, SMALL).verdict == "ok"
    monkeypatch.setattr(sweep.Sweep, "run", run)
    assert PARTS[part](part, SMALL).verdict == "differs"


def test_a_rounding_of_the_uniform_is_no_difference(monkeypatch):
    """A draw right beside the boundary may fall to either side of it."""

    def run(self):
        self.inputs.uniforms = mx.clip(self.inputs.uniforms + 3e-7, 0, 1 - 2**-24)
        return right(self)

    right = sweep.Sweep.run
    monkeypatch.setattr(sweep.Sweep, "run", run)
    assert PARTS["flat"]("flat", SMALL).verdict == "ok"


@pytest.mark.slow
def test_a_wrong_generation_says_where(monkeypatch, loaded):
    part = partial(selfcheck.generation, "generation", SMALL, loaded=loaded)
    assert part().verdict == "ok"
    few = (*loaded[:2], replace(loaded[2], max_denoising_steps=2))  # nonsense would take them all
    monkeypatch.setattr(layers.Linear, "product", broken(layers.Linear.product, lambda y: mx.roll(y, 1, axis=-1)))
    found = part(loaded=few)
    assert found.verdict == "differs" and found.exact_error > 10
    assert "token 0: '" in found.note and "not '4213" in found.note


@pytest.mark.slow
def test_a_part_that_raises_fails_alone(monkeypatch, run):
    def missing(*_, **__):
        raise RuntimeError("[metal::Device] Unable\nto load kernel")

    wrong = {"peaked": PARTS["peaked"], "missing": missing, "flat": PARTS["flat"]}
    code, out, _ = run(parts=wrong)
    report = json.loads(out.splitlines()[-1])
    assert (code, report["verdict"]) == (1, "differs")
    assert [part["verdict"] for part in report["parts"]] == ["ok", "failed", "ok"]
    assert report["parts"][1]["note"] == "[metal::Device] Unable to load kernel"
    monkeypatch.setattr(selfcheck, "attend", lambda q, *_, **__: q * mx.nan)
    code, out, _ = run("--json", parts={"attention": PARTS["attention"]})
    [part] = json.loads(out)["parts"]
    assert (code, part["verdict"]) == (1, "failed") and "not finite" in part["note"]
    with pytest.raises(IndexError):  # an error of ours is a traceback
        run(parts={"ours": lambda *_: [][0]})


def test_ctrl_c_keeps_what_is_finished(run):
    def interrupted(*_):
        raise KeyboardInterrupt

    code, out, err = run(parts={"flat": PARTS["flat"], "slow": interrupted, "peaked": PARTS["peaked"]})
    report = json.loads(out.splitlines()[-1])
    assert (code, report["verdict"]) == (130, "interrupted") and "interrupted" in err
    assert [part["name"] for part in report["parts"]] == ["flat"]


@pytest.mark.slow
def test_two_devices_are_compared(monkeypatch, pretended_gpu, loaded):
    for name, part in PARTS.items():
        found = part(name, SMALL)
        assert found.device == "gpu", name
        if "in place" in name:  # which is compared with nothing
            continue
        if name == "fused":
            assert found.verdict == "not available" and "no fused kernel" in found.note
        else:
            assert found.verdict == "ok" and found.reference_seconds > 0, found
            assert (found.error == 0) == ("half" not in name), found  # one device, after all
    found = selfcheck.generation("generation", SMALL, loaded=loaded)
    assert (found.verdict, found.error, found.note) == ("ok", 0, "steps 2/3/2 against 2/3/2")


def test_the_device_is_compared_with_the_cpu(monkeypatch, pretended_gpu):
    """An error of the CPU device alone shows, too."""

    def attend(*arguments, **options):
        y = right(*arguments, **options)
        return y if mx.default_stream(mx.cpu) == mx.gpu else y * 1.01

    right = selfcheck.attend
    monkeypatch.setattr(selfcheck, "attend", attend)
    found = PARTS["attention"]("attention", SMALL)
    assert found.verdict == "differs" and found.exact_error < 1e-4 < found.error


@pytest.mark.slow
def test_a_copied_buffer_is_seen(monkeypatch):
    """One that somebody else holds, or whose past is written over."""
    held, write = [], selfcheck.LayerCache.write

    def holding(self, *arrays, text):
        held[:] = [self.keys]
        return write(self, *arrays, text=text)

    monkeypatch.setattr(selfcheck.LayerCache, "write", holding)
    found = PARTS["in place"]("in place", SMALL)
    assert found.verdict == "differs" and found.exact_error > 0.4


def test_kernels_are_told_of(monkeypatch):
    """Whatever came of them, the command succeeds: what is not right and faster is not used."""
    f32 = mx.float32
    found = {"error": 1e-6, "ms": 1.0, "ms_of_mlx": 2.0, "used": True}
    verdicts = {
        f"tail {f32}": found, f"route {f32}": {**found, "ms": 3.0, "used": False},
        f"heads {f32}": {**found, "error": 0.1, "used": False}, f"experts {f32}": {"used": False, "note": "no library"},
    }  # fmt: skip
    monkeypatch.setattr(selfcheck.kernels, "verdicts", verdicts)
    parts = {
        key: selfcheck.kernel(key, SMALL, key=key, dtype=f32) for key in ("tail", "route", "heads", "experts", "x")
    }
    assert [part.verdict for part in parts.values()] == ["ok", "not used", "not used", "not used", "not available"]
    assert parts["tail"].seconds == 1e-3 and parts["route"].note.startswith("slower")
    assert (parts["heads"].note, parts["experts"].note) == ("wrong", "no library")
