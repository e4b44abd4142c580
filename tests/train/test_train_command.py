"""`python -m mlx_dgemma.train` as its user meets it: files in and out, mistakes in one line, runs that go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import folders
import numpy as np
import pytest

from mlx_dgemma.checkpoint.adapter import read_floats
from mlx_dgemma.train import __main__ as train_command
from mlx_dgemma.train.__main__ import main
from mlx_dgemma.train.options import parse
from mlx_dgemma.train.schedule import schedule

FAST = ["--backend", "mlx", "--batch-size", "2", "--iters", "6", "--eval-prompts", "0", "--learning-rate", "1e-3"]
FILES = {"adapters.safetensors", "adapter_config.json", "state.safetensors", "log.jsonl", "training.svg"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    few = checkpoints.generation_config(max_denoising_steps=3)
    return folders.write(tmp_path_factory.mktemp("model"), generation=few)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 9), ("valid", 3), ("test", 3)):
        records = [{"prompt": f"say {i}", "completion": f"{i} " * (i + 1)} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def arguments(model, data, folder, *flags) -> list[str]:
    return [*map(str, ("--model", model, "--data", data, "--adapter-path", folder)), *FAST, *flags]


def run(model, data, folder, *flags, drawn=False) -> int:
    """In this process, without matplotlib unless it is to be drawn."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setitem(sys.modules, "matplotlib", None)
        return main(arguments(model, data, folder, *flags))


@pytest.fixture
def train(model, data, tmp_path, capsys):
    """Run the command -> its exit code and what it wrote to stderr. The picture takes most of a short run's time."""

    def call(*flags, folder="adapter", data=data, drawn=False):
        capsys.readouterr()
        code = run(model, data, tmp_path / folder, *flags, drawn=drawn)
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return call


@pytest.mark.slow
def test_a_run_leaves_an_adapter_a_log_and_a_picture(train, tmp_path, model):
    flags = ["--save-every", "3", "--test", "--steps-per-report", "2", "--steps-per-eval", "3", "--eval-prompts", "2"]
    code, said = train(*flags, drawn=True)
    assert code == 0
    there = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert there == FILES | {"0000003_adapters.safetensors", "0000006_adapters.safetensors"}
    for words in (
        "without --replay",
        "train of",
        "step 6: loss",
        "step 6: validation",
        "step 6: new",
        "passes a block",
        "test: loss",
    ):
        assert words in said, words
    log = [json.loads(line) for line in (tmp_path / "adapter" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "train_loss" in line] == [2, 4, 6]
    assert [line["step"] for line in log if "new solved" in line] == [0, 3, 6]
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert about["fine_tune_type"] == "lora" and about["lora_parameters"]["rank"] == 16

    from mlx_dgemma.generate.__main__ import main as generate

    ask = [
        "--model",
        str(model),
        "--prompt",
        "say 1",
        "--max-denoising-steps",
        "2",
        "--backend",
        "mlx",
        "--max-tokens",
        "16",
    ]
    assert generate([*ask, "--adapter-path", str(tmp_path / "adapter")]) == 0
    assert generate([*ask, "--adapter-path", str(tmp_path / "nowhere")]) == 2


def test_an_adapter_is_learnt_further(train, tmp_path):
    assert train("--num-layers", "1")[0] == 0
    first = read_floats(tmp_path / "adapter" / "adapters.safetensors")
    assert {name.split(".")[3] for name in first} == {"3"}  # the last layer's
    again = ["--resume-adapter-file", str(tmp_path / "adapter" / "adapters.safetensors"), "--learning-rate", "1e-9"]
    assert train(*again, "--iters", "1", folder="next")[0] == 0
    second = read_floats(tmp_path / "next" / "adapters.safetensors")
    assert first.keys() == second.keys()
    assert max(np.abs(first[name] - second[name]).max() for name in first) < 1e-6


@pytest.mark.slow
def test_what_is_replayed_is_checked(train, data):
    code, said = train("--replay", f"{data}/valid.jsonl:0.5", "--eval-prompts", "1", "--iters", "2")
    assert code == 0 and "known: before" in said and "without --replay" not in said


@pytest.mark.parametrize("name", ["trackio", "wandb", "tensorboard"])
@pytest.mark.sample(1)
def test_a_tracker_hears_every_report(train, tmp_path, monkeypatch, name):
    """A library stands in for each; what it is told is what the log has."""
    seen, project = {}, []

    def log(numbers, step):
        seen.setdefault(step, {}).update(numbers)

    module = SimpleNamespace(init=lambda project, config: seen.update(project=project), log=log)
    if name == "tensorboard":
        writer = SimpleNamespace(add_scalar=lambda tag, value, step: log({tag: value}, step))
        module = SimpleNamespace(SummaryWriter=lambda folder: project.append(folder) or writer)
    monkeypatch.setitem(sys.modules, "tensorboardX" if name == "tensorboard" else name, module)
    code, _ = train("--report-to", name, "--project-name", "p", "--iters", "2", "--steps-per-report", "1")
    assert code == 0
    assert (project or [seen.pop("project")]) == [str(tmp_path / "adapter" / "tensorboard") if project else "p"]
    for line in map(json.loads, (tmp_path / "adapter" / "log.jsonl").read_text().splitlines()):
        assert {name: value for name, value in line.items() if name != "step"}.items() <= seen[line["step"]].items()
    assert {"train_loss", "val_loss", "tokens_per_second"} <= seen[2].keys()


def test_a_data_set_of_the_hub(train, data, monkeypatch):
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    hub = SimpleNamespace(load_dataset=lambda name: {"train": rows, "validation": rows[:2]})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    code, said = train("--iters", "1", data="owner/name")
    assert code == 0 and "valid of owner/name: 2 examples" in said


def test_a_config_gives_flags_and_flags_win(tmp_path, data):
    file = tmp_path / "c.yaml"
    file.write_text(
        "iters: 7\nlearning_rate: 1e-5\nlora_parameters: {rank: 4, scale: 20.0, keys: [mlp.up_proj]}\ntrain: true\n"
    )
    options = parse(["-c", str(file), "--iters", "3", "--no-mask-prompt"])
    assert (options.iters, options.learning_rate, options.rank, options.scale) == (3, 1e-5, 4, 20.0)
    assert options.keys == ["mlp.up_proj"] and not options.recipe.mask_prompt


@pytest.mark.parametrize(("stage", "size", "rate"), [(1, 64, 2e-3), (2, 128, 1.8e-3), (3, 64, 4.5e-4)])
def test_the_recipe_of_the_embedded_model_is_a_config(stage, size, rate):
    options = parse(["-c", str(Path(train_command.__file__).parent / "recipes" / f"tiny-{stage}.yaml"), "--iters", "5"])
    assert options.fine_tune_type == "full" and options.iters == 5
    assert (options.batch_size, options.learning_rate) == (size, rate)


@pytest.mark.parametrize(
    "text",
    [
        *("itres: 3", "iters: many", "- 1", "{"),
        *("lora_parameters: {ranks: 4}", "lora_parameters: {dropout: 0.1}", "lora_parameters: {rank: four}"),
        *("lora_parameters: {keys: mlp.up_proj}", "lora_parameters: {keys: [5]}", "lora_parameters: {scale: .nan}"),
        *("lr_schedule: {warmup: many}", "lr_schedule: {warmup: -5}", "lr_schedule: {arguments: 3}"),
        *("optimizer_config: {adamw: 5}", "optimizer_config: {adamw: {betas: [2, 3]}}"),
    ],
)
def test_a_config_that_is_wrong_is_named(train, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    code, said = train("-c", str(tmp_path / "c.yaml"))
    assert code == 2 and said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "/nowhere"], "no such folder"),
        (["--replay", "x.jsonl"], "FILE:SHARE"),
        (["--replay", "x.jsonl:0.5"], "no such file"),
        (["--batch-size", "0"], "--batch-size >= 1"),
        (["--batch-size", "12"], "fewer than a batch"),
        (["--max-seq-length", "3"], "nothing to learn from"),
        (["--resume"], "no run to go on with"),
        (["--report-to", "trackio"], "pip install trackio"),
        (["--t-one", "2"], "t_one from 0 to 1"),
        (["--seed", "-1"], "--seed >= 0"),
        (["--steps-per-report", "0"], "--steps-per-report >= 1"),
        (["--val-batches", "0"], "--val-batches >= 1, or -1"),
        (["--fine-tune-type", "dora"], "--fine-tune-type"),
        (["--num-layers", "0"], "no layer is named"),
        (["--adapter-path", __file__], "cannot be written: "),
        (["--adapter-path", "/proc/adapter"], "cannot be written: "),
    ],
)
def test_a_mistake_is_one_line(train, flags, words):
    try:
        code, said = train(*flags)
    except SystemExit as end:
        code, said = end.code, None
    assert code == 2
    if said is not None:
        assert words in said and said.splitlines()[-1].startswith("mlx_dgemma.train: "), said


def test_files_without_lines_are_told(train, tmp_path, data):
    shutil.copytree(data, tmp_path / "data")
    for name, flags, words in (("test", ["--test"], "no example in it"), ("train", [], "0 examples")):
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n")
        code, said = train(*flags, data=tmp_path / "data")
        assert code == 2 and said.count("\n") == 1 and words in said


def test_a_loss_that_is_not_finite_names_step_and_example(train):
    code, said = train("--learning-rate", "1e30", "--optimizer", "adamw")
    assert code == 2 and "not finite" in said.splitlines()[-1] and "train.jsonl, line" in said.splitlines()[-1]


def test_too_little_memory_says_what_would_fit(train, monkeypatch):
    from mlx_dgemma.train import memory

    monkeypatch.setattr(memory, "available", lambda: 5_000_000)
    code, said = train("--batch-size", "4")
    assert code == 2 and "too little memory to train" in said and "would fit" in said.splitlines()[-1]


def test_a_run_goes_on_only_as_it_was(train, tmp_path, data):
    assert train("--iters", "3")[0] == 0
    code, said = train("--iters", "3")
    assert code == 2 and "--resume" in said
    code, said = train("--iters", "4", "--resume")
    assert code == 2 and "iters was 3" in said
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.jsonl").write_text((data / "train.jsonl").read_text().replace("say", "tell"))
    code, said = train("--iters", "3", "--resume", data=other)
    assert code == 2 and "other data" in said


LONG = ("--iters", "20", "--save-every", "4")
PROGRAM = """
import runpy, sys
sys.modules["matplotlib"] = None
runpy.run_module("mlx_dgemma.train", run_name="__main__", alter_sys=True)
"""


def process(model, data, folder, *flags, env=None):
    command = [sys.executable, "-c", PROGRAM, *arguments(model, data, folder, *LONG, *flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(file, process) -> None:
    while not file.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """What a run leaves that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(model, data, folder, *LONG) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_comes_to_the_same_bytes(model, data, whole, tmp_path, kind):
    cut = tmp_path / "cut"
    one = process(model, data, cut)
    wait_for(cut / "state.safetensors", one)
    os.kill(one.pid, kind)
    assert one.wait() == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    assert run(model, data, cut, *LONG, "--resume") == 0
    for name in ("adapters.safetensors", "state.safetensors", "adapter_config.json"):
        old, new = (folder / name for folder in (whole, cut))
        if name.endswith("json"):
            old, new = (json.loads(file.read_text()) for file in (old, new))
            assert {k for k in old if old[k] != new[k]} <= {"adapter_path", "resume"}
        else:
            assert old.read_bytes() == new.read_bytes(), name


def environments(backend: str, tmp_path) -> list[dict[str, str]]:
    """What mlx.launch, or torchrun, tells each of two processes."""
    if backend == "torch":
        about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [{**os.environ, **about, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(2)]))
    return [{**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_two_processes_learn_as_one(model, data, tmp_path, backend):
    """Each takes every other batch of a step."""
    pytest.importorskip(backend)
    flags = ["--iters", "3", "--grad-accumulation-steps", "2", "--steps-per-report", "1", "--backend", backend]
    assert run(model, data, tmp_path / "one", *LONG, *flags) == 0
    ranks = [process(model, data, tmp_path / "two", *flags, env=env) for env in environments(backend, tmp_path)]
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for words in ("step 3", "adapter, log and"):
        assert words in said[0] and words not in said[1]
    one, two = (read_floats(tmp_path / name / "adapters.safetensors") for name in ("one", "two"))
    assert max(np.abs(one[name] - two[name]).max() for name in one) < 1e-5
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    first, second = ([line["train_loss"] for line in map(json.loads, log) if "train_loss" in line] for log in logs)
    assert first == pytest.approx(second, rel=1e-5) and len(first) == 3


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def test_rates_of_a_schedule():
    rate = schedule({}, 1e-3, 100)
    assert rate(0) < 1e-4 and rate(25) == pytest.approx(1e-3) and rate(99) == pytest.approx(1e-4, rel=0.05)
    given = schedule({"name": "cosine_decay", "warmup": 10, "warmup_init": 1e-7, "arguments": [1e-5, 50, 1e-7]}, 1, 100)
    assert given(10) == pytest.approx(1e-5) and given(60) == pytest.approx(1e-7) and given(0) < 2e-6
