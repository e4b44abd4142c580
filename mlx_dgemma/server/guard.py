"""Who may ask: checks of Host, Origin and token before anything is read, and one line of the log for each request.

A page that a browser shows can post to loopback, and by rebinding a name to 127.0.0.1 read the answer, too. Only `Host`
tells the latter, only `Origin` the former; both are needed.
"""

import hmac
import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from .frames import Json
from .page_files import FILES
from .refusal import Refusal

log = logging.getLogger("mlx_dgemma.access")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
EDITORS = {"app", "tauri", "vscode-webview", "vscode-file"}  # schemes of programs' own windows
OPEN = {"/health", *FILES}  # without a token
CORS = [(b"access-control-allow-methods", b"GET, POST, OPTIONS"), (b"access-control-max-age", b"600")]


class Guard:
    """ASGI middleware."""

    def __init__(
        self,
        app,
        *,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        token: str | None = None,
        count: Callable[[str, int], None] = lambda path, status: None,
    ):
        """`hosts`: names beside loopback's that a request may be for, "*" for any address; `origins`: of pages that may
        ask; `token`: what every request must give, None: nothing; `count`: called with path and status of each."""
        self.count = count
        self.app, self.hosts, self.origins, self.token = app, {*LOOPBACK, *hosts}, set(origins), token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        start, status, origin = time.monotonic(), [0], headers.get("origin")
        allowed = origin is not None and self.origin_allowed(origin, headers.get("host", ""))

        async def answer(message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                if allowed:
                    shared = (b"access-control-allow-origin", origin.encode("latin-1"))
                    message = message | {"headers": [*message["headers"], shared, (b"vary", b"origin")]}
            await send(message)

        try:
            if (refused := self.refuse(scope, headers, allowed)) is not None:
                await Json(refused.body(scope["path"]), refused.status)(scope, receive, answer)
            elif scope["method"] == "OPTIONS":
                names = headers.get("access-control-request-headers", "").encode("latin-1")
                shared = [*CORS, (b"access-control-allow-headers", names)]
                await answer({"type": "http.response.start", "status": 204, "headers": shared})
                await answer({"type": "http.response.body", "body": b""})
            else:
                await self.app(scope, receive, answer)
        finally:
            seconds = round(time.monotonic() - start, 3)
            line = {"method": scope["method"], "path": scope["path"], "status": status[0], "seconds": seconds}
            log.info(json.dumps(line))
            self.count(scope["path"], status[0])

    def refuse(self, scope, headers: dict[str, str], allowed: bool) -> Refusal | None:
        """Returns why this request is not answered; None where it is."""
        if not self.host_allowed(headers.get("host", "")):
            return Refusal(403, "this host name is not served: start the server with --allowed-host NAME")
        if "origin" in headers and not allowed:
            return Refusal(403, "pages of this origin may not ask: start the server with --allowed-origin URL")
        if scope["method"] != "OPTIONS" and scope["path"] not in OPEN and not self.token_right(headers):
            return Refusal(401, "a token is needed: Authorization: Bearer …, or x-api-key")
        return None

    def host_allowed(self, host: str) -> bool:
        name = _name(host)
        return name in self.hosts or name.endswith(".localhost") or ("*" in self.hosts and _is_address(name))

    def origin_allowed(self, origin: str, host: str) -> bool:
        """Allows pages of this server, of loopback and of editors, and those that `--allowed-origin` names."""
        parts = urlsplit(origin) if re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#]*/?", origin, re.IGNORECASE) else None
        if parts is None:
            return False
        served_here = parts.netloc == host and self.host_allowed(host)
        return served_here or origin in self.origins or parts.scheme in EDITORS or _name(parts.netloc) in LOOPBACK

    def token_right(self, headers: dict[str, str]) -> bool:
        if self.token is None:
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        token = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(token.encode("latin-1"), self.token.encode())


def _name(host: str) -> str:
    """Returns the host of "name:port", in lower case, an IPv6 address without its brackets."""
    match = re.fullmatch(r"\[([0-9a-f:.]+)\](?::\d+)?|([^:\[\]@/\s]+)\.?(?::\d+)?", host.lower())
    return (match[1] or match[2].rstrip(".")) if match else ""


def _is_address(name: str) -> bool:
    """Returns whether `name` is an address: no name can be rebound to one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
