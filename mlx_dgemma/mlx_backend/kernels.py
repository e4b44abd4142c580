"""Our own kernels for Metal: what each computes, over which threads. `metal.py` has their bodies, `guard.py` finds out
which of them are right and faster on this machine.

Arrays are as in `network.py` and `sweep.py`: N tokens, D numbers each, H heads, E experts of which a token takes K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mlx.core as mx

from . import metal
from .layers import ExpertLinear

Outputs = list[tuple[tuple[int, ...], mx.Dtype]]
THREADS = 256  # of a row
ROUTING = 1024  # threads that choose experts
GLUE = ("heads", "residual", "route", "tail")  # used together or not at all
verdicts: dict[str, dict] = {}  # what `guard.choose` found: a name and a dtype -> `used`, and why
MODES = {"affine": 1, "mxfp4": 2, "nvfp4": 3, "mxfp8": 4}
TILE = 16  # rows of one expert that are multiplied together


@dataclass(frozen=True)
class Kernel:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str
    helpers: str = ""

    @property
    def header(self) -> str:
        return metal.SHARED + self.helpers


HEADS = Kernel(
    "heads", ("queries", "keys", "values", "q_weight", "k_weight", "positions", "wavelengths", "eps"), ("q", "k", "v"),
    metal.HEADS,
)  # fmt: skip
RESIDUAL = Kernel(
    "residual", ("x", "y", "post", "dense_weight", "sparse_weight", "routing_weight", "eps"),
    ("residual", "dense", "sparse", "routing"), metal.RESIDUAL, metal.ROW_SUM,
)  # fmt: skip
TAIL = Kernel(
    "tail",
    ("x", "dense", "pairs", "weights", "dense_weight", "sparse_weight", "post", "next_weight", "scalars", "eps"),
    ("residual", "normed"), metal.TAIL, metal.ROW_SUM,
)  # fmt: skip
ROUTE = Kernel("route", ("scores", "scale", "factor", "size"), ("experts", "weights", "order", "ends"), metal.ROUTE)
EXPERTS = Kernel("experts", ("x", "weight", "scales", "biases", "order", "ends"), ("y",), metal.EXPERTS, metal.UNPACK)
VOCABULARY = Kernel(
    "vocabulary",
    ("raw", "temperature", "top_before", "heavy", "cap", "reach", "first_token", "count_before", "tokens_before",
     "listed_before"),
    ("top", "fade", "place", "masses", "heat", "narrow", "count", "tokens", "listed"),
    metal.VOCABULARY, metal.ROW_SUM,
)  # fmt: skip


@cache
def _built(kernel: Kernel):
    return mx.fast.metal_kernel(
        name=f"mlx_dgemma_{kernel.name}", input_names=list(kernel.inputs), output_names=list(kernel.outputs),
        source=kernel.body, header=kernel.header,
    )  # fmt: skip


def launch(
    kernel: Kernel, inputs: list[mx.array], template: dict[str, mx.Dtype | int | bool],
    grid: tuple[int, int, int], threadgroup: tuple[int, int, int], outputs: Outputs,
) -> list[mx.array]:  # fmt: skip
    """Make `outputs`, shapes and dtypes, from `inputs`. `grid` counts threads. Lazy."""
    shapes, dtypes = zip(*outputs, strict=True)
    return _built(kernel)(
        inputs=inputs, template=list(template.items()), grid=grid, threadgroup=threadgroup,
        output_shapes=list(shapes), output_dtypes=list(dtypes),
    )  # fmt: skip


def used(name: str, dtype: mx.Dtype) -> bool:
    """Return whether the kernel is right and faster than MLX's operations on this machine."""
    return verdicts.get(f"{name} {dtype}", {}).get("used", False)


def heads(
    projected: tuple[mx.array, mx.array, mx.array], norms: tuple[mx.array, mx.array], positions: mx.array,
    wavelengths: mx.array, eps: float,
) -> list[mx.array]:  # fmt: skip
    """Queries [N, Q * D], keys and values [N, G * D] -> [1, Q, N, D], [1, G, N, D] twice: normed, and turned by RoPE to
    `positions` [N] int32, but for the values."""
    queries, keys, _ = projected
    tokens, dim = len(queries), norms[0].size
    q, g = queries.shape[1] // dim, keys.shape[1] // dim
    constants = {"T": queries.dtype, "D": dim, "Q": q, "G": g}
    inputs = [*projected, *norms, positions, wavelengths.astype(mx.float32), mx.array([eps])]
    outputs = [((1, heads, tokens, dim), queries.dtype) for heads in (q, g, g)]
    return launch(HEADS, inputs, constants, (32, q + 2 * g, tokens), (32, 1, 1), outputs)


def residual(x: mx.array, y: mx.array, norms: list[mx.array], eps: float) -> list[mx.array]:
    """[N, D] each -> x + norm(y) by the first of `norms`, and its norms by the three others."""
    constants = {"T": x.dtype, "D": x.shape[1], "THREADS": THREADS}
    outputs = [(x.shape, x.dtype)] * 4
    inputs = [x, y, *norms, mx.array([eps])]
    return launch(RESIDUAL, inputs, constants, (THREADS * len(x), 1, 1), (THREADS, 1, 1), outputs)


def tail(
    x: mx.array, dense: mx.array, pairs: mx.array, weights: mx.array, norms: list[mx.array], scalars: mx.array,
    eps: float,
) -> list[mx.array]:  # fmt: skip
    """Residual and dense [N, D], results of the pairs [N * K, D], their weights [N, K] -> the layer's result, and its
    norm for the next. `norms`: of dense, of the experts' sum, of both, the next layer's. `scalars`: [1], or [N, 1]."""
    constants = {"T": x.dtype, "D": x.shape[1], "K": weights.shape[1], "MIXED": scalars.size > 1, "THREADS": THREADS}
    inputs = [x, dense, pairs, weights, *norms, scalars, mx.array([eps])]
    return launch(TAIL, inputs, constants, (THREADS * len(x), 1, 1), (THREADS, 1, 1), [(x.shape, x.dtype)] * 2)


@dataclass(frozen=True)
class Routing:
    experts: mx.array  # [N * K] int32
    weights: mx.array  # [N, K] float32
    order: mx.array  # [N * K] int32: pairs of a token and an expert, by expert
    ends: mx.array  # [E] int32: where each expert's pairs end in it


def route(scores: mx.array, scale: mx.array, top_k: int, factor: float) -> Routing:
    """Choose by `scores` [N, E] times `factor`; K is 32 at most."""
    (tokens, experts), pairs = scores.shape, len(scores) * top_k
    constants = {"T": scores.dtype, "E": experts, "K": top_k, "THREADS": ROUTING}
    outputs = [((pairs,), mx.int32), ((tokens, top_k), mx.float32), ((pairs,), mx.int32), ((experts,), mx.int32)]
    inputs = [scores, scale, mx.array([factor]), mx.array([tokens])]
    return Routing(*launch(ROUTE, inputs, constants, (ROUTING, 1, 1), (ROUTING, 1, 1), outputs))


def multiplies(layer: ExpertLinear, dtype: mx.Dtype) -> bool:
    """Return whether `multiply` is right and faster for weights that are stored so."""
    stored = layer.quantization
    if type(layer) is not ExpertLinear or layer.width % 32 or "weight_scale_2" in layer:
        return False
    name = "plain" if stored is None else stored.mode if stored.mode != "affine" else f"affine {stored.bits}"
    return used(f"experts {name}", dtype)


def tiles_at_most(pairs: int, experts: int) -> int:
    """Tiles of up to TILE rows, of which each begins at an expert's rows or behind another tile of it."""
    return min(pairs, experts + pairs // TILE)


def multiply(layer: ExpertLinear, x: mx.array, routing: Routing, *, gated: bool) -> mx.array:
    """A product with each pair's expert. `gated`: x [N, D] by token -> gelu(gate) * up [pairs, out / 2], by order of
    experts; otherwise x [pairs, in] in that order -> [pairs, out] by pair."""
    pairs, stored = routing.order.size, layer.quantization
    experts, out = layer.weight.shape[:2]
    width = out // 2 if gated else out
    constants = {
        "T": x.dtype, "D": layer.width, "M": width, "E": experts, "K": routing.weights.shape[1], "GATED": gated,
        "MODE": MODES[stored.mode] if stored else 0, "BITS": stored.bits if stored else 8,
        "GROUP": stored.group_size if stored else 32,
    }  # fmt: skip
    scales = layer.scales if stored else layer.weight  # what the format lacks is not read
    inputs = [x, layer.weight, scales, layer.get("biases", scales), routing.order, routing.ends]
    grid = 64 * -(-width // (32 if gated else 64)), tiles_at_most(pairs, experts), 1
    [y] = launch(EXPERTS, inputs, constants, grid, (64, 1, 1), [((pairs, width), x.dtype)])
    return y


@dataclass(frozen=True)
class SweepConstants:
    """The inputs that all slices of a sweep share."""

    temperature: mx.array  # [T, 1] float32
    slots: mx.array  # [T] int32: each position's row of `Slice.narrow`, -1 for none
    heavy: int  # rows of it
    cap: mx.array  # [1] float32
    reach: mx.array  # [1] float32, below the top; less than 0: no lists
    kept: int  # tokens of a list
    listed: bool


def vocabulary(
    raw: mx.array, first: int, top: mx.array, lists: tuple[mx.array, ...], shared: SweepConstants, block: int
) -> list[mx.array]:
    """A slice's raw logits [T, S] -> `sweep.Slice`'s top, fade, place, masses, heat, narrow, and `sweep.Lists`."""
    (T, S), count = raw.shape, max(shared.heavy, 1)
    constants = {
        "T": raw.dtype, "S": S, "B": block, "KEPT": shared.kept, "LISTED": shared.listed, "THREADS": THREADS,
    }  # fmt: skip
    one = (T, 1), mx.float32
    outputs = [one, one, ((T, 1), mx.int32), ((T, S // block), mx.float32), one, ((count, S), raw.dtype)]
    outputs += [((T, 1), mx.int32), ((T, shared.kept), mx.int32), ((T, shared.kept), mx.float32)]
    inputs = [raw, shared.temperature, top, shared.slots, shared.cap, shared.reach, mx.array([first]), *lists]
    return launch(VOCABULARY, inputs, constants, (THREADS * T, 1, 1), (THREADS, 1, 1), outputs)
