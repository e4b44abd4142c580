"""Counts what one denoise step asks of a GPU at the published shape: kernels by name, bytes of the vocabulary's part.

    PYTHONPATH=. python tests/measure/count_step.py [--family gpu] [--state peaked] [--precision 4bit] [--kernels]
    PYTHONPATH=. python tests/measure/count_step.py --mlx-vlm           # where mlx-vlm 0.7.10 is installed

The step's graph is built as on a GPU and exported; nothing is computed, and no weight takes memory. A primitive counts
unless it is a view. What `mx.compile` fuses, and what is one primitive of `mx.fast` on a GPU only, counts as one. Bytes
are those of the inputs and outputs of each; of a gather those that it reads. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

VIEWS = {"Broadcast", "Copy", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"}
VIEWS |= {"StopGradient", "Transpose", "Unflatten", "View"}
CONTEXT, CANVAS, TEMPERATURE = 512, 256, 0.6
LISTED = 32  # tokens of a peaked position's list
real_compile, real_dequantize = mx.compile, mx.dequantize


class Counts:
    """Kernels by name, their bytes, and which of these are the right sides of products: weights, mostly."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.bytes = self.weights = 0

    def add(self, name: str, nbytes: int, kernels: int = 1) -> None:
        self.kernels[name] += kernels
        self.bytes += nbytes

    def exported(self, part: dict[str, Any]) -> None:
        """Take what `mx.export_function` tells."""
        if part["type"] == "primitive" and part["name"] not in VIEWS:
            self.add(part["name"], moved(part["name"], part["inputs"], part["outputs"]))
            if part["name"] in ("QuantizedMatmul", "Matmul"):
                self.weights += sum(map(nbytes, part["inputs"][1:]))


def nbytes(array: tuple[str, tuple[int, ...], mx.Dtype]) -> int:
    return prod(array[1]) * array[2].size


def moved(name: str, inputs: list, outputs: list) -> int:
    """Bytes that a primitive reads and writes."""
    made = sum(map(nbytes, outputs))
    if name in ("Gather", "GatherAxis"):
        return 2 * made + sum(map(nbytes, inputs[1:]))
    if name in ("Scatter", "ScatterAxis", "SliceUpdate", "DynamicSliceUpdate"):  # in place
        return 2 * sum(map(nbytes, inputs[1:]))
    if name in ("GatherQMM", "GatherMM"):  # of the experts' weights no more than is asked for
        used = min(1.0, prod(outputs[0][1][:-2]) / inputs[1][1][0])
        weights = [array for array in inputs[1:] if array[1][:1] == inputs[1][1][:1] and len(array[1]) > 2]
        return made + nbytes(inputs[0]) + int(used * sum(map(nbytes, weights)))
    return made + sum(map(nbytes, inputs))


def leaves(tree: Any) -> Iterator[mx.array]:
    """The arrays in lists, tuples and dicts."""
    if isinstance(tree, mx.array):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))


def like(tree: Any, make: Callable[[mx.array], mx.array]) -> Any:
    if isinstance(tree, mx.array):
        return make(tree)
    if isinstance(tree, list | tuple):
        made = [like(item, make) for item in tree]
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)
    if isinstance(tree, dict):
        return {name: like(item, make) for name, item in tree.items()}
    return tree


def blank(array: mx.array) -> mx.array:
    return mx.broadcast_to(mx.array(0, dtype=array.dtype), array.shape)


def tied(tree: Any, inputs: Iterable[mx.array]) -> Any:
    """Arrays like those of `tree` that come from `inputs` by no kernel of their own."""
    inputs = list(inputs)
    return like(tree, lambda array: mx.depends([blank(array)], inputs)[0])


class Patched:
    """`mx.compile`, `mx.fast` and `mx.fast.metal_kernel` as on a GPU: each call is so many kernels of `counts`."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.fused: dict[Any, int] = {}
        self.traces = 0

    def install(self, kernels: bool) -> None:
        """Before what is counted is imported: a decorator takes the function that is there then."""
        mx.compile, mx.fast.rms_norm, mx.fast.rope = self.compile, self.rms_norm, self.rope
        mx.dequantize, mx.async_eval = self.dequantize, lambda *_: None
        if kernels:
            from mlx_dgemma.mlx_backend import kernels as ours

            ours.launch, ours.used = self.launch, lambda name, dtype: True

    def compile_counting(self, function: Callable, **options) -> Callable:
        """`mx.compile`, and how often it traces."""

        def traced(*arguments: Any) -> Any:
            self.traces += 1
            return function(*arguments)

        return real_compile(traced, **options)

    def compile(self, function: Callable | None = None, *_, **__) -> Callable:
        if function is None:
            return self.compile
        return wraps(function)(lambda *arguments, **options: self.call(function, arguments, options))

    def call(self, function: Callable, arguments: tuple, options: dict) -> Any:
        result = function(*arguments, **options)
        inputs = [*leaves(arguments), *leaves(options)]
        key = function, *((a.shape, a.dtype) for a in inputs)
        if key not in self.fused:
            blanks = [mx.zeros_like(blank(array)) for array in inputs]
            left = iter(blanks)
            fresh = like(arguments, lambda _: next(left))
            named = {name: like(value, lambda _: next(left)) for name, value in options.items()}
            fused = real_compile(lambda *arrays: list(leaves(function(*refill(fresh, arrays), **named))))
            self.fused[key] = drawn(fused(*leaves(fresh))) - drawn(blanks)
        size = sum(array.nbytes for array in (*inputs, *leaves(result)))
        self.counts.add(function.__name__, size, self.fused[key])
        return tied(result, inputs)

    def fast(self, name: str, result: Any, inputs: list[mx.array]) -> Any:
        self.counts.add(name, sum(array.nbytes for array in (*inputs, *leaves(result))))
        return tied(result, inputs)

    def rms_norm(self, x: mx.array, weight: mx.array | None, eps: float, **_) -> mx.array:
        return self.fast("RMSNorm", x, [x] if weight is None else [x, weight])

    def launch(self, kernel: Any, inputs: list[mx.array], *rest: Any) -> list[mx.array]:
        """Stands for `kernels.launch`: all inputs are read once, the outputs written."""
        made = [blank(mx.zeros(shape, dtype)) for shape, dtype in rest[-1]]
        return self.fast(kernel.name, made, inputs)

    def dequantize(self, weight: mx.array, scales: mx.array, biases: mx.array | None = None, **options) -> mx.array:
        inputs = [array for array in (weight, scales, biases) if array is not None]
        return self.fast("Dequantize", real_dequantize(*inputs, **options), inputs)

    def rope(self, x: mx.array, *_, **options) -> mx.array:
        return self.fast("RoPE", x, [x])


def drawn(tree: Any) -> int:
    """Primitives of a graph that are no views."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *leaves(tree))
    found = dict(re.findall(r'{ (\d+) \[label ="(\w+)', graph.getvalue()))
    return sum(name not in VIEWS for name in found.values())


def refill(tree: Any, arrays: Iterable[mx.array]) -> Any:
    left = iter(arrays)
    return like(tree, lambda _: next(left))


def count(patched: Patched, step: Callable[..., Any], inputs: list[mx.array]) -> Counts:
    """Counts the graph that `step(*inputs)` builds."""
    patched.counts = counts = Counts()
    mx.export_function(counts.exported, lambda *arrays: list(leaves(step(*arrays))), *inputs)
    return counts


class Ours:
    """A model of the published shape whose weights are never made."""

    def __init__(self, options: argparse.Namespace):
        from mlx_dgemma.benchmark.subject import PRECISIONS, published
        from mlx_dgemma.mlx_backend import family, layers, model, network

        self.config, self.heavy = published("26b-a4b"), CANVAS if options.state == "flat" else 0
        path = {"cpu": family.CPU, "gpu": family.GPU, "matrix": family.MATRIX_GPU}[options.family]
        family.current = lambda: path
        dtype, recipe = PRECISIONS[options.precision]
        self.network, self.dtype, self.model = network.Network(self.config), getattr(mx, dtype), model.MLXModel
        for name, module in self.network.named_modules():
            if isinstance(module, layers.Linear) and (stored := recipe(name)):
                module.quantize(stored)
        self.network.set_dtype(self.dtype)
        self.network.model.decoder.embed_tokens.dtype = self.dtype
        mx.eval([layer.self_attn._wavelengths for layer in self.network.model.decoder.layers])

    def inputs(self) -> list[mx.array]:
        """Weights, K and V, the last hidden states and sums of the canvas."""
        buffers = []
        for layer in self.config.layers:
            shape = 1, layer.num_key_value_heads, CONTEXT + 2 * CANVAS, layer.head_dim
            buffers += [mx.zeros(shape, self.dtype)] * 2
        last = mx.zeros((CANVAS, self.config.hidden_size), self.dtype)
        return [*leaves(self.network.parameters()), *buffers, last, last.astype(mx.float32)]

    def _row(self, buffers: list[mx.array], hidden: mx.array, soft: mx.array) -> tuple[Any, Any]:
        """The model, and a row in a pass that is not the first."""
        from mlx_dgemma.mlx_backend import family, vocabulary
        from mlx_dgemma.mlx_backend.sweep import KEPT
        from mlx_dgemma.seam.model import Row

        model = self.model(self.network, self.config, self.dtype)
        cache = model.new_cache()
        for layer, keys, values in zip(cache.layers, buffers[::2], buffers[1::2], strict=True):
            layer.keys, layer.values, layer.end = keys, values, CONTEXT
        cache.length = CONTEXT
        tokens, shares = np.zeros((CANVAS, KEPT), np.int32), np.zeros((CANVAS, KEPT), np.float32)
        shares[:, :LISTED] = 1 / LISTED
        heavy = np.arange(CANVAS) < (self.heavy if family.current().lists else CANVAS)
        last = vocabulary.SoftEmbedding(
            hidden=hidden, temperature=TEMPERATURE, tokens=tokens, shares=shares, lost=heavy.astype(np.float32),
            heavy=heavy, soft=soft if heavy.any() else soft[:0], allowed=None,
        )  # fmt: skip
        row = Row(np.zeros(CANVAS, np.int32), cache, TEMPERATURE, np.zeros(CANVAS, np.float32))
        row.self_conditioning = vocabulary.Conditioning(last, None)
        return model, row

    def step(self, part: str) -> Callable[..., Any]:
        """What builds the graph of all of it, of the network up to the last hidden states, or of what the vocabulary
        takes: from these to the predictions, and to the next pass's mean embeddings."""
        from mlx_dgemma.mlx_backend.vocabulary import Readout

        def build(*arrays: mx.array) -> list[mx.array]:
            left = iter(arrays)
            self.network.update(like(self.network.parameters(), lambda _: next(left)))
            *buffers, last, soft = left
            model, row = self._row(buffers, last, soft)
            if part == "vocabulary":
                readout = Readout([row], [last], model.slices, model.cap)
                return [*readout.arrays, row.self_conditioning.embedding(model.slices, model.cap)]
            hidden = model.canvas_hidden([row])
            arrays = hidden if part == "network" else Readout([row], hidden, model.slices, model.cap).arrays
            return [*arrays, *row.cache.arrays]

        return build


class Theirs:
    """mlx-vlm's step, by its entropy-bound path, as examples/compare_step.py has it."""

    def __init__(self, options: argparse.Namespace):
        from mlx.utils import tree_flatten
        from mlx_vlm import utils

        from mlx_dgemma.benchmark.subject import shape
        from mlx_dgemma.checkpoint.names import published_name

        ours = Ours(options)
        weights = {published_name(path): array for path, array in tree_flatten(ours.network.parameters())}
        utils._load_safetensors = lambda file: weights
        layers = {path: module for path, module in ours.network.named_modules() if "scales" in module}
        stored = {
            path: {name: vars(m.quantization)[name] for name in ("bits", "group_size")} for path, m in layers.items()
        }
        config = {**shape("26b-a4b"), "dtype": str(ours.dtype).split(".")[-1], "vision_config": None}
        if stored:
            config["quantization"] = {"bits": 4, "group_size": 64, **stored}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            (Path(folder) / "model.safetensors").touch()
            self.model = utils.load_model(Path(folder), lazy=True)
        self.buffers, self.config = ours.inputs()[len(weights) : -2], ours.config
        self.canvas = mx.zeros((1, CANVAS), mx.int32)
        mx.eval(mx.random.state)  # or what made their first weights, which nobody uses, would count
        conditioning = self._step(self.canvas, self._cache(self.buffers), None)[0]
        self.conditioning = mx.zeros(conditioning.shape, conditioning.dtype)

    def _cache(self, buffers: list[mx.array]) -> list[Any]:
        cache = self.model.make_cache()
        for layer, keys, values in zip(cache, buffers[::2], buffers[1::2], strict=True):
            layer.keys, layer.values = keys[:, :, :CONTEXT], values[:, :, :CONTEXT]
            layer.offset = layer._idx = CONTEXT
        return cache

    def _step(self, canvas: mx.array, cache: list[Any], conditioning: mx.array | None) -> list[mx.array]:
        from mlx_vlm.generate import diffusion as d

        masks = self.model.diffusion_decoder_masks(canvas, cache)
        logits = self.model.diffusion_decoder_logits(canvas, cache, conditioning, masks) / TEMPERATURE
        argmax = mx.argmax(logits, axis=-1).astype(mx.int32)
        drawn = d._diffusion_sample_canvas(logits, mx.int32, 1.0)
        accepted = d._diffusion_entropy_transfer_mask(d._diffusion_token_entropy(logits), 0.1)
        noise = d._diffusion_initialize_canvas(1, CANVAS, logits.shape[-1], mx.int32)
        context = self.model.diffusion_prepare_self_conditioning()
        return [self.model.diffusion_self_conditioning(logits, context), mx.where(accepted, drawn, noise), argmax]

    def inputs(self) -> list[mx.array]:
        return [*leaves(self.model.parameters()), *self.buffers, self.canvas, self.conditioning]

    def step(self, part: str) -> Callable[..., Any]:
        """As `Ours.step`; the network is counted without self-conditioning, the vocabulary as the rest of it all."""

        def build(*arrays: mx.array) -> list[mx.array]:
            left = iter(arrays)
            self.model.update(like(self.model.parameters(), lambda _: next(left)))
            *buffers, canvas, conditioning = left
            cache = self._cache(buffers)
            if part == "network":
                masks = self.model.diffusion_decoder_masks(canvas, cache)
                return [self.model.model.decoder(canvas, cache=cache, decoder_attention_mask=masks)]
            return self._step(canvas, cache, conditioning)

        return build


def traces_of(options: argparse.Namespace, patched: Patched) -> list[int]:
    """Traces by `mx.compile` in each of a few steps, as positions become heavy and light."""
    mx.compile, mx.async_eval = patched.compile_counting, lambda *_: None
    subject, traces = Ours(options), []
    for subject.heavy in (100, 100, 31, 0, CANVAS, 100):
        before = patched.traces
        subject.step("all")(*subject.inputs())
        traces.append(patched.traces - before)
    return traces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("cpu", "gpu", "matrix"), default="gpu")
    parser.add_argument("--state", choices=("peaked", "flat"), default="peaked", help="of the canvas: what lists do")
    parser.add_argument("--precision", choices=("bf16", "8bit", "4bit"), default="4bit")
    parser.add_argument("--kernels", action="store_true", help="with the kernels of mlx_backend/kernels.py")
    parser.add_argument("--mlx-vlm", action="store_true")
    parser.add_argument("--traces", action="store_true", help="how often mx.compile traces, in each of a few steps")
    options = parser.parse_args()
    patched = Patched()
    if options.traces:
        print(json.dumps(traces_of(options, patched)))
        return
    patched.install(options.kernels)
    subject = (Theirs if options.mlx_vlm else Ours)(options)
    whole, network = (count(patched, subject.step(part), subject.inputs()) for part in ("all", "network"))
    if options.mlx_vlm:
        size, table = whole.bytes - network.bytes, whole.weights - network.weights
    else:
        vocabulary = count(patched, subject.step("vocabulary"), subject.inputs())
        size, table = vocabulary.bytes, vocabulary.weights
    total, body = whole.kernels.total(), network.kernels.total()
    print(json.dumps({
        "kernels": total, "network": body, "vocabulary": total - body,
        "vocabulary_bytes": size, "of_these_products_right_sides": table, "by_name": dict(whole.kernels.most_common()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
