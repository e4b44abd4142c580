"""A checkpoint and a backend -> (model, tokenizer, sampling). The only module that imports backends.

A framework is imported when its backend is used.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .checkpoint.adapter import Adapter
from .checkpoint.adapter_folder import read as read_adapter
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.config import DTYPES, FP8, ModelConfig, Recipe, parse_config
from .checkpoint.folder import read_configs
from .checkpoint.hub import find
from .checkpoint.memory import limit_context
from .checkpoint.shares import WHOLE, Share
from .errors import Mistake, need
from .ranks.follower import follow
from .ranks.group import Group
from .ranks.leader import LeadingModel
from .ranks.place import SECRET, place, start_here
from .writing.sampling import Sampling, parse_sampling

if TYPE_CHECKING:
    from .checkpoint.adapter import Start
    from .seam.learning import Learner, Optimizer
    from .seam.model import DiffusionModel
    from .tokens.tokenizer import Tokenizer

BACKENDS = ("mlx", "torch")
_INSTALL = {"mlx": "pip install 'mlx_dgemma[cpu]' on Linux", "torch": "pip install 'mlx_dgemma[cuda]'"}


def load(
    path: str | Path | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    adapter_path: str | Path | None = None,
    *,
    divided: bool = True,
    max_memory: int | None = None,
) -> tuple[DiffusionModel, Tokenizer, Sampling]:
    """Load a DiffusionGemma checkpoint. Under torchrun or mlx.launch it is divided over the ranks, and this returns in
    rank 0 alone: the others follow it to its end.

    Args:
        path: a folder, a hub id, or None for the small model that comes with the package.
        backend: "mlx" or "torch"; None: torch where there is a CUDA device, else MLX.
        dtype: "float32", "bfloat16" or "float16" of activations and unquantized weights; "fp8", on torch: experts and
            linears in E4M3, activations in bfloat16; None: the checkpoint's.
        adapter_path: a folder that `python -m mlx_dgemma.train` made, or mlx-lm's of the same shape.
        divided: False: each process has a whole model to itself, whoever started it.
        max_memory: bytes for weights, a pass, and K and V of one text; the model's context becomes what goes into it.

    Raises:
        Mistake: the checkpoint is not whole, does not fit into memory, or does not go with the other arguments.
    """
    from .tokens.tokenizer import Tokenizer

    group = join_ranks() if divided else None
    folder = find(path)
    stored, generation = read_configs(folder)
    config, sampling = parse_config(stored, generation), parse_sampling(generation)
    tokenizer = Tokenizer(folder, config.max_position_embeddings)  # before the weights, which take longer
    if tokenizer.last_id >= config.vocab_size:
        known = f"the model knows {config.vocab_size} tokens, its tokenizer.json has ids up to {tokenizer.last_id}"
        raise Mistake(f"{folder}: {known}: one of the two is another model's")
    adapter = None if adapter_path is None else read_adapter(adapter_path)
    backend = backend or (place(os.environ).backend if group else choose_backend())
    checkpoint, dtype = Checkpoint(folder, config), dtype or config.dtype
    if group is None:
        facts = config if max_memory is None else _limit_memory(max_memory, checkpoint, backend, dtype)
        model = load_model(checkpoint, backend, dtype, adapter)
        model.facts = facts
        return model, tokenizer, sampling
    need(max_memory is None, "one rank for --max-memory", "several")
    need(adapter is None, "one rank for an adapter (python -m mlx_dgemma.fuse makes it part of the model)", "several")
    return lead(group, checkpoint, path, backend, dtype), tokenizer, sampling


def join_ranks(ranks: int | None = None, backend: str | None = None) -> Group | None:
    """Gather the ranks that an engine started, or start so many on this machine; None: there is one. In a rank that is
    not the first this does not return: it follows."""
    here, started = place(os.environ), []
    if ranks is not None and here is not None:
        need(here.ranks == ranks, f"as many ranks as were started ({here.ranks})", f"--tensor-parallel {ranks}")
    if _groups:
        return _groups[0]
    if here is None and ranks is not None and ranks > 1:
        started = start_here(ranks, backend or choose_backend())
        here = place(os.environ)
    if here is None:
        return None
    if here.rank:
        sys.exit(follow(here, _follow))
    _groups.append(Group(here, os.environ.get(SECRET, ""), started))
    atexit.register(leave)
    return _groups[0]


_groups: list[Group] = []  # at most one a process


def leave() -> None:
    """Let the other ranks end, where there are any."""
    with suppress(KeyboardInterrupt):
        if _groups:
            _groups.pop().end(0)


def lead(group: Group, checkpoint: Checkpoint, path: str | Path | None, backend: str, dtype: str) -> LeadingModel:
    """Load the model that is divided over all ranks, which must have the same checkpoint."""
    need(backend == (engine := place(os.environ).backend), f"--backend {engine}: its engine started the ranks", backend)
    call = {"path": None if path is None else str(path), "backend": backend, "dtype": dtype, "answer": True}
    identity, everywhere = checkpoint.identity(), f"the checkpoint of rank 0 on every rank: copy {checkpoint.folder}"
    for rank, answer in group.answers_to(group.send(call | {"do": "find"})).items():
        need(answer["value"] == identity, everywhere, f"another on {group.name(rank)}")
    loading = group.send(call | {"do": "load"})
    model = load_model(checkpoint, backend, dtype, share=Share(0, group.ranks))
    free = min(answer["value"] for answer in group.answers_to(loading).values())
    return LeadingModel(model, group, free)


def _follow(message: dict) -> tuple[DiffusionModel | None, str | int]:
    """Answer rank 0: with the identity of its checkpoint; or its share of the model, and its free memory."""
    folder, here = find(message["path"]), place(os.environ)
    checkpoint = Checkpoint(folder, parse_config(*read_configs(folder)))
    if message["do"] == "find":
        return None, checkpoint.identity()
    model = load_model(checkpoint, message["backend"], message["dtype"], share=Share(here.rank, here.ranks))
    return model, model.free_memory()


def load_model(
    checkpoint: Checkpoint, backend: str, dtype: str, adapter: Adapter | None = None, share: Share = WHOLE
) -> DiffusionModel:
    """Load the weights alone, or a rank's share of them; the other arguments are those of `load`."""
    if dtype not in (*DTYPES, FP8):
        raise Mistake(f"need dtype one of {', '.join((*DTYPES, FP8))}, got {dtype}")
    with _framework(backend):
        if backend == "torch":
            from .torch_backend.load import load_torch

            return load_torch(checkpoint, dtype, adapter, share)
        if dtype == FP8:
            raise Mistake(f"dtype {dtype} is for the torch backend; MLX has {', '.join(DTYPES)}")
        from .mlx_backend.load import load_mlx

        return load_mlx(checkpoint, dtype, adapter, share)


def _limit_memory(memory: int, checkpoint: Checkpoint, backend: str, dtype: str) -> ModelConfig:
    """Have the backend keep to so much memory -> the config with the context that goes into it."""
    weights = checkpoint.nbytes() // (2 if dtype == FP8 else 1)
    facts = limit_context(checkpoint.config, weights, memory, checkpoint.folder.name, 4 if dtype == "float32" else 2)
    with _framework(backend):
        if backend == "torch":
            from .torch_backend.device import limit_memory
        else:
            from .mlx_backend.load import limit_memory
    limit_memory(memory)
    return facts


def choose_backend() -> str:
    """Return "torch" where there is a CUDA device and no Metal, or no MLX; otherwise "mlx"."""
    if not find_spec("torch"):
        return "mlx"
    if not find_spec("mlx"):
        return "torch"
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if sys.platform == "darwin" or not driver:  # torch, which takes seconds to import, need not be asked
        return "mlx"
    from .torch_backend.device import has_gpu

    return "torch" if has_gpu() else "mlx"


def why_no_gpu(backend: str | None) -> str | None:
    """Return why torch computes on the CPU; None if it does not, or for another backend."""
    if backend != "torch":
        return None
    from .torch_backend.device import why_no_gpu as reason

    return reason()


def learner(
    model: DiffusionModel, backend: str, start: Start | None, optimizer: Optimizer, *, checkpoint: bool
) -> Learner:
    """Make `model` learn: an adapter that `start` makes from the shapes of its linears, or all its weights. With
    `checkpoint` the activations inside a layer are made again, and not kept."""
    if backend == "torch":
        from .torch_backend.learn import TorchLearner

        return TorchLearner(model, start, optimizer, checkpoint=checkpoint)
    from .mlx_backend.learn import MLXLearner

    return MLXLearner(model, start, optimizer, checkpoint=checkpoint)


def dummy(
    config: ModelConfig, backend: str, dtype: str, recipe: Recipe, seed: int = 0, peaked: float = 1.0
) -> DiffusionModel:
    """Make a model with random weights, for the benchmark: see `dummy_mlx` and `dummy_torch`."""
    with _framework(backend):
        if backend == "torch":
            from .torch_backend.dummy import dummy_torch

            return dummy_torch(config, dtype, recipe, seed, peaked)
        from .mlx_backend.dummy import dummy_mlx

        return dummy_mlx(config, dtype, recipe, seed, peaked)


def instruments(backend: str) -> ModuleType:
    """Return the backend's `measure` module, with which the benchmark reads the device. Mistake under several ranks:
    it looks into a model."""
    need(place(os.environ) is None, "one rank for the benchmark", "several")
    with _framework(backend):
        if backend == "torch":
            from .torch_backend import measure
        else:
            from .mlx_backend import measure
    return measure


def baseline(backend: str) -> ModuleType:
    """Return the backend's `baseline` module: the autoregressive model that the benchmark compares with."""
    with _framework(backend):
        if backend == "torch":
            from .torch_backend import baseline
        else:
            from .mlx_backend import baseline
    return baseline


@contextmanager
def _framework(backend: str) -> Iterator[None]:
    """Raise Mistake if there is no such backend, or if the import of its framework fails in the block."""
    if backend not in BACKENDS:
        raise Mistake(f"need backend {' or '.join(BACKENDS)}, got {backend!r}")
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in (backend, "triton") and "libcu" not in str(error):
            raise
        raise Mistake(f"{backend} cannot be imported ({error}): {_INSTALL[backend]}") from error
