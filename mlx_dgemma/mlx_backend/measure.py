"""The benchmark's instruments on MLX: the device, its ceilings, and what a step spends its time on."""

import io
import platform
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import psutil
from mlx.utils import tree_flatten

from ..checkpoint.names import by_class
from ..seam.model import Row
from ..seam.timing import median_seconds, product_rate
from .attention import attend
from .layers import ExpertLinear, Linear
from .model import MLXModel
from .sweep import Sweep, SweepInputs
from .vocabulary import Readout, conditioning_of

COPIED = 1 << 30  # bytes of the array that is copied on a GPU; a CPU takes a quarter, which is beyond its caches too
wait = mx.synchronize  # until the device has finished
LONG_ENOUGH = 0.03  # seconds: a product that takes as long says what the machine can do


def device() -> dict[str, object]:
    """Describe the device: `name`, `memory` in bytes, versions of framework and driver. Nothing names the machine or
    its user."""
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


def _seconds(compute: Callable[[], list[mx.array] | mx.array], repeat: int) -> float:
    return median_seconds(lambda: mx.eval(compute()), wait, repeat)


def ceilings(dtype: str) -> dict[str, float]:
    """Measure `copy_bytes_per_second`, read and written, and `product_flops_per_second` of `dtype`."""
    source = mx.zeros(COPIED // (4 if mx.default_device() == mx.gpu else 16), dtype=mx.uint32)
    mx.eval(source)
    copied = 2 * source.nbytes / _seconds(lambda: source + 1, 5)  # a plain copy would be the same array

    def product_seconds(size: int) -> float:
        matrix = mx.random.normal((size, size)).astype(getattr(mx, dtype))
        mx.eval(matrix)
        return _seconds(lambda: matrix @ matrix, 3)

    product, size = product_rate(product_seconds, LONG_ENOUGH)
    mx.clear_cache()
    return {"copy_bytes_per_second": copied, "product_flops_per_second": product, "product_size": size}


def weight_bytes(model: MLXModel) -> dict[str, int]:
    """Class of weights -> bytes as they are held, scales and biases among them."""
    return by_class((path, array.nbytes) for path, array in tree_flatten(model.network.parameters()))


def step_primitives(model: MLXModel, rows: Sequence[Row]) -> dict[str, int]:
    """Count the primitives of MLX's graph of a denoise step of `rows`, by name: views, and a kernel or more each for
    the others. `mx.fast` is one primitive on a GPU, and several on a CPU."""
    ahead, model.ahead = model.ahead, 0  # what is on its way to the device is no part of a graph
    readout = Readout(rows, model.canvas_hidden(rows), model.slices, model.cap)
    model.ahead, graph = ahead, io.StringIO()
    mx.export_to_dot(graph, *readout.arrays)
    mx.eval(readout.arrays, [row.cache.arrays for row in rows])  # or it would be part of the next pass's graph
    return dict(Counter(re.findall(r'label ="(\w+)', graph.getvalue())).most_common())


def step_parts(model: MLXModel, rows: Sequence[Row], repeat: int = 5) -> dict[str, float]:
    """Median seconds of a denoise step of `rows`, which have nothing pending, by part.

    Each part is made of the network's modules, all layers one after another and alone on the device. Their inputs have
    the step's shapes, and are random: so are the experts that are chosen. "rest" is what the whole step takes beyond
    the sum of the parts: norms, RoPE, routing, caches, the host. It is negative where parts of the whole step overlap.
    """
    readout = Readout(rows, model.canvas_hidden(rows), model.slices, model.cap)
    mx.eval(readout.inputs.hidden, [row.cache.arrays for row in rows])
    light = replace(readout.inputs, heavy=np.zeros_like(readout.heavy))
    parts = {
        "linears": _linears(model, len(readout.heavy)),
        "experts": _experts(model, len(readout.heavy)),
        "attention": _attention(model, rows),
        "head and draw": partial(_swept, model, light),
        "soft embedding": partial(_swept, model, readout.inputs),
        "self-conditioning": partial(_conditioned, model, rows),
    }
    seconds = {part: _seconds(compute, repeat) for part, compute in parts.items()}
    seconds["self-conditioning"] += max(seconds.pop("soft embedding") - seconds["head and draw"], 0.0)
    whole = _seconds(lambda: model.denoise(rows) and [], repeat)
    return {**seconds, "rest": whole - sum(seconds.values())}


def _random(model: MLXModel, *shape: int) -> mx.array:
    array = mx.random.normal(shape).astype(model.dtype)
    mx.eval(array)
    return array


def _linears(model: MLXModel, tokens: int) -> Callable[[], list[mx.array]]:
    everything = [module for layer in model.network.model.decoder.layers for module in layer.modules()]
    modules = [module for module in everything if isinstance(module, Linear) and not isinstance(module, ExpertLinear)]
    inputs = {width: _random(model, tokens, width) for width in {module.width for module in modules}}
    return lambda: [module(inputs[module.width]) for module in modules]


def _experts(model: MLXModel, tokens: int) -> Callable[[], list[mx.array]]:
    x, layers = _random(model, tokens, model.config.hidden_size), model.network.model.decoder.layers
    chosen = [layer.router(x) for layer in layers]
    mx.eval(chosen)
    return lambda: [layer.experts(x, *experts) for layer, experts in zip(layers, chosen, strict=True)]


def _attention(model: MLXModel, rows: Sequence[Row]) -> Callable[[], list[mx.array]]:
    inputs = []
    for row in rows:
        for layer, cache in zip(model.config.layers, row.cache.layers, strict=True):
            past = cache.retained if cache.seen is None else min(cache.retained, cache.seen)
            shape = layer.num_key_value_heads, past + len(row.canvas), layer.head_dim
            queries = _random(model, 1, model.config.num_attention_heads, len(row.canvas), layer.head_dim)
            queries *= layer.head_dim**-0.5  # or weights would be denormal numbers, which are slow
            inputs.append((queries, _random(model, 1, *shape), _random(model, 1, *shape)))
    return lambda: [attend(*arrays, causal=False, window=None) for arrays in inputs]


def _swept(model: MLXModel, inputs: SweepInputs) -> list[mx.array]:
    return list(vars(Sweep(model.slices, inputs, model.cap).run()).values())


def _conditioned(model: MLXModel, rows: Sequence[Row]) -> list[mx.array]:
    """Embed the canvases with what the last pass predicted."""
    module, embeddings = model.network.model.decoder.self_conditioning, []
    for row in rows:
        if conditioning := conditioning_of(row):
            soft = conditioning.embedding(model.slices, model.cap)
            embeddings.append(module(model.table(mx.array(row.canvas)), soft))
    return embeddings
