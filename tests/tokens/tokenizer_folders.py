"""Tokenizer folders for tests: the byte-level tokenizer of the embedded model, one like Gemma's, and copies of them."""

import json
import random
import shutil
from pathlib import Path

from checkpoints import BPE, TINY

FOLDERS = {"tiny": TINY, "bpe": BPE}
ASTRONAUT = "\U0001f9d1\u200d\U0001f680"  # three characters seen as one, none in the vocabularies


def copy(source: Path, target: Path, **changes) -> Path:
    """A tokenizer folder with some files replaced: a str is written, a dict updates a JSON file, None removes."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    names = {"template": "chat_template.jinja", "config": "tokenizer_config.json", "tokenizer": "tokenizer.json"}
    for key, change in changes.items():
        path = target / names[key]
        if change is None:
            path.unlink()
        else:
            text = json.dumps(json.loads(path.read_text()) | change) if isinstance(change, dict) else change
            path.write_text(text, encoding="utf-8")
    return target


def random_text(draw: random.Random) -> str:
    parts = ["the ", "self.", " ", "\n", '"', "': ", "12", "é", "天空", ASTRONAUT, "€", "<|turn>", "<eos>", "▁"]
    return "".join(draw.choice(parts) if draw.random() < 0.8 else chr(draw.randrange(0x20, 0xD800)) for _ in range(40))
