"""A checkpoint that can be loaded: its folder, its config, and where the text model's tensors lie."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .config import ModelConfig
from .folder import Tensor, read_tensors
from .names import is_vision
from .shares import WHOLE, Share
from .tied import without_copies

SAMPLE = 1024  # bytes of each tensor, at its start, middle and end


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    config: ModelConfig

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The text model's, by name, without copies of tied ones. Reads headers, never a weight; once."""
        text = {name: tensor for name, tensor in read_tensors(self.folder).items() if not is_vision(name)}
        return without_copies(text)[0]

    def nbytes(self, share: Share = WHOLE) -> int:
        """Bytes of the tensors, or of a rank's share of them."""
        return sum(share.nbytes(self.config, tensor) for tensor in self.tensors.values())

    def identity(self) -> str:
        """A checksum that tells checkpoints apart without reading them: of the JSON files, of each tensor's name, dtype
        and shape, and of samples of its bytes. All machines of a run must hold the same checkpoint."""
        digest = hashlib.sha256()
        for name in ("config.json", "generation_config.json"):
            digest.update((self.folder / name).read_bytes() if (self.folder / name).exists() else b"")
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            with tensor.file.open("rb") as file:
                for place in (0, tensor.nbytes // 2, max(0, tensor.nbytes - SAMPLE)):
                    file.seek(tensor.start + place)
                    digest.update(file.read(min(SAMPLE, tensor.nbytes)))
        return digest.hexdigest()
