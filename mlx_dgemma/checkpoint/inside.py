"""The files of a checkpoint that others are made of: regular ones, in its folder, wherever links in it lead."""

from pathlib import Path

from ..errors import Mistake
from .folder import INDEX

# Copied from the source as they are.
COPIED = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "generation_config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "LICENSE*", "NOTICE*",
)  # fmt: skip
_READ = ("config.json", INDEX, "*.safetensors", *COPIED)


def copied(folder: Path) -> list[Path]:
    """Return the files that are copied as they are."""
    return sorted({file for pattern in COPIED for file in folder.glob(pattern) if file.is_file()})


def check(folder: Path) -> None:
    """Raise Mistake where a file that would be read lies elsewhere: what is made of it may be uploaded.

    In the hub's cache, files of a snapshot are links to blobs of the same repository.
    """
    home = folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    for file in sorted({file for pattern in _READ for file in folder.glob(pattern)}):
        real = file.resolve() if file.is_file() else home  # what is no file is not read
        if not real.is_relative_to(home) and real.parent != blobs:
            raise Mistake(f"{file} is a link that leads out of the folder: replace it by the file, or remove it")
