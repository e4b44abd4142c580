"""What the benchmark needs to know of MLX: the device, its ceilings, and what a step spends its time on."""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
from mlx.utils import tree_flatten

from ..checkpoint.names import weight_class
from ..seam.model import Row
from . import layers, network
from .arithmetic import bring, product
from .model import MLXModel
from .sweep import Asked, Sweep
from .vocabulary import conditioning_of, expected_heavy, soft_embedding

COPIED = 1 << 30  # bytes of the array that is copied on a GPU; a CPU takes a quarter, which is beyond its caches too
LONG = 0.03  # seconds: a product that takes as long says what the machine can do


def wait() -> None:
    """Until all that was asked for is done."""
    mx.synchronize()


def device() -> dict[str, Any]:
    """`name`, `memory` in bytes, versions of framework and driver. Nothing that names the machine or its user."""
    info = mx.device_info()
    mac = platform.mac_ver()[0]
    return {
        "name": info["device_name"],
        "kind": "gpu" if mx.default_device() == mx.gpu else "cpu",
        "memory": int(info.get("memory_size") or psutil.virtual_memory().total),
        "shared_memory": mx.metal.is_available() or mx.default_device() == mx.cpu,
        "backend": "mlx",
        "versions": {"mlx": mx.__version__},
        "driver": f"Metal of macOS {mac}" if mx.metal.is_available() else None,
        "info": info,
    }


def _seconds(compute: Callable[[], Any], repeat: int) -> float:
    """Median of `repeat` runs behind a warm-up."""
    found = []
    for _ in range(repeat + 1):
        mx.synchronize()
        start = time.perf_counter()
        mx.eval(compute())
        mx.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def _copy_rate() -> float:
    """Bytes a second, read and written. A sum, because a plain copy would be another name for the array."""
    source = mx.zeros((COPIED // (4 if mx.default_device() == mx.gpu else 16),), dtype=mx.uint32)
    mx.eval(source)
    return 2 * source.nbytes / _seconds(lambda: source + 1, 5)


def _product_rate(dtype: mx.Dtype) -> tuple[float, int]:
    """FLOPs a second of square matrices, and the size of the last: it doubles until a product takes LONG."""
    size, best, seconds = 128, 0.0, 0.0
    while seconds < LONG and size < 16384:
        size *= 2
        matrix = mx.random.normal((size, size)).astype(dtype)
        mx.eval(matrix)
        own = bring(matrix)
        seconds = _seconds(lambda own=own: product(own, own), 3)
        best = max(best, 2 * size**3 / seconds)
    return best, size


def ceilings(dtype: str) -> dict[str, float]:
    """Measured now: `copy_bytes_per_second`, read and written, and `product_flops_per_second` of `dtype`."""
    copied = _copy_rate()
    mx.clear_cache()
    product, size = _product_rate(getattr(mx, dtype))
    mx.clear_cache()
    return {"copy_bytes_per_second": copied, "product_flops_per_second": product, "product_size": size}


def weight_bytes(model: MLXModel) -> dict[str, int]:
    """Class of weights -> bytes as they are held, scales and biases among them."""
    found: dict[str, int] = defaultdict(int)
    for path, array in tree_flatten(model.network.parameters()):
        found[weight_class(path)] += array.nbytes
    return dict(found)


@contextmanager
def _recorded(model: MLXModel) -> Iterator[dict[str, list[Callable[[], Any]]]]:
    """Part -> calls of the modules that make it, with the inputs that they have in the pass that is made meanwhile."""
    calls: dict[str, list[Callable[[], Any]]] = defaultdict(list)
    own = {id(module) for module in model.network.model.decoder.self_conditioning.modules()}

    def recorded(part: str, original: Callable) -> Callable:
        def call(*args, **options):
            name = "self-conditioning" if id(args[0]) in own else part
            calls[name].append(partial(original, *args, **options))
            return original(*args, **options)

        return call

    with ExitStack() as stack:
        for place, name, part in (
            (layers.Linear, "__call__", "linears"),
            (network.Experts, "__call__", "experts"),
            (network, "attend", "attention"),
        ):
            original = getattr(place, name)
            setattr(place, name, recorded(part, original))
            stack.callback(setattr, place, name, original)
        yield calls


def step_parts(model: MLXModel, rows: Sequence[Row], repeat: int = 5) -> dict[str, float]:
    """Median seconds of a denoise step of `rows`, which have nothing pending, by part.

    Each part is made of the real modules on the inputs of a real pass, all layers one after another and alone on the
    device. "rest" is what the whole step takes beyond their sum: norms, RoPE, routing, caches, the host. It is negative
    where parts of the whole step overlap.
    """
    whole = _seconds(lambda: model.denoise(rows) and [], repeat)
    with _recorded(model) as calls:
        hidden = model._canvas_hidden(rows)
        mx.eval(hidden)
    found = {
        part: _seconds(lambda part=part: [call() for call in calls[part]], repeat)
        for part in ("linears", "experts", "attention")
    }
    told = [one for row in rows if (one := conditioning_of(row)) is not None]
    asked = Asked(
        hidden=mx.concatenate(hidden),
        temperature=np.concatenate([np.full(len(row.canvas), row.temperature, np.float32) for row in rows]),
        uniforms=np.concatenate([row.uniforms for row in rows]),
        heavy=np.zeros(sum(len(row.canvas) for row in rows), dtype=bool),
    )
    heavy = replace(asked, heavy=np.concatenate([expected_heavy(row) for row in rows]))

    def look(asked: Asked) -> list[Any]:
        return [a for a in vars(Sweep(model.slices, asked, model.cap).run()).values() if isinstance(a, mx.array)]

    def listen() -> list[Any]:
        soft = [soft_embedding(one, model.table, model.slices, model.cap) for one in told]
        return soft + [call() for call in calls["self-conditioning"]]

    found["head and draw"] = _seconds(lambda: look(asked), repeat)
    found["self-conditioning"] = max(_seconds(lambda: look(heavy), repeat) - found["head and draw"], 0.0)
    found["self-conditioning"] += _seconds(listen, repeat)
    return {**found, "rest": whole - sum(found.values())}
