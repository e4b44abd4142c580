"""Tokens a second that a server gives to one client and to several with the same requests, in turns; and how evenly.

    python -m mlx_dgemma.server --port 8090 & python tests/measure/server_company.py 8090

Each client sends the same prompts, one after another. Prints for both cases the tokens a second of all clients
together, their ratio, and of the requests that are equal how much longer the slowest took than the fastest (median and
worst of the prompts). Exits with 1 where a text differs from the one that was given without company.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass

PROMPTS = [  # some ten passes each, and one of forty
    "Extract JSON of job, pet, age, name: The nurse Hana (41) lives in Bonn. Hana has a dog and likes red.",
    "Sort: Oslo, Rome, Lima, Cairo, Accra, Bonn, Perth",
    "Sort: Lima, Tokyo, Kyiv, Oslo, Rome, Bonn, Eve, Zoe, Yan, Omar",
]


@dataclass
class Answer:
    text: str
    tokens: int
    seconds: float


def ask(connection: http.client.HTTPConnection, prompt: str) -> Answer:
    body = {"messages": [{"role": "user", "content": prompt}]}
    start = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = json.loads(connection.getresponse().read())
    choice = reply["choices"][0]["message"]["content"]
    return Answer(choice, reply["usage"]["completion_tokens"], time.perf_counter() - start)


def crowd(port: int, clients: int) -> tuple[float, list[list[Answer]]]:
    """Tokens a second of so many clients at once; and the answers [client][prompt]."""
    answers: list[list[Answer]] = [[] for _ in range(clients)]

    def client(mine: list[Answer]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        mine.extend(ask(connection, prompt) for prompt in PROMPTS)

    threads = [threading.Thread(target=client, args=[mine]) for mine in answers]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return sum(answer.tokens for mine in answers for answer in mine) / seconds, answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        socket.create_connection(("127.0.0.1", options.port), 5).close()
    except OSError as error:
        parser.error(f"no server at port {options.port}: {error.strerror}")
    _, (first,) = crowd(options.port, 1)  # nobody has asked before: the machine, caches and prefixes are cold
    rates: dict[int, list[float]] = {1: [], options.clients: []}
    unfair, wrong = [], 0
    for _ in range(options.rounds):
        for clients, found in rates.items():
            rate, answers = crowd(options.port, clients)
            found.append(rate)
            wrong += sum(a.text != b.text for mine in answers for a, b in zip(mine, first, strict=True))
        for equal in zip(*answers, strict=True):  # of the last, which is the crowd
            unfair.append(max(a.seconds for a in equal) / min(a.seconds for a in equal))
    one, many = (statistics.median(found) for found in rates.values())
    print(f"1 client {one:.1f} tokens/s {[round(rate, 1) for rate in rates[1]]}")
    print(f"{options.clients} clients {many:.1f} tokens/s {[round(rate, 1) for rate in rates[options.clients]]}")
    print(f"ratio {many / one:.2f}; slowest over fastest {statistics.median(unfair):.2f}, at worst {max(unfair):.2f}")
    print(f"{wrong} texts differ from those without company")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
