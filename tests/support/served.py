"""A server in this process, and a plain client for it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from mlx_dgemma.server.app import application
from mlx_dgemma.server.engine import Engine


class Served:
    """A running server. `base` is its address."""

    def __init__(self, engine: Engine, port: int):
        self.engine, self.port, self.base = engine, port, f"http://127.0.0.1:{port}"

    def send(self, method: str, path: str, body=None, headers: dict | None = None) -> http.client.HTTPResponse:
        """A reply whose body is yet to be read. `body`: bytes, or what JSON can hold."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        reply = connection.getresponse()
        reply.connection = connection
        return reply

    def get(self, path: str, **headers):
        reply = self.send("GET", path, headers=headers)
        return reply.status, reply.read().decode()

    def post(self, path: str, body, **headers):
        """(status, JSON)"""
        reply = self.send("POST", path, body, headers)
        return reply.status, json.loads(reply.read())

    def stream(self, path: str, body) -> list:
        """The events of a stream: JSON, or a text such as [DONE]; those with a name as (name, JSON)."""
        reply = self.send("POST", path, body)
        assert reply.status == 200, reply.read()
        return list(events(reply))

    def ask(self, question: str, **fields):
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": question}], **fields})

    def metric(self, name: str) -> float:
        lines = self.get("/metrics")[1].splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith((f"mlx_dgemma_{name} ", f"mlx_dgemma_{name}{{"))
        )


def events(reply):
    name = None
    for line in reply:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text[7:]
        elif text.startswith("data: "):
            value = json.loads(text[6:]) if text[6:].startswith("{") else text[6:]
            yield (name, value) if name else value
            name = None


@contextmanager
def served(load, *, token: str | None = None, hosts=(), name: str = "tiny", sent: int | None = None, **engine_options):
    """A server of what `load` gives, which ends with the block. `sent`: bytes that the system may have on the way."""
    engine = Engine(load, name, **engine_options)
    engine.start()
    bound = socket.create_server(("127.0.0.1", 0))
    if sent:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sent)
    app = application(engine, int(time.time()), token=token, hosts=hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    thread.start()
    try:
        yield Served(engine, bound.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()
        assert not thread.is_alive()


def until(holds, seconds: float = 20.0) -> None:
    """Waits until `holds()`; fails where it takes longer."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)
