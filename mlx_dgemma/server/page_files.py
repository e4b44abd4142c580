"""The page: its files, and what a browser may do with them.

Nothing comes from elsewhere and no script stands within a document. What the model wrote is shown in a frame that has
no origin, no network and by its own policy no script but ours. Scripts of the model's are never run: browsers have no
policy against WebRTC and preconnect, by which a script speaks to others.
"""

import base64
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

HERE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
TYPES[".txt"] = "text/plain"  # licences
FOR_ALL = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=(), serial=()",
}
# `frame-src` holds for where a frame goes by itself, too: without it `location.href = …` leaks from the preview.
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
PREVIEW = (
    "sandbox allow-scripts; default-src 'none'; script-src '{script}'; style-src 'unsafe-inline'; img-src data:; "
    "font-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
DOCUMENT = '<!doctype html><html lang="en"><meta charset="utf-8"><title>preview</title><style>{style}</style>'
DOCUMENT += '<div id="root"></div><script>{script}</script></html>'


def _files() -> dict[str, tuple[bytes, str, str]]:
    """Returns path -> (content, media type, policy)."""
    files = {}
    for file in sorted(HERE.rglob("*")):
        if file.suffix in TYPES:
            name = "/page/" + file.relative_to(HERE).as_posix()
            files["/" if file.name == "index.html" else name] = (file.read_bytes(), TYPES[file.suffix], PAGE)
    script = "\n".join((HERE / name).read_text() for name in ("vendor/morphdom.js", "frame.js"))
    document = DOCUMENT.format(style=(HERE / "frame.css").read_text(), script=script).encode()
    digest = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    files["/page/preview"] = (document, "text/html", PREVIEW.format(script=digest))
    return files


FILES = _files()


async def serve(request: Request) -> Response:
    """Sends a file; at "/" the page to browsers, and Ollama's words to its clients, which look whether it is there."""
    content, kind, policy = FILES[request.url.path]
    headers = {**FOR_ALL, "content-security-policy": policy}
    if request.url.path == "/":
        headers["vary"] = "accept"
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Ollama is running", headers=headers)
    return Response(content, media_type=kind, headers=headers)


ROUTES = [Route(path, serve) for path in FILES]
