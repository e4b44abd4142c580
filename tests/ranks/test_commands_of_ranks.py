"""Every command that writes does so under two ranks, started by `--tensor-parallel`, as alone."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time

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


def command(name: str, *given: str, backend: str, ranks: int = 2) -> list[str]:
    model = ["--backend", backend, "--dtype", "float32", "--tensor-parallel", str(ranks)]
    return [sys.executable, "-m", f"mlx_dgemma.{name}", *given, *model]


def environment() -> dict[str, str]:
    return twenty.environments("", 1, None)[0]


def run(arguments: list[str], typed: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(arguments, input=typed, capture_output=True, text=True, env=environment(), timeout=200)


def ended(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 0 and "stopped" not in process.stderr, process.stderr
    return process.stdout


def test_batch_fill_and_edit(backend, tmp_path):
    requests, file = tmp_path / "requests.jsonl", tmp_path / "file.txt"
    asked = [{"prompt": "Sort: Lima, Tokyo, Kyiv"}, {"prompt": "Reverse: clerk, Kofi"}, {"prompt": "What is 2 + 2?"}]
    requests.write_text("".join(json.dumps(line) + "\n" for line in asked))
    file.write_text("Kyiv, Lima\nTokyo\n")
    calls = [
        ("batch", [str(requests)]),
        ("fill", ["Kyiv, <fill>, Tokyo", "--gap", "4"]),
        ("edit", [str(file), "--lines", "1:1", "--prompt", "Sort: <file>"]),
    ]
    for name, given in calls if backend == "mlx" else calls[:1]:  # what fill and edit add is the same on both
        alone, divided = (ended(run(command(name, *given, *FEW, backend=backend, ranks=n))) for n in (1, 2))
        if name == "batch":
            alone, divided = ([json.loads(line)["text"] for line in out.splitlines()] for out in (alone, divided))
            assert len(alone) == 3
        assert alone == divided


def test_a_chat_is_saved_and_goes_on(backend, tmp_path):
    """Shares of the cache lie beside rank 0's; with one of them gone the chat cannot go on."""
    folder = tmp_path / "chat"
    first = run(command("chat", *FEW, backend=backend), f"Sort: Lima, Kyiv\n/save {folder}\nSort: Oslo, Bern\n")
    ended(first)
    names = sorted(file.name.split(".", 1)[1] for file in folder.iterdir())
    assert names == ["json", "safetensors", "safetensors.rank1"]
    again = ended(run(command("chat", "--load", str(folder), *FEW, backend=backend), "Sort: Oslo, Bern\n"))
    assert again.strip() and again.strip().splitlines()[-1] == first.stdout.strip().splitlines()[-1]
    next(folder.glob("*.rank1")).unlink()
    broken = run(command("chat", "--load", str(folder), backend=backend), "Sort: Oslo, Bern\n")
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
        given = command("server", "--port", str(port), backend=backend)
        server = subprocess.Popen(given, env=environment(), stderr=said, stdin=subprocess.DEVNULL)
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
    given = command("generate", "--prompt", "Write a function that adds", "--max-tokens", "900", backend="torch")
    process = subprocess.Popen(given, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode in (0, 130) and "rank" not in said, said
