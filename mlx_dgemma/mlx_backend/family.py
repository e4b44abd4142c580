"""Which path a device takes through the network and the vocabulary.

A GPU's is shaped by counts of kernels and bytes (README.md has the table), a CPU's by measurement. Each path computes
the same, and each runs on every device: so the tests run a GPU's on the CPU.
"""

import re
from dataclasses import dataclass, replace
from functools import cache

import mlx.core as mx

MATRIX_UNITS = 17  # the generation of Apple's GPUs, M5's, from which on products are cheaper than lists


@dataclass(frozen=True, kw_only=True)
class Family:
    """What devices of one kind are good at."""

    gpu: bool  # products take packed weights, elementwise operations are compiled into one kernel
    lists: bool  # soft embeddings come from lists of the likeliest tokens where these suffice, not from the whole table
    widest: int  # tokens of a slice of the vocabulary
    sorted_from: int  # pairs of a token and its expert from which on they are sorted by expert
    ahead: int  # layers whose work is handed to the device while the next are being put together; 0: none


# A slice's logits of 256 positions are 4 MB on a CPU, and a dozen arrays of that size are at hand: they stay in caches.
CPU = Family(gpu=False, lists=True, widest=4096, sorted_from=16, ahead=1)
GPU = Family(gpu=True, lists=True, widest=32768, sorted_from=64, ahead=6)
MATRIX_GPU = replace(GPU, lists=False)


@cache
def _of(device: mx.DeviceType) -> Family:
    if device == mx.cpu:
        return CPU
    generation = re.search(r"applegpu_g(\d+)", str(mx.device_info(device).get("architecture")))
    return GPU if generation and int(generation[1]) < MATRIX_UNITS else MATRIX_GPU


def current() -> Family:
    """The family of the default device."""
    return _of(mx.default_device().type)


def working_set() -> int | None:
    """Bytes that Metal lets the GPU hold; None without Metal."""
    return int(mx.device_info(mx.gpu)["max_recommended_working_set_size"]) if mx.metal.is_available() else None
