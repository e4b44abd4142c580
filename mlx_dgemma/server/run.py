"""A server from its start to its end: the model is loaded, uvicorn serves, and Ctrl-C ends both in bounded time."""

import argparse
import asyncio
import logging
import socket
import time
from types import FrameType

import uvicorn

from ..terminal.command import note
from ..terminal.options import open_model
from .app import application
from .engine import Engine

GRACE = 3.0  # seconds that requests have to end in, once the server is to stop


class Server(uvicorn.Server):
    """uvicorn's, which waits for the requests for GRACE seconds and then ends them."""

    engine: Engine
    ended_by: int | None = None  # signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends what is open: in order by the first signal, at once by the second."""
        self.force_exit = self.should_exit
        self.should_exit, self.ended_by = True, sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.engine.close()
        end = time.monotonic() + GRACE
        while self.engine.running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.engine.stop()
        await super().shutdown(sockets)


def serve(name: str, options: argparse.Namespace, token: str | None, bound: socket.socket) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    memory = None if options.cache_memory is None else int(options.cache_memory * 1e9)
    model_name = (options.model or "tiny").rstrip("/").split("/")[-1]
    engine = Engine(
        lambda: open_model(name, options),
        model_name,
        places=options.size,
        waiting=options.queue,
        memory=memory,
        limit=options.timeout,
    )
    engine.start()
    local = options.host in ("127.0.0.1", "localhost", "::1")
    hosts = [*options.allowed_host, options.host, *([] if local else ["*"])]
    guarded = application(engine, int(time.time()), hosts=hosts, origins=options.allowed_origin, token=token)
    config = uvicorn.Config(
        guarded, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2, lifespan="on"
    )
    server = Server(config)
    server.engine = engine
    host, port = bound.getsockname()[:2]
    note(f"{name}: {model_name} answers at http://{host if ':' not in host else f'[{host}]'}:{port}")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server.run(sockets=[bound])
    return 128 + server.ended_by if server.ended_by else 0
