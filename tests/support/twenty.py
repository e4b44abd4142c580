"""Twenty answers of the tiny model, of all kinds; and ranks that write them, as torchrun or mlx.launch start them.

    python tests/support/twenty.py BACKEND OUT [COUNT]    one rank, or by its environment one of several

In the environment, PASSES=N is how many a block may take (default: 2; 48 is the model's own); DELAY=SEED makes this
rank late at random, before calls and before sums; PATIENCE=SECONDS is how long ranks wait to meet, for a test that
kills one before that, which torchrun and mlx.launch would notice.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
SCHEMA |= {"required": ["name", "age"], "additionalProperties": False}
PERSON = "Extract JSON: Zoe (31) works as a vet in Oslo."
PROMPTS = ("Sort: Lima, Tokyo, Kyiv", "Reverse: clerk, Kofi, Eve", "What is 603 + 845?", PERSON)


def answers(model, tokenizer, sampling) -> Iterator[object]:
    """Each as something that JSON can hold."""
    from mlx_dgemma.fill.infill import Infill, infill
    from mlx_dgemma.forms import choices, schema
    from mlx_dgemma.forms.language import Language, begin_within
    from mlx_dgemma.forms.lattice import Vocabulary
    from mlx_dgemma.seam.model import Draw, Text
    from mlx_dgemma.tokens.messages import prompt_tokens
    from mlx_dgemma.writing.ask import Ask
    from mlx_dgemma.writing.batch import run
    from mlx_dgemma.writing.diffuse import begin, diffuse

    ticks = itertools.count()
    model.now = lambda: next(ticks) / 100  # so that a deadline, and what is decided by pace, are the same again
    sampling = replace(sampling, max_denoising_steps=int(os.environ.get("PASSES", "2")))
    plain, left = Ask(sampling=sampling, max_tokens=96), Ask(sampling=sampling, mode="ar", max_tokens=8)
    asks = [replace(plain, seed=seed) for seed in range(6)]
    asks += [replace(plain, seed=6, deadline=0.03), replace(plain, seed=7, deadline=0.05, max_tokens=200)]
    asks += [replace(plain, seed=8, mode="auto"), replace(plain, seed=9, mode="auto", draw=Draw(temp=0.9))]
    asks += [left, replace(left, draw=Draw(temp=0.8, top_p=0.9, top_k=20)), replace(plain, verify=True)]
    tokens = [prompt_tokens(tokenizer, prompt) for prompt in PROMPTS]
    for number, ask in enumerate(asks):
        yield [step.draft.tolist() for step in diffuse(model, tokens[number % 4], ask)]
    language = Language(model, Vocabulary(tokenizer, model.facts.vocab_size), schema.automaton(SCHEMA))
    for ask in (plain, replace(left, max_tokens=24)):
        writing = begin_within(model, Text(tokens[3]), ask, language)
        yield [step.draft.tolist() for step in run(model, [writing])]
    yield choices.choose(model, tokenizer, tokens[2], ["1448", "1449", "no"], plain)["text"]
    for lengths in (None, [4]):
        request = Infill(prompt=tokens[0], texts=["Kyiv, ", ", Tokyo"], lengths=lengths, tries=4, ask=plain)
        [filled] = infill(model, tokenizer, [request])
        yield [filled.text, filled.lengths, filled.steps]
    together = [begin(model, Text(text), replace(plain, seed=i), request=i) for i, text in enumerate(tokens)]
    yield [[step.request, step.draft.tolist()] for step in run(model, together, size=3)]
    cache = model.new_cache()
    model.encode([Text(tokens[0])], [cache])
    fork = cache.copy()
    fork.trim(5)
    [scored] = model.encode([Text(tokens[0][-5:])], [fork], score=True)
    yield [scored.argmax.tolist(), fork.length]


def late(seed: int, backend: str) -> None:
    """Make this rank late at random."""
    from importlib import import_module

    from mlx_dgemma.ranks.follower import Follower

    draw, parallel = random.Random(seed), import_module(f"mlx_dgemma.{backend}_backend.parallel")

    def after_a_while(function: Callable, most: float) -> Callable:
        return lambda *given, **named: (time.sleep(most * draw.random() ** 8), function(*given, **named))[1]

    parallel.sum_up = after_a_while(parallel.sum_up, 0.05)
    Follower.do = after_a_while(Follower.do, 0.2)


def main(backend: str, out: str, count: str = "20") -> None:
    if backend == "mlx":
        import mlx.core as mx

        mx.set_default_device(mx.cpu)
    if seed := os.environ.get("DELAY"):
        late(int(seed), backend)
    from mlx_dgemma.load import leave, load
    from mlx_dgemma.ranks import follower, group

    group.PATIENCE = follower.PATIENCE = float(os.environ.get("PATIENCE", group.PATIENCE))
    loaded = load(backend=backend, dtype="float32")
    with open(out, "w") as file:
        for answer in itertools.islice(answers(*loaded), int(count)):
            print(json.dumps(answer), file=file, flush=True)
    leave()


def environments(backend: str, ranks: int, folder: Path) -> list[dict[str, str]]:
    """What torchrun or mlx.launch give each of so many ranks."""
    from mlx_dgemma.ranks.place import free_ports

    basis = os.environ | {"PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0"}
    basis |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if ranks == 1:
        return [basis]
    port, leader, *ring = free_ports(2 + ranks)
    basis |= {"MLX_DGEMMA_LEADER": f"127.0.0.1:{leader}"}
    if backend == "torch":
        basis |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [basis | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ring]))
    return [basis | {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)} for rank in range(ranks)]


def start(command: list[str], backend: str, ranks: int, folder: Path, **added: str) -> list[forked.Started]:
    """Start so many ranks of `python COMMAND`."""
    started = []
    for rank, environment in enumerate(environments(backend, ranks, folder)):
        environment |= {name: value.format(rank=rank) for name, value in added.items()}
        with open(folder / f"stdout.{rank}", "w") as out, open(folder / f"stderr.{rank}", "w") as err:
            started.append(forked.start(*command, imports=imports(backend), env=environment, stdout=out, stderr=err))
    return started


def imports(backend: str) -> list[str]:
    framework = forked.MLX if backend == "mlx" else forked.TORCH
    return [*framework, "mlx_dgemma.generate.__main__", "mlx_dgemma.fill.infill"]


def wait(started: list[forked.Started], seconds: float) -> list[int]:
    """Their exit codes. Whoever has not ended by then is killed."""
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, until - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
