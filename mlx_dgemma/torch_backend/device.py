"""The device that the model runs on: its kernels, its free memory, and the message where that is too little."""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..checkpoint import memory
from ..errors import Mistake


def has_gpu() -> bool:
    return torch.cuda.is_available()


def why_no_gpu() -> str | None:
    """Return why there is no GPU, as far as torch knows; None where there is one."""
    if has_gpu():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"torch {torch.__version__} sees no NVIDIA GPU, or no driver for CUDA {torch.version.cuda}"


def current_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def by_kernel(x: Tensor) -> bool:
    """Return whether the kernels for a GPU are used on `x`. They know no gradients."""
    return x.is_cuda and not x.requires_grad


@functools.cache
def multiprocessors() -> int:
    return torch.cuda.get_device_properties(current_device()).multi_processor_count if has_gpu() else 128


@functools.cache
def shared_memory() -> int:
    """Bytes that a kernel's block can have, of the least GPU if there is none."""
    return torch.cuda.get_device_properties(current_device()).shared_memory_per_block_optin if has_gpu() else 99 * 1024


def free(device: torch.device) -> int:
    """Bytes that can be allocated now: of a GPU the driver's, and those that torch's allocator holds unused."""
    if device.type == "cpu":
        return memory.available()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def limit_memory(memory: int) -> None:
    """Let this process take so many bytes of its GPU; with more it is out of memory."""
    if has_gpu():
        whole = torch.cuda.get_device_properties(current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / whole))


def peak(device: torch.device) -> int:
    """Peak bytes: of torch's allocator on a GPU; of the process on a CPU, whose allocator does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory.peak()


@contextmanager
def memory_for(device: torch.device, what: str) -> Iterator[None]:
    """Raise a Mistake that names `what` if the device's memory runs out inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        raise Mistake(
            f"out of device memory for {what}: needs {asked[1] if asked else 'more'} at once, "
            f"{memory.gigabytes(free(device))} are free on {name}; take shorter texts, fewer at once, "
            "or a checkpoint of fewer bits"
        ) from None


def to_host(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy `x` -> a function that waits for the copy, but for nothing that is launched after this."""
    if x.device.type != "cuda":
        return lambda: x
    host, event = x.to("cpu", non_blocking=True), torch.cuda.Event()  # into pinned memory
    event.record()

    def arrived() -> Tensor:
        event.synchronize()
        return host

    return arrived
