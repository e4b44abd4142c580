"""A file that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a path to write to, beside `path`; its name ends with `suffix`. The file takes the name `path` when the
    block ends; a block that fails leaves nothing."""
    part = path.with_name(f".{path.name[:99]}.{os.getpid()}{suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
