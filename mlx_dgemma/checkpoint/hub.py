"""Hub ids: finding a repository in the local cache, fetching it, and reading its headers before it is fetched."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import Mistake, NotFound
from .folder import INDEX, file_start, read_configs, read_tensors
from .memory import check_disk, check_memory

TINY = Path(__file__).parents[1] / "tiny"
CONFIGS = ["config.json", "generation_config.json", INDEX]
# The files of a repository that are fetched: no code, no pickles.
FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "LICENSE*"]
_REASONS = {  # HTTP status -> why a repository cannot be fetched
    401: "it needs a login: set HF_TOKEN",
    403: "access is not granted to your HF_TOKEN",
    404: "no such repository",
}
_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


def is_hub_id(path: str | Path) -> bool:
    """Return whether `path` is no folder and is written like OWNER/NAME or OWNER/NAME@REVISION."""
    return not os.path.exists(os.path.expanduser(path)) and bool(_HUB_ID.fullmatch(str(path)))


def _repository(hub_id: str) -> dict[str, str | None]:
    """Return OWNER/NAME and the revision (a commit, branch or tag), None for the newest."""
    name, revision = _HUB_ID.fullmatch(hub_id).groups()
    return {"repo_id": name, "revision": revision}


def find(path: str | Path | None, *, to_load: bool = True) -> Path:
    """Return a checkpoint's folder: `path`, a hub id's snapshot, or the embedded model's. Mistake if there is none."""
    if path is None or (str(path) == TINY.name and not os.path.isdir(path)):
        return TINY
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder):
        return folder
    if os.path.lexists(folder):
        raise Mistake(f"{path} is a file: need the folder of a checkpoint, or a hub id")
    if is_hub_id(path):
        return _fetch(str(path), to_load=to_load)
    raise NotFound(f"{path}: no such folder, and no hub id either (those look like google/diffusiongemma-26B-A4B-it)")


def cached(hub_id: str) -> Path | None:
    """Return a repository's folder in the local cache; None if it is not there or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**_repository(hub_id), allow_patterns=FILES, local_files_only=True))
        read_configs(folder), read_tensors(folder)
        return folder
    except (LocalEntryNotFoundError, NotFound):
        return None
    except HFValidationError:
        raise Mistake(f"{hub_id} is no folder, and no hub id either") from None


def _fetch(hub_id: str, *, to_load: bool) -> Path:
    """Return the folder of a repository: from the cache if it is whole there, otherwise downloaded (with HF_TOKEN).
    Mistake if it cannot be fetched, or would not fit on the disk or, with `to_load`, into memory."""
    from huggingface_hub import HfApi, snapshot_download

    if folder := cached(hub_id):
        return folder
    with _hub_errors(hub_id):
        siblings = HfApi().model_info(**_repository(hub_id), files_metadata=True).siblings or []
        files = {file.rfilename: file.size or 0 for file in siblings}
        size = sum(files[name] for name in files if name.endswith(".safetensors") and "/" not in name)
        if to_load:
            check_memory(size, hub_id)
        check_disk(cache_folder(), size, hub_id)
        return Path(snapshot_download(**_repository(hub_id), allow_patterns=FILES, ignore_patterns=["*/*"]))


def cache_folder() -> Path:
    """Return the hub's local cache or, before it is made, the nearest folder above it."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return next(folder for folder in (cache, *cache.parents) if folder.exists())


@contextmanager
def outline(hub_id: str) -> Iterator[Path]:
    """Make a temporary folder like the repository's, whose weights are holes. It fetches the JSON files and some
    kilobytes of each shard."""
    from huggingface_hub import HfApi, snapshot_download

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with _hub_errors(hub_id):
            fetched = Path(snapshot_download(**_repository(hub_id), allow_patterns=CONFIGS))
            shards = HfApi().get_safetensors_metadata(**_repository(hub_id)).files_metadata
        for file in filter(Path.is_file, map(fetched.joinpath, CONFIGS)):
            shutil.copy(file, folder)
        for file_name, shard in shards.items():
            end = max((tensor.data_offsets[1] for tensor in shard.tensors.values()), default=0)
            start = file_start({name: (t.dtype, t.shape, t.data_offsets) for name, t in shard.tensors.items()})
            (folder / file_name).write_bytes(start)
            os.truncate(folder / file_name, len(start) + end)
        yield folder


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Turn the errors of a request to the hub into NotFound, one line that says what to do."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, NotASafetensorsRepoError

    try:
        yield
    except NotASafetensorsRepoError:
        raise NotFound(f"{hub_id} has no weights: need model.safetensors, or shards and {INDEX}") from None
    except (HTTPError, OSError) as error:  # offline mode is one of the latter
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        unreachable = "the hub cannot be reached" + " (offline mode is set)" * is_offline_mode()
        absent = f"{hub_id} is no folder and not in the local cache"
        raise NotFound(f"{absent}, and {_REASONS.get(status, unreachable)}") from error
