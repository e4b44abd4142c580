"""Bytes in and out: bodies within limits, JSON, server-sent events and lines of JSON, and clients that leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from .refusal import Refusal

MOST_BYTES = 8 * 2**20  # of a body
ARRIVAL = 30.0  # seconds in which it must be there
STALLED = 60.0  # seconds after which a client that reads nothing is given up
NO_BUFFERING = {"cache-control": "no-cache", "x-accel-buffering": "no"}
T = TypeVar("T")


def dumps(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")  # a client's half character is no UTF-8


def sse(value: Any, event: str | None = None) -> bytes:
    """Returns a server-sent event; JSON has no line breaks."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + (value.encode() if isinstance(value, str) else dumps(value)) + b"\n\n"


def ndjson(value: Any) -> bytes:
    return dumps(value) + b"\n"


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


async def read_body(request: Request) -> bytes:
    """Reads the body, of whatever content type. Refusal where it is too large or too slow."""
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise Refusal(415, f"content-encoding {coding:.40} is not read: send the body as it is")
    data = bytearray()
    try:
        async with asyncio.timeout(ARRIVAL):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise Refusal(413, f"the body is larger than {MOST_BYTES} bytes")
    except TimeoutError:
        raise Refusal(408, f"the body took longer than {ARRIVAL:.0f} s") from None
    return bytes(data)


async def gone(receive: Callable[[], Awaitable[dict]]) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Left(Exception):
    """The client has left."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Returns what `work` gives. Raises Left where the client leaves before."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Left
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


class Stream(Response):
    """Sends `frames` as they come; closes them at once when the client leaves, or takes nothing for STALLED seconds."""

    def __init__(self, frames: AsyncIterator[bytes], media_type: str):
        super().__init__(headers=NO_BUFFERING, media_type=media_type)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self.frames = frames

    async def __call__(self, scope, receive, send) -> None:
        tasks = [asyncio.ensure_future(self._send(send)), asyncio.ensure_future(gone(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.frames.aclose()

    async def _send(self, send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self.frames:
            async with asyncio.timeout(STALLED):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
