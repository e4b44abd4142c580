"""Thirty ways to damage a file, from a seed: its bytes, its JSON, and what stands where it is meant."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

OTHERS = [None, True, -1, 10**30, 1.5, "", "x" * 300, [], {}, [[]], {"x": None}, "DEEP", "INFINITE"]
RAW = {'"DEEP"': "[" * 50_000 + "]" * 50_000, '"INFINITE"': "1e999"}  # what json.dumps would not write


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [path] + [place for key, child in children for place in _places(child, (*path, key))]


def _put(document: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return document


def _other_json(data: bytes, r: random.Random) -> bytes:
    head, *rest = (
        data.decode().split("\n") if data.count(b"\n") > 1 and not data.startswith(b"{\n") else [data.decode()]
    )
    document = json.loads(head)
    text = json.dumps(_put(document, r.choice(_places(document)), r.choice(OTHERS)))
    for name, raw in RAW.items():
        text = text.replace(name, raw)
    return "\n".join([text, *rest]).encode()


def _flipped(data: bytes, r: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(3):
        changed[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return bytes(changed)


def _instead(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **{f"flipped {i}": _flipped for i in range(6)},
    **{f"cut {i}": lambda data, r: data[: r.randrange(len(data))] for i in range(4)},
    "empty": lambda data, _: b"",
    "zeros": lambda data, _: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "latin": lambda data, _: b"\xe9\n" + data,
    "utf16": lambda data, _: data.decode("utf-8", "ignore").encode("utf-16"),
    "twice": lambda data, _: data + data,
    "deep": lambda data, _: b"[" * 100_000,
    "null": lambda data, _: b"null",
    "other format": lambda data, _: b"- a: [1, 2\n  b: {{",
}
SPECIAL: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "folder": _instead(Path.mkdir),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "pipe": _instead(os.mkfifo),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
}
NAMES = [*BYTES, *SPECIAL, *(f"JSON {i}" for i in range(7))]


def damage(path: Path, name: str, seed: int = 0) -> None:
    r = random.Random(f"{path.name} {name} {seed}")
    if name in SPECIAL:
        SPECIAL[name](path)
    elif name in BYTES:
        path.write_bytes(BYTES[name](path.read_bytes(), r))
    else:
        try:
            path.write_bytes(_other_json(path.read_bytes(), r))
        except ValueError:  # it is none
            path.write_bytes(_flipped(path.read_bytes(), r))
