"""The folder's README.md, and its way to the hub."""

from __future__ import annotations

from pathlib import Path

from .. import __version__
from ..errors import Mistake
from . import report
from .plan import Plan

BASE = "google/diffusiongemma-26B-A4B-it"


def hub_source(folder: Path) -> tuple[str, str] | None:
    """(hub id, revision) of a snapshot in the hub's cache."""
    parts = folder.absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]


def write(plan: Plan, errors: dict[int, tuple[float, float]], command: str, folder: Path) -> None:
    """README.md: how it was made, and what became of the weights. The same whenever it is written."""
    import mlx.core as mx
    from huggingface_hub import ModelCard, ModelCardData

    source, origin = hub_source(plan.source), f"the local folder `{plan.source.name}`"
    if source:
        origin = f"[{source[0]}](https://huggingface.co/{source[0]}) at revision `{source[1]}`"
    data = ModelCardData(
        base_model=source[0] if source else BASE,
        library_name="transformers" if plan.metadata["format"] == "pt" else "mlx",
        license="apache-2.0",
        pipeline_tag="text-generation",
        tags=["diffusion_gemma", *(["mlx"] if plan.metadata["format"] == "mlx" else [])],
    )
    head, body = report.rows(plan, errors)
    table = "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))
    notes = "\n".join(f"- {line}" for line in (*plan.undivided, *report.dropped(plan)))
    text = f"""# {folder.name.removesuffix(".part")}

DiffusionGemma, converted from {origin} by mlx_dgemma {__version__} with MLX {mx.__version__}:

```sh
python -m mlx_dgemma.convert {command}
```

{table}

The relative error is that of a sample of rows against the source. It {report.fits(plan)}.
{notes}
"""
    if plan.metadata["format"] == "mlx":
        text += '\n```sh\npython -m mlx_dgemma.generate --model FOLDER --prompt "Why is the sky blue?"\n```\n'
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    ModelCard.load(folder / "README.md")  # that it can be read


def check_repository(name: str) -> None:
    """Before an hour's work: may we write there at all?"""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        HfApi().whoami()
    except HFValidationError as error:
        raise Mistake(f"--upload-repo {name}: no name of a repository ({error})") from None
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise Mistake(f"--upload-repo {name} needs a login that may write: set HF_TOKEN ({_first(error)})") from None
    except OSError as error:
        raise Mistake(f"--upload-repo {name}: the hub cannot be reached ({_first(error)})") from None


def upload(folder: Path, name: str) -> str:
    """-> its address. Mistake says that the folder is there, and how to send it later."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().create_repo(name, repo_type="model", exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, repo_type="model")
    except (HTTPError, OSError) as error:
        raise Mistake(
            f"{folder} is whole, but could not be sent to {name} ({_first(error)}); later: hf upload {name} {folder}"
        ) from error
    return f"https://huggingface.co/{name}"


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
