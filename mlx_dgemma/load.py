"""A folder or a hub id, and a backend -> (model, tokenizer, sampling). The only place that chooses.

Nothing is read before it is known to fit: sizes come from safetensors headers, or from the hub's listing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import memory
from .checkpoint.config import ModelConfig, parse_config
from .checkpoint.folder import gigabytes, read_configs, read_tensors
from .checkpoint.names import is_vision
from .errors import Mistake, NotFound
from .writing.sampling import parse_sampling

if TYPE_CHECKING:
    from .checkpoint.folder import Tensor
    from .seam.model import DiffusionModel
    from .tokens.tokenizer import Tokenizer
    from .writing.sampling import Sampling

TINY = Path(__file__).parent / "tiny"
BACKENDS = ("mlx", "torch")
DTYPES = ("float32", "bfloat16", "float16")
FP8 = "fp8"
PUBLISHED = {  # bytes of memory for the text model: see README's table of sizes
    "mlx-community/diffusiongemma-26B-A4B-it-4bit": 15.4e9,
    "mlx-community/diffusiongemma-26B-A4B-it-8bit": 26.8e9,
    "google/diffusiongemma-26B-A4B-it": 50.5e9,
}
FILES = [
    "*.json",
    "*.jinja",
    "*.safetensors",
    "tokenizer.model",
    "LICENSE*",
]  # of a hub repository; no code, no pickles
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_memory(needed: int, what: str, free: int | None = None) -> None:
    """ValueError that says what is needed, what there is (`free`, or what a process may take), and which published
    checkpoint would fit."""
    free = memory.available() if free is None else free
    if needed <= free:
        return
    fitting = [name for name, size in PUBLISHED.items() if size <= free and size < needed]
    advice = f"{fitting[-1]} would fit" if fitting else "no published checkpoint would fit: close other programs"
    raise Mistake(f"too little memory for {what}: needs {gigabytes(needed)}, {gigabytes(free)} are free; {advice}")


def cached(hub_id: str) -> Path | None:
    """The folder of a hub repository that is whole in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=FILES, local_files_only=True))
        read_configs(folder), read_tensors(folder)
        return folder
    except (LocalEntryNotFoundError, NotFound):
        return None  # not there, or not all of it


@contextmanager
def hub_errors(hub_id: str) -> Iterator[None]:
    """What the hub answers, in a line."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:  # offline mode is one of the latter
        status = getattr(getattr(error, "response", None), "status_code", None)
        reasons = {
            401: "it needs a login: set HF_TOKEN",
            403: "access is not granted to your HF_TOKEN",
            404: "no such repository",
        }
        reason = reasons.get(status) or "the hub cannot be reached" + (" (offline mode is set)" if _offline() else "")
        raise NotFound(f"{hub_id} is not in the local cache, and {reason}") from error


def fetch(hub_id: str, *, to_load: bool) -> Path:
    """The folder of a hub repository, from the cache where it is whole, fetched otherwise (HF_TOKEN is used).

    Raises:
        FileNotFoundError: it is not cached and cannot be fetched; the message says why.
        ValueError: it would not fit on the disk or, if it is `to_load` whole, in memory.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if folder := cached(hub_id):
        return folder
    with hub_errors(hub_id):
        listing = HfApi().model_info(hub_id, files_metadata=True).siblings or []
        size = sum(file.size or 0 for file in listing if _is_weights(file.rfilename))
        if to_load:
            check_memory(size, hub_id)
        cache = Path(constants.HF_HUB_CACHE)
        free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
        if size > free:
            raise Mistake(
                f"too little disk for {hub_id}: needs {gigabytes(size)}, {gigabytes(free)} are free in {cache}"
            )
        return Path(snapshot_download(hub_id, allow_patterns=FILES, ignore_patterns=["*/*"]))


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name


def is_hub_id(path: str | Path) -> bool:
    """Not a folder, and named like one."""
    folder = Path(path).expanduser()
    return not folder.exists() and bool(_HUB_ID.fullmatch(str(path))) and not folder.parent.is_dir()


def _offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def find(path: str | Path | None, *, to_load: bool = True) -> Path:
    """The checkpoint's folder: the embedded model's for None, a folder as it is, a hub id's snapshot."""
    if path is None:
        return TINY
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise Mistake(f"{path} is a file: need the folder of a checkpoint, or a hub id")
    if is_hub_id(path):
        return fetch(str(path), to_load=to_load)
    raise NotFound(f"{path}: no such folder, and no hub id either (those look like google/diffusiongemma-26B-A4B-it)")


def _has(module: str) -> bool:
    """Installed; it is not imported."""
    return importlib.util.find_spec(module) is not None


def choose_backend() -> str:
    """torch where there is a CUDA device and no Metal, or no MLX; else MLX. torch takes seconds to import, so it is not
    asked before the system shows an NVIDIA driver."""
    if not _has("mlx"):
        return "torch" if _has("torch") else "mlx"
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if sys.platform == "darwin" or not driver or not _has("torch"):
        return "mlx"
    from .torch_backend.device import has_gpu

    return "torch" if has_gpu() else "mlx"


def load_model(
    folder: Path, config: ModelConfig, backend: str, dtype: str, tensor_parallel: int | None = None
) -> DiffusionModel:
    tensors = {name: tensor for name, tensor in read_tensors(folder).items() if not is_vision(name)}
    if backend == "mlx":
        if tensor_parallel:
            raise Mistake("--tensor-parallel is for the torch backend: give --backend torch, under torchrun")
        return _load_mlx(folder, tensors, config, dtype)
    if backend == "torch":
        return _load_torch(folder, tensors, config, dtype, tensor_parallel)
    raise Mistake(f"backend {backend!r} is not one we have: need {' or '.join(BACKENDS)}")


def _load_mlx(folder: Path, tensors: dict[str, Tensor], config: ModelConfig, dtype: str) -> DiffusionModel:
    if dtype not in DTYPES:
        raise Mistake(f"dtype {dtype} is for the torch backend; MLX has {', '.join(DTYPES)}")
    check_memory(sum(tensor.nbytes for tensor in tensors.values()), folder.name)
    try:
        from .mlx_backend.load import load_mlx
    except ImportError as error:
        if (error.name or "").split(".")[0] != "mlx" and "libcuda" not in str(error):
            raise
        raise Mistake(f"MLX cannot be imported ({error}): pip install 'mlx_dgemma[cpu]' on Linux") from error
    return load_mlx(tensors, config, dtype)


def _load_torch(
    folder: Path, tensors: dict[str, Tensor], config: ModelConfig, dtype: str, tensor_parallel: int | None
) -> DiffusionModel:
    try:
        from .torch_backend.load import load_torch
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("torch", "triton") and "libcu" not in str(error):
            raise
        raise Mistake(f"torch cannot be imported ({error}): pip install 'mlx_dgemma[cuda]'") from error
    return load_torch(tensors, config, dtype, folder.name, tensor_parallel or 1)


def load(
    path: str | Path | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    tensor_parallel: int | None = None,
) -> tuple[DiffusionModel, Tokenizer, Sampling]:
    """Load a DiffusionGemma checkpoint in a published layout.

    Args:
        path: a folder, a hub id, or None for the small model that comes with the package.
        backend: "mlx" or "torch"; None: torch where there is a CUDA device, else MLX.
        dtype: "float32", "bfloat16" or "float16" of activations and unquantized weights; "fp8", on torch: experts and
            linears in E4M3, activations in bfloat16; None: the checkpoint's.
        tensor_parallel: ranks to divide the model over, as many as torchrun started; on torch.

    Raises:
        FileNotFoundError, ValueError: one line that names what was wrong and what to do.
    """
    from .tokens.tokenizer import Tokenizer

    folder = find(path)
    stored, generation = read_configs(folder)
    config, sampling = parse_config(stored, generation), parse_sampling(generation)
    dtype = dtype or config.dtype
    if dtype not in (*DTYPES, FP8):
        raise Mistake(f"need dtype one of {', '.join((*DTYPES, FP8))}, got {dtype}")
    tokenizer = Tokenizer(folder)
    model = load_model(folder, config, backend or choose_backend(), dtype, tensor_parallel)
    return model, tokenizer, sampling
