"""Many small requests to a server that runs, a third of which leave early: every text must be right, and memory flat.

    python -m mlx_dgemma.server --port 8090 & python tests/measure/server_soak.py 8090 --requests 10000 --pid $!

Draws resident memory over requests as `server_soak.png`, and exits with 1 where a text was wrong or rows are left.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import psutil

USER = [{"role": "user", "content": "Sort: Lima, Kyiv"}]
LONG = [{"role": "system", "content": "Say it in as few words as you can. " * 20}, *USER]
SHORT = {"max_tokens": 8, "canvas_length": 16, "max_denoising_steps": 4}
GAP = {"prompt": "a = [1, ", "suffix": "]\n"}
KINDS = [
    ("/v1/chat/completions", {"messages": USER, **SHORT}),
    ("/v1/chat/completions", {"messages": LONG, **SHORT}),
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 6, "mode": "ar", "seed": 3, "temperature": 1.0}),
    ("/v1/chat/completions", {"messages": USER, "template": "x = {x}", **SHORT}),
    ("/v1/chat/completions", {"messages": USER, "json_schema": {"enum": ["Lima", "Kyiv", "Oslo"]}, **SHORT}),
    ("/v1/completions", {"prompt": "Reverse: Lima, Kyiv", "drafts": True, **SHORT}),
    ("/v1/fim/completions", GAP | {"gap": 2, "max_denoising_steps": 2}),
    ("/infill", {"input_prefix": "a = [1, ", "input_suffix": "]\n", "n_predict": 2, "max_denoising_steps": 2}),
    ("/api/generate", {"model": "tiny", "prompt": "Sort: b, a", **SHORT}),
    ("/v1/responses", {"input": "Sort: d, c", **SHORT}),
    ("/v1/messages", {"messages": USER, **SHORT}),
]
NUMBERS = ("id", "created", "created_at", "usage", "timings", "duration", "tokens_per_second", "seconds", "cached")


@dataclass
class Load:
    port: int
    requests: int
    numbers: Iterator[int] = field(default_factory=itertools.count)
    alone: dict[int, str] = field(default_factory=dict)  # the reply to each kind, while nobody else was served
    wrong: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0

    def send(self, kind: int, stream: bool) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        path, body = KINDS[kind]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", path, json.dumps(body | {"stream": stream}))
        return connection, connection.getresponse() if stream else None

    def text(self, kind: int) -> str:
        """What the server says, without what differs from one time to the next."""
        connection, _ = self.send(kind, stream=False)
        try:
            reply = connection.getresponse()
            return json.dumps(lasting(json.loads(reply.read())))
        finally:
            connection.close()

    def leave(self, kind: int, draw: random.Random) -> None:
        """Behind the first line of a stream, or while the reply is being written."""
        connection, reply = self.send(kind, stream := draw.random() < 0.5)
        with suppress(TimeoutError):
            if stream:
                reply.readline()
            else:
                connection.sock.settimeout(draw.random() / 20)
                connection.sock.recv(1)
        connection.close()

    def client(self, seed: int) -> None:
        draw = random.Random(seed)
        while next(self.numbers) < self.requests:
            kind = draw.randrange(len(KINDS))
            if draw.random() < 1 / 3:
                self.leave(kind, draw)
            elif (text := self.text(kind)) != self.alone[kind]:
                self.wrong.append((text, self.alone[kind]))
            self.done += 1


def lasting(value):
    """`value` without ids, times and counts of what was cached."""
    if isinstance(value, dict):
        return {n: lasting(v) for n, v in value.items() if not any(word in n for word in NUMBERS)}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def figures(port: int, *names: str) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = [line.split() for line in connection.getresponse().read().decode().splitlines()]
    return {name: float(line[1]) for line in lines for name in names if line[0] == f"mlx_dgemma_{name}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    load, process = Load(options.port, options.requests), psutil.Process(options.pid)
    load.alone = {kind: load.text(kind) for kind in range(len(KINDS))}
    threads = [threading.Thread(target=load.client, args=[n]) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    seen = []  # (requests answered, resident MB, MB of snapshots)
    while any(thread.is_alive() for thread in threads):
        snapshots = figures(options.port, "prefix_bytes")["prefix_bytes"] / 1e6
        seen.append((load.done, process.memory_info().rss / 1e6, snapshots))
        print(*(round(each, 1) for each in seen[-1]), flush=True)
        time.sleep(2)
    time.sleep(2)
    left = figures(options.port, "rows_running", "requests_running", "requests_waiting")
    done, memory, _ = (np.array(each) for each in zip(*seen, strict=True))
    late = done > options.requests / 2
    slope = np.polyfit(done[late], memory[late], 1)[0] * 1000 if late.sum() > 2 else float("nan")
    processor = sum(process.cpu_times()[:2])
    print(f"{load.done} requests, {len(load.wrong)} wrong {load.wrong[:2]}; {left}; {processor:.0f} CPU seconds")
    print(
        f"{memory[late].min():.0f} to {memory[late].max():.0f} MB in the second half, {slope:+.2f} MB per 1000 requests"
    )
    draw_plot(seen)
    return int(bool(load.wrong) or any(left.values()))


def draw_plot(seen: list[tuple[float, float, float]]) -> None:
    import matplotlib.pyplot as plt

    done, memory, snapshots = zip(*seen, strict=True)
    plt.figure(figsize=(7, 3.5))
    plt.plot(done, memory, label="resident"), plt.plot(done, snapshots, label="of these, snapshots of prompts")
    plt.xlabel("requests"), plt.ylabel("MB"), plt.ylim(bottom=0), plt.legend()
    plt.tight_layout(), plt.savefig("server_soak.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
