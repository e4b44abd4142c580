"""`python -m mlx_dgemma.server`: one model for editors, agents, chat programs and pages."""

import argparse
import os
import socket
import sys
from importlib.util import find_spec

from ..errors import Mistake, need, reason
from ..terminal.command import Parser, at_least, run
from ..terminal.options import add_ask, add_max_tokens, add_model, check_ask

NAME = "mlx_dgemma.server"
TOKEN = "MLX_DGEMMA_API_KEY"


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Answer clients of OpenAI, Anthropic, Ollama and llama.cpp.")
    add = parser.add_argument_group("whom to serve").add_argument
    add("--host", default="127.0.0.1", help="the address to listen at; off loopback a token is needed")
    add("--port", type=at_least(0), default=8080, metavar="N", help="0 takes one that is free")
    add("--api-key", metavar="TOKEN", help=f"what clients must give (default: ${TOKEN})")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="a host name that clients may use")
    page = "a page that may ask, such as http://a:3000"
    add("--allowed-origin", action="append", default=[], metavar="URL", help=page)
    add = parser.add_argument_group("how much at once").add_argument
    add("--size", type=at_least(1), default=16, metavar="N", help="write N texts at once")
    add("--queue", type=at_least(0), default=64, metavar="N", help="requests that may wait; more must come again")
    add("--cache-memory", type=float, metavar="GB", help="of all caches (default: half of what is free)")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="a text that takes longer ends as it stands")
    add_max_tokens(add)
    add_ask(parser)
    add_model(parser)
    parser.set_defaults(quiet=False)
    return parser


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that waits for clients. Mistake where there can be none."""
    need(port <= 65535, "--port <= 65535", f"{port}")  # some systems take the rest of a division
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        with socket.socket(family, kind, protocol) as here:
            here.bind((address[0], 0, *address[2:]))  # or the probe would knock at another machine
        with socket.socket(family, kind, protocol) as probe:  # not every system refuses to share a port
            if port and probe.connect_ex(address) == 0:
                raise OSError(0, "another program listens there")
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except (OSError, OverflowError) as error:
        why = f"{host}:{port} cannot be listened at: {reason(error)}"
        raise Mistake(f"{why}; give another --port or --host") from None
    return bound


def serve(options: argparse.Namespace) -> int:
    check_ask(options)
    missing = [name for name in ("starlette", "uvicorn", "pydantic", "prometheus_client") if not find_spec(name)]
    if missing:
        raise Mistake(f"{missing[0]} is not installed: pip install 'mlx_dgemma[server]'")
    from .run import serve

    token = options.api_key or os.environ.get(TOKEN) or None
    if token is None and options.host not in ("127.0.0.1", "localhost", "::1"):
        raise Mistake(f"--host {options.host} lets others ask: give a token by --api-key, or in ${TOKEN}")
    memory = options.cache_memory
    need(memory is None or memory > 0, "--cache-memory > 0", f"{memory}")
    need(options.timeout > 0, "--timeout > 0", f"{options.timeout}")
    with listen(options.host, options.port) as bound:
        return serve(NAME, options, token, bound)


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: serve(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
