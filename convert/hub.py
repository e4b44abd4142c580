"""A checkpoint on the hub before it is fetched: what can be planned from its headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..checkpoint.folder import INDEX
from ..errors import NotFound
from ..load import hub_errors

CONFIGS = ["config.json", "generation_config.json", INDEX]


@contextmanager
def outline(hub_id: str) -> Iterator[Path]:
    """A folder like the repository's, whose weights are holes. Some kilobytes are fetched for each shard."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    with TemporaryDirectory() as folder:
        try:
            with hub_errors(hub_id):
                fetched = Path(snapshot_download(hub_id, allow_patterns=CONFIGS))
                found = HfApi().get_safetensors_metadata(hub_id)
        except NotASafetensorsRepoError:
            raise NotFound(f"{hub_id} has no weights: need model.safetensors, or shards and {INDEX}") from None
        for name in CONFIGS:
            if (fetched / name).is_file():
                shutil.copy(fetched / name, folder)
        for name, file in found.files_metadata.items():
            _write_holes(Path(folder) / name, file.tensors)
        yield Path(folder)


def _write_holes(path: Path, tensors: dict) -> None:
    table = {
        name: {"dtype": t.dtype, "shape": t.shape, "data_offsets": list(t.data_offsets)} for name, t in tensors.items()
    }
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + max((t.data_offsets[1] for t in tensors.values()), default=0))
