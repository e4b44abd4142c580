"""What the embedded model learns of a format it never saw, and what it keeps.

    export PYTHONPATH=.:tests/support
    python tests/measure/learning.py make FOLDER [--task yaml] [--seed 0]     # FOLDER/data, FOLDER/replay.jsonl
    python -m mlx_dgemma.train --data FOLDER/data --replay FOLDER/replay.jsonl:0.5 --adapter-path FOLDER/adapter …
    python tests/measure/learning.py rates FOLDER/adapter [--task yaml] [--prompts 100] [--backend torch]

    python tests/measure/learning.py blank FOLDER                             # for mlx_dgemma/train/recipes/tiny-1.yaml
    python tests/measure/learning.py layer mlx                                # one layer of the published width

`rates` prints a line of JSON: by task, the shares solved by denoising and left to right, and passes a block.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from functools import partial
from pathlib import Path

import checkpoints
import numpy as np
from safetensors.numpy import save_file

from mlx_dgemma.checkpoint.adapter import ATTENTION_AND_MLP, begin
from mlx_dgemma.checkpoint.config import Quantization, parse_config
from mlx_dgemma.checkpoint.folder import read_header
from mlx_dgemma.checkpoint.hub import TINY
from mlx_dgemma.load import dummy, learner, load
from mlx_dgemma.seam.learning import Optimizer
from mlx_dgemma.tiny.tasks import CITIES, JOBS, LONG, NAMES, TASKS, WORDS, Task, chat, extract
from mlx_dgemma.train.data import Encoder
from mlx_dgemma.train.loss import Example, Recipe, loss_of, noised
from mlx_dgemma.train.validate import skill


def yaml(r: random.Random) -> tuple[str, str]:
    """A person, as four lines."""
    prompt, answer = extract(r)
    lines = [f"{name}: {value}" for name, value in json.loads(answer).items()]
    return prompt.replace("JSON", "YAML"), "\n".join(lines)


def first(r: random.Random) -> tuple[str, str]:
    """Of a list of words, the first of each kind."""
    words = [r.choice(kind.split()) for kind in (NAMES, CITIES, JOBS)]
    r.shuffle(words)
    kinds = {"name": NAMES, "city": CITIES, "job": JOBS}
    lines = [f"{kind}={word}" for kind, known in kinds.items() for word in words if word in known.split()]
    return "Label: " + ", ".join(words), "; ".join(lines)


def counted(r: random.Random) -> tuple[str, str]:
    """A list of words, numbered."""
    words = [r.choice(WORDS) for _ in range(r.randint(2, 4))]
    return "Number: " + ", ".join(words), "\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1))


def line(r: random.Random) -> tuple[str, str]:
    """A 4x4 Sudoku whose answer is one line."""
    prompt, answer = TASKS["sudoku 4x4"](r)
    return prompt.replace("Solve this sudoku", "Solve this sudoku in one line"), answer.replace("\n", "/")


MAKERS: dict[str, Task] = {"yaml": yaml, "label": first, "number": counted, "sudoku line": line, **TASKS, **LONG}
SHARES = {"json": 3, "code": 3, "sudoku 4x4": 2, "sudoku 6x6": 2, "reverse": 2, "sort": 1}  # of what is replayed
TINY_SHARES = {"sudoku 4x4": 8, "sudoku 6x6": 20, "json": 7, "code": 7, "reverse": 12, "sort": 16, "addition": 10}
TINY_SHARES |= {"small addition": 4, "members": 6, "people": 5, "functions": 5}  # of 100, of what a blank model learns


def lines(task: Task, count: int, seed: str) -> list[str]:
    numbers = random.Random(seed)
    made = [task(numbers) for _ in range(count)]
    return [json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in made]


def replayed(count: int, seed: str) -> list[str]:
    """What the model knows, `SHARES` of each task."""
    whole = sum(SHARES.values())
    made = [
        line for name, share in SHARES.items() for line in lines(TASKS[name], count * share // whole, f"{seed} {name}")
    ]
    random.Random(seed).shuffle(made)
    return made


def make(folder: Path, task: str, seed: int, count: int = 2400) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, size in (("train", count), ("valid", 40), ("test", 100)):
        text = "".join(lines(MAKERS[task], size, f"{seed} {split} {task}"))
        (folder / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    (folder / "replay.jsonl").write_text("".join(replayed(count, f"{seed} replay")), encoding="utf-8")


def blank(folder: Path, seed: int) -> None:
    """The embedded model before it learnt anything: its files, and weights from a NumPy seed."""
    shutil.copytree(TINY, folder / "start", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    rng, arrays = np.random.default_rng(seed), {}
    for name, tensor in read_header(TINY / "model.safetensors").items():
        if len(tensor.shape) > 1:
            array = rng.standard_normal(tensor.shape) * tensor.shape[-1] ** -0.5
        else:  # scores of the size that a scale of 1 / sqrt(dim) would give
            array = np.full(
                tensor.shape, tensor.shape[0] ** -0.25 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1
            )
        arrays[name] = array.astype(np.float32)
    save_file(arrays, folder / "start" / "model.safetensors", {"format": "pt"})
    for split, each in (("train", 2400), ("valid", 1)):
        numbers = random.Random(f"{seed} {split}")
        made = [chat(numbers, name) for name, share in TINY_SHARES.items() for _ in range(share * each)]
        numbers.shuffle(made)
        text = "".join(json.dumps({"messages": turns}) + "\n" for turns in made)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def rates(adapter: str | None, task: str, prompts: int, backend: str, names: list[str]) -> dict[str, dict[str, float]]:
    model, tokenizer, sampling = load(None, backend, None, adapter)
    encoder, table = Encoder(tokenizer, model.facts, 2048), {}
    for name, maker in {name: MAKERS[name] for name in (task, *names)}.items():
        numbers = random.Random(f"999 {name}")
        made = [maker(numbers) for _ in range(prompts)]
        examples = [encoder.example({"prompt": prompt, "completion": answer}) for prompt, answer in made]
        table[name] = {kind: round(value, 3) for kind, value in vars(skill(model, encoder, examples, sampling)).items()}
    return table


def layer(backend: str) -> dict[str, float]:
    """Seconds of one layer of the published width with an adapter of rank 16: 512 tokens of text and a canvas of 256.
    Random weights, experts of 4 bits, float32 on a CPU; a vocabulary of 4,096."""
    widths = {
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "num_experts": 128,
        "top_k_experts": 8,
    }
    widths |= {"hidden_size": 2816, "intermediate_size": 2112, "moe_intermediate_size": 704, "vocab_size": 4096}
    stored = checkpoints.config(canvas_length=256, sliding_window=1024, layer_types=["full_attention"], **widths)
    config = parse_config(stored)
    experts = Quantization(bits=4, group_size=64)
    model = dummy(config, backend, "float32", lambda path: experts if ".experts." in path else None)
    start = partial(begin, keys=ATTENTION_AND_MLP, rank=16, scale=2.0, seed=0)
    learning, rng = learner(model, backend, start, Optimizer(), checkpoint=False), np.random.default_rng(0)
    example = Example(*(rng.integers(4096, size=256).astype(np.int32) for _ in range(2)))
    recipe, seconds = Recipe(self_conditioned=0.0), {}
    drawn = loss_of(noised([example], config, 1, recipe, rng), config, recipe)
    for name, act in (("forward", lambda: learning.losses(drawn)), ("step", lambda: learning.step([drawn], 1e-4))):
        begun = time.perf_counter()
        act()
        seconds[name] = round(time.perf_counter() - begun, 1)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "rates", "blank", "layer"])
    parser.add_argument("folder", help="of layer: the backend")
    parser.add_argument("--task", choices=MAKERS, default="yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--known", nargs="*", choices=MAKERS, default=["json", "code"])
    options = parser.parse_args()
    if options.command == "make":
        make(Path(options.folder), options.task, options.seed)
        return
    if options.command == "blank":
        blank(Path(options.folder), options.seed)
        return
    if options.command == "layer":
        print(json.dumps(layer(options.folder)))
        return
    adapter = None if options.folder == "none" else options.folder
    print(json.dumps(rates(adapter, options.task, options.prompts, options.backend, options.known)))


if __name__ == "__main__":
    main()
