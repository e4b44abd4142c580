"""Every command that writes does so under two ranks, started by `--tensor-parallel`, as alone."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import tempfile
import time

import forked
import pytest
import twenty

from mlx_dgemma.ranks.place import free_ports

pytestmark = pytest.mark.slow
BACKENDS = ("mlx", "torch")
FEW = ["--max-denoising-steps", "3"]  # each pass waits for the other rank many times


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "torch":
        pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
    return request.param


def start(name: str, *given: str, backend: str, ranks: int = 2, **streams) -> forked.Started:
    """Rank 0, which starts the others."""
    model = ["--backend", backend, "--dtype", "float32", "--tensor-parallel", str(ranks)]
    streams = {"stdout": forked.PIPE, "stderr": forked.PIPE} | streams
    [environment], imports = twenty.environments("", 1, None), twenty.imports(backend)
    return forked.start("-m", f"mlx_dgemma.{name}", *given, *model, imports=imports, env=environment, **streams)


def run(name: str, *given: str, typed: str = "", **more) -> subprocess.CompletedProcess:
    with tempfile.TemporaryFile() as file:
        file.write(typed.encode())
        file.seek(0)
        process = start(name, *given, stdin=file, **more)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(given, process.returncode, out, err)


def ended(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 0 and "stopped" not in process.stderr, process.stderr
    return process.stdout


def test_batch_fill_and_edit(backend, tmp_path):
    requests, file = tmp_path / "requests.jsonl", tmp_path / "file.txt"
    asked = [{"prompt": "Sort: Lima, Tokyo, Kyiv"}, {"prompt": "Reverse: clerk, Kofi"}, {"prompt": "What is 2 + 2?"}]
    requests.write_text("".join(json.dumps(line) + "\n" for line in asked))
    file.write_text("Kyiv, Lima\nTokyo\n")
    calls = [
        ("batch", [str(requests), "--max-tokens", "64"]),
        ("fill", ["Kyiv, <fill>, Tokyo", "--gap", "4"]),
        ("edit", [str(file), "--lines", "1:1", "--prompt", "Sort: <file>", "--gap", "10"]),
    ]
    for name, given in calls if backend == "mlx" else calls[:1]:  # what fill and edit add is the same on both
        alone, divided = (ended(run(name, *given, *FEW, backend=backend, ranks=n)) for n in (1, 2))
        if name == "batch":
            alone, divided = ([json.loads(line)["text"] for line in out.splitlines()] for out in (alone, divided))
            assert len(alone) == 3
        assert alone == divided


def test_a_chat_is_saved_and_goes_on(backend, tmp_path):
    """Shares of the cache lie beside rank 0's; with one of them gone the chat cannot go on, whatever the backend."""
    folder, question = tmp_path / "chat", "Sort: Oslo, Bern\n"
    first = run("chat", *FEW, backend=backend, typed=f"Sort: Lima, Kyiv\n/save {folder}\n{question}")
    ended(first)
    names = sorted(file.name.split(".", 1)[1] for file in folder.iterdir())
    assert names == ["json", "safetensors", "safetensors.rank1"]
    again = ended(run("chat", "--load", str(folder), *FEW, backend=backend, typed=question))
    assert again.strip() and again.strip().splitlines()[-1] == first.stdout.strip().splitlines()[-1]
    if backend == "torch":
        return
    next(folder.glob("*.rank1")).unlink()
    broken = run("chat", "--load", str(folder), backend=backend, typed=question)
    assert broken.returncode == 2 and "rank1 is missing" in broken.stderr and "Traceback" not in broken.stderr


def ask(port: int, prompt: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"messages": [{"role": "user", "content": prompt}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("backend", "number"), [("mlx", signal.SIGINT), ("torch", signal.SIGKILL)])
def test_a_server(backend, number, tmp_path):
    """It answers, and ends by Ctrl-C; or within ten seconds where the other rank is killed."""
    pytest.importorskip(backend)
    [port] = free_ports(1)
    with open(tmp_path / "stderr", "w") as said:
        server = start("server", "--port", str(port), backend=backend, stdout=None, stderr=said)
    try:
        until = time.monotonic() + 100
        while "answers at" not in (tmp_path / "stderr").read_text():
            assert server.poll() is None and time.monotonic() < until, (tmp_path / "stderr").read_text()
            time.sleep(0.2)
        [answer] = {ask(port, "Sort: Lima, Kyiv") for _ in range(2)}  # the same again
        assert answer.startswith("Kyiv")
        others = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True).stdout.split()
        assert len(others) == 1
        os.kill(server.pid if number == signal.SIGINT else int(others[0]), number)
        code, text = server.wait(10), (tmp_path / "stderr").read_text()
        assert code == (130 if number == signal.SIGINT else 1), text
        assert ("rank 1 on" in text) == (number == signal.SIGKILL), text
    finally:
        server.kill()


def test_ctrl_c_ends_all():
    """Wherever it comes: no rank waits for another."""
    pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
    given = ["--prompt", "Write a function that adds", "--max-tokens", "900"]
    process = start("generate", *given, backend="torch")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    # In Python's own end, when the answer is written, a signal has its default effect.
    assert process.returncode in (0, 130, -signal.SIGINT) and "rank" not in said, said
