"""Measurements for the benchmark: the device, its ceilings, and the time of the parts of a step."""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..checkpoint.names import by_class
from ..seam.model import Row
from ..seam.timing import median_seconds, product_rate
from .attention import Attend
from .device import current_device
from .graphs import Graphs
from .layers import Linear
from .model import TorchModel
from .network import Experts, SelfConditioning
from .sweep import SweepInputs, sweep
from .vocabulary import Readout
from .weights import DTYPES

COPIED = 1 << 30  # bytes of the array that is copied on a GPU; a CPU takes a quarter, which is beyond its caches too
LONG_ENOUGH = 0.1  # seconds: a product that takes as long says what the machine can do


def wait() -> None:
    """Wait until the device is idle."""
    if current_device().type == "cuda":
        torch.cuda.synchronize()


def device() -> dict[str, object]:
    """Describe the device: `name`, `memory` in bytes, versions of framework and driver. Nothing names the machine or
    its user."""
    versions = {"torch": torch.__version__}
    if current_device().type == "cpu":
        return {
            "backend": "torch", "versions": versions, "kind": "cpu", "driver": None, "info": {}, "shared_memory": True,
            "name": platform.processor() or platform.machine(), "memory": psutil.virtual_memory().total,
        }  # fmt: skip
    gpu = torch.cuda.get_device_properties(current_device())
    return {
        "backend": "torch", "versions": versions | {"cuda": torch.version.cuda}, "kind": "gpu", "name": gpu.name,
        "memory": gpu.total_memory, "shared_memory": bool(gpu.is_integrated), "driver": f"CUDA {torch.version.cuda}",
        "info": {"multiprocessors": gpu.multi_processor_count, "capability": f"{gpu.major}.{gpu.minor}"},
    }  # fmt: skip


def ceilings(dtype: str) -> dict[str, float]:
    """Measure `copy_bytes_per_second`, read and written, and `product_flops_per_second` of `dtype`."""
    size = COPIED if current_device().type == "cuda" else COPIED // 4
    source = torch.zeros(size, dtype=torch.uint8, device=current_device())
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / median_seconds(lambda: target.copy_(source), wait, 5)

    def product_seconds(size: int) -> float:
        matrix = torch.randn((size, size), device=current_device()).to(DTYPES[dtype])
        return median_seconds(lambda: matrix @ matrix, wait, 3)

    product, size = product_rate(product_seconds, LONG_ENOUGH)
    return {"copy_bytes_per_second": copied, "product_flops_per_second": product, "product_size": size}


def weight_bytes(model: TorchModel) -> dict[str, int]:
    """Class of weights -> bytes as they are held, scales and biases among them."""
    return by_class((path, array.nbytes) for path, array in model.network.named_buffers())


PARTS = {Linear: "linears", Experts: "experts", Attend: "attention", SelfConditioning: "self-conditioning"}
Calls = dict[str, list[Callable[[], Tensor]]]  # part -> calls of its modules, with their inputs


@contextmanager
def _recorded() -> Iterator[Calls]:
    """Yield the calls of PARTS in the passes inside, as forward hooks observe them. A module within a part's module
    belongs to that part."""
    calls: Calls = defaultdict(list)
    entered: list[nn.Module] = []

    def enter(module: nn.Module, arguments: tuple) -> None:
        if part := PARTS.get(type(module)):
            if not entered:
                copies = (a.clone() if isinstance(a, Tensor) else a for a in arguments)
                calls[part].append(partial(module, *copies))
            entered.append(module)

    def leave(module: nn.Module, arguments: tuple, output: object) -> None:
        if entered and entered[-1] is module:
            entered.pop()

    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
        yield calls


def step_parts(model: TorchModel, rows: Sequence[Row], repeat: int = 5) -> dict[str, float]:
    """Median seconds of a denoise step of `rows`, which have nothing pending, by part.

    Each part is made of the real modules on the inputs of a real pass, all layers one after another and alone on the
    device, on a GPU as a graph. "rest" is what the whole step takes beyond their sum: norms, RoPE, routing, caches, the
    host.
    """
    whole = median_seconds(lambda: model.denoise(rows), wait, repeat)
    table, cap, inputs = model.network.table, model.cap, []
    with _recorded() as calls:
        for group in model.groups(rows, len(rows)):
            _, hidden, starts = model.forward([], group, eager=True)  # a replayed graph calls no modules
            tensors = Readout(group, starts).inputs(model.facts.vocab_size)
            inputs.append(SweepInputs(hidden, **{name: array.to(model.device) for name, array in tensors.items()}))

    def measured(compute: Callable[[], object]) -> float:
        graphs = Graphs(model.device)
        return median_seconds(lambda: graphs.run("part", lambda _: compute(), {}), wait, repeat)

    seconds = {part: measured(lambda part=part: [call() for call in calls[part]]) for part in PARTS.values()}
    seconds["head and draw"] = measured(lambda: [sweep(table, part, cap, soft=False) for part in inputs])
    with_mean = measured(lambda: [sweep(table, part, cap) for part in inputs])
    seconds["self-conditioning"] += max(with_mean - seconds["head and draw"], 0.0)
    return {**seconds, "rest": whole - sum(seconds.values())}
