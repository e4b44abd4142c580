"""A checkpoint -> MLXModel."""

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.adapter import Adapter
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.memory import check_memory
from ..checkpoint.shares import WHOLE, Share
from . import family, guard, parallel
from .lora import attach
from .model import MLXModel
from .network import Network
from .weights import linears, load_weights

MIN_CACHE, MAX_CACHE = 2**26, 2**30  # bytes that MLX's allocator may keep: a sixteenth of the weights, within these


def memory_of_the_gpu() -> tuple[int | None, str]:
    """Return what may still be held there, and a clause that says how to let it hold more; (None, "") without Metal.

    What the process table calls free is another number: the system pages out for the GPU, up to what Metal recommends.
    """
    most = family.working_set()
    if most is None:
        return None, ""
    return most - mx.get_active_memory(), "; or let the GPU hold more: sudo sysctl iogpu.wired_limit_mb=…"


def limit_memory(memory: int) -> None:
    """Let MLX take so many bytes: an operation that needs more waits until others end."""
    mx.set_memory_limit(memory)


def load_mlx(checkpoint: Checkpoint, dtype: str, adapter: Adapter | None = None, share: Share = WHOLE) -> MLXModel:
    """Load a checkpoint, or a rank's share of it. Mistake names the tensor that is missing, left over, or of the wrong
    shape or dtype."""
    check_memory(checkpoint.nbytes(share), checkpoint.folder.name, *memory_of_the_gpu())
    parallel.join(share)
    network = Network(checkpoint.config)
    load_weights(network, checkpoint.config, checkpoint.tensors, getattr(mx, dtype))
    if adapter:
        attach(network, adapter)
    if dtype == "float32" and not family.current().gpu:
        for path, linear in linears(network).items():
            if not path.endswith("embed_tokens"):
                linear.lay_by_input()
    # The arrays of a pass have the same sizes each time, and are used again; a long prompt's are freed.
    weights = sum(array.nbytes for _, array in tree_flatten(network))
    mx.set_cache_limit(min(max(weights // 16, MIN_CACHE), MAX_CACHE))
    if most := family.working_set():
        # As mlx-lm does: weights that the system may page out stall every pass.
        mx.set_wired_limit(most)
    guard.choose()
    return MLXModel(network, checkpoint.config, getattr(mx, dtype))
