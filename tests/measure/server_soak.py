"""Many requests to a server that runs, a third of which leave early: every text must be right, and memory flat.

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

import psutil

ANSWERS = {
    "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old.": (
        '{"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}'
    ),
    "Write a function scale(a, w) that multiplies each w in a by 44.": (
        "def scale(a, w):\n    return [w * 44 for w in a]\n"
    ),
}


def ask(port: int, question: str, leave: bool) -> str | None:
    """The text of a stream; None for one that was left behind its first line."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"messages": [{"role": "user", "content": question}], "stream": True, "drafts": leave}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    reply, text = connection.getresponse(), ""
    for line in reply:
        if leave:
            connection.close()
            return None
        if line.startswith(b"data: {"):
            text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    numbers, wrong, memory = itertools.count(), [], []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        while next(numbers) < options.requests:
            question, leave = draw.choice(sorted(ANSWERS)), draw.random() < 1 / 3
            text = ask(options.port, question, leave)
            if not leave and text != ANSWERS[question]:
                wrong.append(text)

    threads = [threading.Thread(target=client, args=[n]) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(psutil.Process(options.pid).memory_info().rss / 1e6)
        time.sleep(1)
    time.sleep(2)
    connection = http.client.HTTPConnection("127.0.0.1", options.port)
    connection.request("GET", "/metrics")
    left = [line for line in connection.getresponse().read().decode().splitlines() if "_running " in line]
    half = len(memory) // 2
    print(f"{len(wrong)} wrong; {left}; {memory[half]:.0f} MB at half, {memory[-1]:.0f} MB at the end")
    draw_plot(memory)
    return int(bool(wrong) or not all(line.endswith(" 0.0") for line in left if not line.startswith("#")))


def draw_plot(memory: list[float]) -> None:
    import matplotlib.pyplot as plt

    plt.plot(memory)
    plt.xlabel("seconds"), plt.ylabel("resident MB"), plt.ylim(bottom=0)
    plt.savefig("server_soak.png")


if __name__ == "__main__":
    sys.exit(main())
