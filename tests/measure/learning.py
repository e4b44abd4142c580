"""What the embedded model learns of a format it never saw, and what it keeps.

    python tests/measure/learning.py make FOLDER [--task yaml] [--seed 0]     # FOLDER/data, FOLDER/replay.jsonl
    python -m mlx_dgemma.train --data FOLDER/data --replay FOLDER/replay.jsonl:0.5 --adapter-path FOLDER/adapter …
    python tests/measure/learning.py rates FOLDER/adapter [--task yaml] [--prompts 100] [--backend torch]

`rates` prints a line of JSON: by task, the shares solved by denoising and left to right, and passes a block.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from mlx_dgemma.load import load
from mlx_dgemma.tiny.tasks import CITIES, JOBS, LEARNT, NAMES, TASKS, WORDS, Task, extract
from mlx_dgemma.train.data import Encoder
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


NEW: dict[str, Task] = {"yaml": yaml, "label": first, "number": counted}
SHARES = {"json": 3, "code": 3, "sudoku 4x4": 2, "sudoku 6x6": 2, "reverse": 2, "sort": 1}  # of what is replayed


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
        text = "".join(lines(NEW[task], size, f"{seed} {split} {task}"))
        (folder / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    (folder / "replay.jsonl").write_text("".join(replayed(count, f"{seed} replay")), encoding="utf-8")


def rates(adapter: str | None, task: str, prompts: int, backend: str, names: list[str]) -> dict[str, dict[str, float]]:
    model, tokenizer, sampling = load(None, backend, None, adapter)
    encoder, table = Encoder(tokenizer, model.facts, 2048), {}
    for name, maker in {task: NEW[task], **{name: TASKS[name] for name in names}}.items():
        numbers = random.Random(f"999 {name}")
        made = [maker(numbers) for _ in range(prompts)]
        examples = [encoder.example({"prompt": prompt, "completion": answer}) for prompt, answer in made]
        table[name] = {kind: round(value, 3) for kind, value in vars(skill(model, encoder, examples, sampling)).items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "rates"])
    parser.add_argument("folder")
    parser.add_argument("--task", choices=NEW, default="yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--known", nargs="*", choices=LEARNT, default=["json", "code"])
    options = parser.parse_args()
    if options.command == "make":
        make(Path(options.folder), options.task, options.seed)
        return
    adapter = None if options.folder == "none" else options.folder
    print(json.dumps(rates(adapter, options.task, options.prompts, options.backend, options.known)))


if __name__ == "__main__":
    main()
