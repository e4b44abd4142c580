"""What the benchmark needs to know of torch: the device, its ceilings, and what a step spends its time on."""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor

from ..checkpoint.names import weight_class
from ..seam.model import Row
from . import network
from .device import the_device
from .graphs import Graphs
from .layers import Linear
from .model import TorchModel
from .network import Experts, SelfConditioning
from .sweep import Asked, sweep
from .vocabulary import Question

COPIED = 1 << 30  # bytes of the array that is copied on a GPU; a CPU takes a quarter, which is beyond its caches too
LONG = 0.1  # seconds: a product that takes as long says what the machine can do


def wait() -> None:
    """Until all that was asked for is done."""
    if the_device().type == "cuda":
        torch.cuda.synchronize()


def device() -> dict[str, Any]:
    """`name`, `memory` in bytes, versions of framework and driver. Nothing that names the machine or its user."""
    here = the_device()
    about = {"backend": "torch", "versions": {"torch": torch.__version__}, "kind": "cpu", "driver": None, "info": {}}
    about |= {"name": platform.processor() or platform.machine(), "memory": psutil.virtual_memory().total}
    if here.type == "cpu":
        return {**about, "shared_memory": True}
    found = torch.cuda.get_device_properties(here)
    info = {"multiprocessors": found.multi_processor_count, "capability": f"{found.major}.{found.minor}"}
    about["versions"] |= {"cuda": torch.version.cuda}
    about |= {"kind": "gpu", "name": found.name, "memory": found.total_memory, "info": info}
    return {**about, "driver": f"CUDA {torch.version.cuda}", "shared_memory": bool(found.is_integrated)}


def _seconds(compute: Callable[[], Any], repeat: int) -> float:
    """Median of `repeat` runs behind a warm-up."""
    found = []
    for _ in range(repeat + 1):
        wait()
        start = time.perf_counter()
        compute()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def _product_rate(dtype: torch.dtype) -> tuple[float, int]:
    """FLOPs a second of square matrices, and the size of the last: it doubles until a product takes LONG."""
    size, best, seconds = 128, 0.0, 0.0
    while seconds < LONG and size < 16384:
        size *= 2
        matrix = torch.randn((size, size), device=the_device()).to(dtype)
        seconds = _seconds(partial(torch.matmul, matrix, matrix), 3)
        best = max(best, 2 * size**3 / seconds)
    return best, size


def ceilings(dtype: str) -> dict[str, float]:
    """Measured now: `copy_bytes_per_second`, read and written, and `product_flops_per_second` of `dtype`."""
    here = the_device()
    source = torch.zeros(COPIED if here.type == "cuda" else COPIED // 4, dtype=torch.uint8, device=here)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _seconds(lambda: target.copy_(source), 5)
    product, size = _product_rate(getattr(torch, dtype))
    return {"copy_bytes_per_second": copied, "product_flops_per_second": product, "product_size": size}


def weight_bytes(model: TorchModel) -> dict[str, int]:
    """Class of weights -> bytes as they are held, scales and biases among them."""
    found: dict[str, int] = defaultdict(int)
    for path, array in model.network.named_buffers():
        found[weight_class(path)] += array.nbytes
    return dict(found)


@contextmanager
def _recorded(model: TorchModel) -> Iterator[dict[str, list[Callable[[], Tensor]]]]:
    """Part -> calls of what makes it, with the inputs that they have in the pass that is made meanwhile."""
    calls: dict[str, list[Callable[[], Tensor]]] = defaultdict(list)
    inside: list[str] = []  # parts that others are within

    def enter(part: str, module: torch.nn.Module, arguments: tuple) -> None:
        if not inside:
            calls[part].append(partial(module, *(a.clone() if isinstance(a, Tensor) else a for a in arguments)))
        inside.append(part)

    def attend(*arguments):
        calls["attention"].append(partial(original, *arguments))
        return original(*arguments)

    parts = {Experts: "experts", SelfConditioning: "self-conditioning", Linear: "linears"}
    original = network.attend
    with ExitStack() as stack:
        for module in model.network.modules():
            if part := parts.get(type(module)):
                for hook in (
                    module.register_forward_pre_hook(partial(enter, part)),
                    module.register_forward_hook(lambda *_: inside.pop() and None),
                ):
                    stack.callback(hook.remove)
        network.attend = attend
        stack.callback(setattr, network, "attend", original)
        yield calls


def step_parts(model: TorchModel, rows: Sequence[Row], repeat: int = 5) -> dict[str, float]:
    """Median seconds of a denoise step of `rows`, which have nothing pending, by part.

    Each part is made of the real modules on the inputs of a real pass, all layers one after another and alone on the
    device, on a GPU as a graph of their own. "rest" is what the whole step takes beyond their sum: norms, RoPE,
    routing, caches, the host.
    """
    whole = _seconds(lambda: model.denoise(rows), repeat)
    pool, model.graphs.pool = model.graphs.pool, None  # hooks are not heard in a graph
    try:
        with _recorded(model) as calls:
            groups = [(*model._pass([], group)[1:], group) for group in model._groups(rows, len(rows))]
    finally:
        model.graphs.pool = pool
    parts: dict[str, Callable[[], Any]] = {
        part: lambda part=part: [call() for call in calls[part]]
        for part in ("linears", "experts", "attention", "self-conditioning")
    }
    asked = [_asked(model, *group) for group in groups]
    table, cap = model.network.table, model.cap
    parts["head and draw"] = lambda: [sweep(table, one, cap, soft=False) for one in asked]
    parts["mean embedding"] = lambda: [sweep(table, one, cap) for one in asked]
    found = {part: _seconds(_as_graph(model.device, part, compute), repeat) for part, compute in parts.items()}
    found["self-conditioning"] += max(found.pop("mean embedding") - found["head and draw"], 0.0)
    return {**found, "rest": whole - sum(found.values())}


def _as_graph(device: torch.device, part: str, compute: Callable[[], Any]) -> Callable[[], Any]:
    graphs = Graphs(device)
    return lambda: graphs.run(part, lambda _: compute(), {})


def _asked(model: TorchModel, hidden: Tensor, shapes: Any, rows: Sequence[Row]) -> Asked:
    question = Question(rows, shapes.canvases, shapes.canvas, model.sets)
    return Asked(hidden, **{name: array.to(model.device) for name, array in question.inputs().items()})
