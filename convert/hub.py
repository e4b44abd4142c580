"""The hub as a converter sees it: where a source came from, the hashes of its files, and the upload of a result."""

import re
from pathlib import Path

from ..errors import Mistake

_SHA256 = re.compile(r"[0-9a-f]{64}")


def snapshot(folder: Path) -> tuple[str, str] | None:
    """Return (hub id, revision) of a folder in the hub's cache, None for any other folder."""
    match = re.search(r"/models--([^/]+)/snapshots/([^/]+)$", folder.absolute().as_posix())
    return (match[1].replace("--", "/"), match[2]) if match else None


def expected_sha256(file: Path) -> str | None:
    """Return the hash that the hub gave for a file: the blob's name in its cache, or the note beside a --local-dir."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    lines = note.read_text().split() if note.is_file() else []
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def check_repository(name: str) -> None:
    """Raise Mistake unless `name` can be a repository and the user is logged in: asked before an hour's work."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        HfApi().whoami()
    except HFValidationError as error:
        raise Mistake(f"--upload-repo {name}: no name of a repository ({error})") from None
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise Mistake(f"--upload-repo {name} needs a login that may write: set HF_TOKEN ({_line(error)})") from None
    except OSError as error:
        raise Mistake(f"--upload-repo {name}: the hub cannot be reached ({_line(error)})") from None


def upload(folder: Path, name: str) -> str:
    """Send the folder to the repository, made if need be, and return its address. Mistake says how to do it later."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().create_repo(name, repo_type="model", exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, repo_type="model")
    except (HTTPError, OSError) as error:
        reason = f"{folder} is whole, but could not be sent to {name} ({_line(error)})"
        raise Mistake(f"{reason}; later: hf upload {name} {folder}") from error
    return f"https://huggingface.co/{name}"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
