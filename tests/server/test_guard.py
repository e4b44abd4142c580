"""Who may ask: hosts, origins, tokens, limits; and the command from its start to its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time

import forked
import pytest
from served import served, until
from test_openai import ENDLESS, PATH, tiny

from mlx_dgemma.server import frames
from mlx_dgemma.server.__main__ import main
from mlx_dgemma.server.guard import Guard


@pytest.fixture(scope="module")
def server():
    with served(tiny, token="sësame", hosts=["box.local"]) as running:
        yield running


def status(server, path="/v1/models", method="GET", **headers) -> int:
    reply = server.send(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply.read()
    return reply.status


def test_a_token_is_demanded(server):
    token = "sësame".encode().decode("latin-1")
    assert status(server) == 401 and status(server, authorization="Bearer wrong") == 401
    assert status(server, authorization=f"Bearer {token}") == 200 and status(server, x_api_key=token) == 200
    assert status(server, "/health") == 200 and status(server, "/metrics") == 401
    assert status(server, "/v1/chat/completions", "POST") == 401
    body = json.loads(server.get("/v1/models")[1])
    assert body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("LOCALHOST:8080", True), ("127.0.0.1", True), ("[::1]:80", True), ("a.localhost", True),
        ("box.local:1", True), ("evil.test", False), ("localhost.evil.test", False), ("127.0.0.1.evil.test", False),
        ("", False), ("evil.test@localhost", False), ("10.0.0.7", False),
    ],
)  # fmt: skip
def test_hosts(server, host, allowed):
    """A page whose name was rebound to this machine has its own name in Host."""
    assert status(server, "/health", host=host) == (200 if allowed else 403)


def test_any_address_is_a_host_where_others_may_ask():
    guard = Guard(None, hosts=["*"])
    assert guard.host_allowed("10.0.0.7:8080") and not guard.host_allowed("evil.test")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True), ("http://127.0.0.1", True), ("https://[::1]:8", True), ("app://a.md", True),
        ("vscode-webview://1abc", True), ("tauri://localhost", True), ("http://evil.test", False), ("null", False),
        ("http://localhost.evil.test", False), ("", False), ("http://evil.test/localhost", False), ("x", False),
    ],
)  # fmt: skip
def test_origins(server, origin, allowed):
    """A page can post, as text/plain, what it may not read; so it is refused before anything is done."""
    assert status(server, "/health", origin=origin) == (200 if allowed else 403)
    preflight = server.send("OPTIONS", PATH, headers={"origin": origin, "access-control-request-headers": "x-a"})
    assert preflight.status == (204 if allowed else 403)
    if allowed:
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in preflight.headers


def test_no_path_is_told(server, monkeypatch):
    """Not that of the model's folder, in mistakes about its tokenizer and its template."""
    token, body = {"x-api-key": "sësame".encode().decode("latin-1")}, {"messages": [{"role": "user", "content": "hi"}]}
    monkeypatch.setattr(server.engine.tokenizer, "_template", None)
    text = server.send("POST", PATH, body, token).read().decode()
    assert "has no chat template" in text and str(server.engine.tokenizer.folder) not in text


def test_an_unforeseen_error_is_not_asked_again_and_not_told(server, monkeypatch):
    monkeypatch.setattr(server.engine, "hears_tools", property(None))
    monkeypatch.delattr(server.engine, "languages")
    body = {"messages": [{"role": "user", "content": "hi"}], "json_schema": {"type": "null"}}
    reply = server.send("POST", PATH, body, {"x-api-key": "sësame".encode().decode("latin-1")})
    assert reply.status == 500 and reply.headers["x-should-retry"] == "false"
    assert b"languages" not in reply.read()


@pytest.fixture
def free():
    with served(tiny, places=2, waiting=1, sent=4096) as running:
        yield running


def test_a_body_that_does_not_come(free, monkeypatch):
    monkeypatch.setattr(frames, "ARRIVAL", 0.2)
    with socket.create_connection(("127.0.0.1", free.port)) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in half.recv(1000)


def test_a_full_queue_is_told_when_to_come_again(free):
    endless = {"messages": [{"role": "user", "content": "Who?"}], "preset": ENDLESS}
    connections = []
    for _ in range(3):
        connections.append(http.client.HTTPConnection("127.0.0.1", free.port))
        connections[-1].request("POST", PATH, json.dumps(endless))
    until(lambda: free.metric("requests_waiting") == 1)
    reply = free.send("POST", PATH, endless)
    assert reply.status == 429 and int(reply.headers["retry-after"]) >= 1
    for connection in connections:
        connection.close()
    until(lambda: free.metric("requests_running") == 0)


@pytest.mark.slow
def test_a_reader_that_takes_nothing_is_left(free, monkeypatch):
    monkeypatch.setattr(frames, "STALLED", 0.3)
    body = {"messages": [{"role": "user", "content": "Who?"}], "preset": ENDLESS, "stream": True, "drafts": "tokens"}
    data = json.dumps(body).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", free.port))
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        deaf.sendall(head + data)
        until(lambda: free.metric("rows_running") == 1)
        until(lambda: free.metric("rows_running") == 0, 60)


def test_mistakes_are_one_line(capsys, monkeypatch):
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for flags, needle in (
        (["--port", port], "cannot be listened at"),
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "192.0.2.1", "--api-key", "x"], "192.0.2.1:8080 cannot be listened at: Cannot assign"),
        (["--port", "99999"], "65535"),
        (["--port", "0", "--model", "/nowhere"], "/nowhere"),
        (["--port", "0", "--verify", "--mode", "ar"], "--verify"),
        (["--port", "0", "--cache-memory", "-1"], "--cache-memory"),
    ):
        monkeypatch.setattr("mlx_dgemma.server.run.Server.run", pytest.fail)
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert needle in error and error.count("\n") <= 2, error
    taken.close()


def test_without_its_packages_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("mlx_dgemma.server.__main__.find_spec", lambda name: None if name == "uvicorn" else True)
    assert main(["--port", "0"]) == 2
    assert capsys.readouterr().err == "mlx_dgemma.server: uvicorn is not installed: pip install 'mlx_dgemma[server]'\n"


@pytest.mark.slow
def test_ctrl_c_ends_streams_with_an_error_and_the_server_soon(request):
    reading, stderr = os.pipe()
    process = forked.start("-m", "mlx_dgemma.server", "--port", "0", stderr=stderr)
    os.close(stderr)
    request.addfinalizer(process.kill)
    with open(reading) as said:
        line = next(line for line in said if "http://" in line)
        port = int(line.rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        endless = {"messages": [{"role": "user", "content": "Who?"}], "preset": ENDLESS, "stream": True}
        connection.request("POST", PATH, json.dumps(endless))
        reply = connection.getresponse()
        assert b"role" in reply.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = reply.read().decode()
        assert process.wait(20) == 130 and time.monotonic() - start < 12
        assert '"error"' in rest and rest.rstrip().endswith("[DONE]")
        assert "Traceback" not in said.read()
