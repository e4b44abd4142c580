"""What tells checkpoints apart without reading them: the machines of a run must hold the same one."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from .folder import Tensor

SAMPLE = 1024  # bytes of each tensor, at its start, middle and end


def identity(folder: Path, tensors: Iterable[Tensor]) -> str:
    """A checksum of what the folder says of the model, of each tensor's name, kind and shape, and of samples of its
    bytes."""
    digest = hashlib.sha256()
    for name in ("config.json", "generation_config.json"):
        digest.update((folder / name).read_bytes() if (folder / name).exists() else b"")
    files: dict[Path, list[Tensor]] = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        files.setdefault(tensor.file, []).append(tensor)
    for path, stored in files.items():
        with path.open("rb") as file:
            for tensor in stored:
                digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
                for place in (0, tensor.nbytes // 2, max(0, tensor.nbytes - SAMPLE)):
                    file.seek(tensor.start + place)
                    digest.update(file.read(min(SAMPLE, tensor.nbytes)))
    return digest.hexdigest()
