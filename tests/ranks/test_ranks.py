"""Several processes write what one writes, on both backends; whoever dies or falls silent ends all of them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from importlib.util import find_spec

import checkpoints
import numpy as np
import pytest
import twenty

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.errors import Mistake
from mlx_dgemma.ranks import wire
from mlx_dgemma.ranks.place import Place, place, start_here

BACKENDS = ("mlx", "torch")
RUNS = int(os.environ.get("RUNS", "1"))  # of those with random delays, and with a rank that is killed


def wrote(folder) -> list:
    return [json.loads(line) for line in (folder / "out").read_text().splitlines()]


@pytest.fixture(scope="module", params=BACKENDS)
def alone(request, tmp_path_factory):
    """A backend, and what one process writes with it."""
    if request.param == "torch":
        pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
    folder = tmp_path_factory.mktemp("alone")
    command = [twenty.__file__, request.param, str(folder / "out")]
    assert twenty.wait(twenty.start(command, request.param, 1, folder), 280) == [0]
    assert len(wrote(folder)) == 20
    return request.param, wrote(folder)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_write_what_one_writes(alone, ranks, tmp_path):
    backend, expected = alone
    # Four processes on two cores wait long for each other, so they write all twenty where RUNS > 1.
    count = 20 if ranks == 2 or RUNS > 1 else 8
    command = [twenty.__file__, backend, str(tmp_path / "out"), str(count)]
    codes = twenty.wait(twenty.start(command, backend, ranks, tmp_path), 280)
    assert codes == [0] * ranks, [file.read_text() for file in tmp_path.glob("stderr.*")]
    assert wrote(tmp_path) == expected[:count]
    assert not any(file.read_text() for rank in range(1, ranks) for file in [tmp_path / f"stdout.{rank}"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, RUNS + 1))
def test_ranks_that_are_late_write_the_same(alone, seed, tmp_path):
    backend, expected = alone
    command = [twenty.__file__, backend, str(tmp_path / "out"), "3"]
    codes = twenty.wait(twenty.start(command, backend, 2, tmp_path, DELAY=f"{seed}{{rank}}"), 120)
    assert codes == [0, 0] and wrote(tmp_path) == expected[:3]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_gone_ends_the_other(victim, number, seed, tmp_path):
    """At a random moment: while the ranks meet, load, write or end."""
    backend = BACKENDS[seed % 2]
    if backend == "torch":
        pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
    draw = random.Random(f"{victim} {number} {seed}")
    started = twenty.start(
        [twenty.__file__, backend, str(tmp_path / "out")], backend, 2, tmp_path, PATIENCE="8", PASSES="48"
    )
    # While MLX's ranks meet in its ring, about a tenth of a second, it holds Python's lock: whoever waits there for one
    # that was stopped hears nothing, and does not end.
    time.sleep(draw.uniform(0.2 if RUNS > 1 else 1.5, 3.5))
    if any(process.poll() is not None for process in started):
        twenty.wait(started, 1)
        pytest.skip("they were done before")
    os.kill(started[victim].pid, number)
    other, begun = started[1 - victim], time.monotonic()
    try:
        code = other.wait(20)
    finally:
        for process in started:
            process.kill()
    said = (tmp_path / f"stderr.{1 - victim}").read_text()
    assert time.monotonic() - begun < 10, said
    names = f"rank {victim} on {socket.gethostname()}" if victim else "rank 0"
    kinds = ("does not answer",) if number == signal.SIGSTOP else ("stopped",)
    early = ("did not come within", "does not reach rank 0")  # who had not been met yet
    assert code in (1, 2) and any(kind in said for kind in kinds + early), said
    assert names in said or any(kind in said for kind in early)
    if (tmp_path / "out").exists():
        wrote(tmp_path)  # whole lines, each of them JSON


ENGINE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_a_place_is_told_by_the_engine(tmp_path):
    assert place({}) is None and place({"WORLD_SIZE": "1"}) is None
    assert place(ENGINE) == Place(1, 2, "torch", ("10.0.0.1", 30500))
    assert place(ENGINE | {"MASTER_PORT": "65000"}).leader == ("10.0.0.1", 64000)
    assert place(ENGINE | {"MLX_DGEMMA_LEADER": "mac:7"}).leader == ("mac", 7)
    hosts = tmp_path / "hosts"
    hosts.write_text('[["10.0.0.1:32323"], ["10.0.0.2:32324"]]')
    assert place({"MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"}) == Place(0, 2, "mlx", ("10.0.0.1", 33323))
    hosts.write_text("")
    assert place({"MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"}) is None
    hosts.write_text('[[null, "rdma_en5"], ["rdma_en5", null]]')
    jaccl = {"MLX_IBV_DEVICES": str(hosts), "MLX_JACCL_COORDINATOR": "10.0.0.1:32323", "MLX_RANK": "1"}
    assert place(jaccl) == Place(1, 2, "mlx", ("10.0.0.1", 33323))
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    assert place(mpi | {"MLX_DGEMMA_LEADER": "a:1"}) == Place(0, 2, "mlx", ("a", 1))
    with pytest.raises(Mistake, match="MLX_DGEMMA_LEADER=HOST:PORT"):
        place(mpi)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2"},
        ENGINE | {"RANK": "2"},
        ENGINE | {"MLX_DGEMMA_LEADER": "mac"},
        {"MLX_HOSTFILE": "/nowhere", "MLX_RANK": "0"},
    ],
)
def test_an_environment_that_no_engine_makes(environment):
    with pytest.raises(Mistake, match="rank"):
        place(environment)


def test_messages_keep_arrays_and_numbers():
    listening = socket.create_server(("127.0.0.1", 0))
    one = wire.Wire(socket.create_connection(listening.getsockname()))
    other = wire.Wire(listening.accept()[0])
    message = {"a": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2], "b": [None, 0.1, {"c": np.ones(0, bool)}]}
    one.beat()
    one.send(message | {"d": np.float32([0.1, np.nan])})
    got = other.receive()
    assert got["a"].tolist() == [[0, 2], [3, 5]] and got["a"].dtype == np.int32
    assert got["b"][:2] == [None, 0.1] and got["b"][2]["c"].shape == (0,) and np.isnan(got["d"][1])
    one.connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(wire.Lost, match="no message of ours"):
        other.receive()
    one.close()
    with pytest.raises(wire.Lost, match="stopped"):
        other.receive(), other.receive()


@pytest.mark.slow
def test_silence_is_noticed(monkeypatch):
    monkeypatch.setattr(wire, "SILENCE", 1)
    listening = socket.create_server(("127.0.0.1", 0))
    one = wire.Wire(socket.create_connection(listening.getsockname()))
    with pytest.raises(wire.Lost, match="does not answer"):
        one.receive()


def test_identity_is_that_of_the_weights(tmp_path):
    def of(name: str, seed: int) -> str:
        config = checkpoints.config()
        folder = checkpoints.write(tmp_path / name, config, checkpoints.weights(config, seed=seed))
        return Checkpoint(folder, parse_config(config)).identity()

    assert of("a", 1) == of("b", 1) != of("c", 2)


@pytest.mark.slow
def test_what_cannot_be_divided_or_differs_is_told_in_a_line(tmp_path):
    """Of all kinds by MLX's ranks: torch's take seconds to start."""
    config = checkpoints.config(vocab_size=288)
    for name in ("mine", "theirs"):
        checkpoints.write(tmp_path / name, config, checkpoints.weights(config, seed=len(name)))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "mine" / name).write_bytes((checkpoints.TINY / name).read_bytes())
    command = ["-m", "mlx_dgemma.generate", "--prompt", "Sort: Lima, Kyiv", "--backend"]
    for ranks, line in ((3, "3 ranks do not divide"), (2, "need as many ranks as were started (2), got --tensor-par")):
        given = [*command, "mlx", *(["--tensor-parallel", "4"] if ranks == 2 else [])]
        codes = twenty.wait(twenty.start(given, "mlx", ranks, tmp_path), 60)
        said = (tmp_path / "stderr.0").read_text()
        assert codes[0] == 2 and line in said and "Traceback" not in said, said
    # Where rank 1's folder is another, or is not there: it stands at the same path, below its own folder.
    kinds = [("mlx", "theirs", "the checkpoint of rank 0 on every rank"), ("mlx", "nothing", "no such folder")]
    kinds += [("torch", "nothing", "no such folder")] * bool(find_spec("torch"))
    for backend, name, line in kinds:
        for rank in range(2):
            (tmp_path / backend / name / str(rank)).mkdir(parents=True)
        (tmp_path / backend / name / "0" / "model").symlink_to(tmp_path / "mine")
        if name == "theirs":
            (tmp_path / backend / name / "1" / "model").symlink_to(tmp_path / "theirs")
        here = tmp_path / f"{name}.py"
        here.write_text(
            f"import os, runpy, sys\nos.chdir({str(tmp_path / backend / name)!r} + '/' + os.environ['HERE'])\n"
            "sys.argv[1:] = ['--model', './model', *sys.argv[1:]]\n"
            "runpy.run_module('mlx_dgemma.generate', run_name='__main__')\n"
        )
        codes = twenty.wait(twenty.start([str(here), *command[2:], backend], backend, 2, tmp_path, HERE="{rank}"), 60)
        said = (tmp_path / "stderr.0").read_text()
        assert codes[0] == 2 and line in said and "rank 1" in said and "Traceback" not in said, said


def test_a_number_that_no_machine_has_starts_nothing(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    with pytest.raises(Mistake, match="need --tensor-parallel <= 16 on one machine, got 1000"):
        start_here(1000, "mlx")
