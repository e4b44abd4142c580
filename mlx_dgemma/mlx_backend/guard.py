"""Decides which of our kernels are used: those that this GPU compiles, runs right, and faster than MLX's operations.

Each is compared with these when a model is first loaded, in float32 and in bfloat16. What came of it is kept in a file
for the chip, the version of MLX and the kernels' text; MLX_DGEMMA_KERNELS=0 turns all kernels off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint.config import Quantization
from ..seam.timing import median_seconds
from . import kernels, metal
from .layers import Embedding, ExpertLinear
from .network import geglu
from .sweep import Slices, Sweep, SweepInputs

BOUNDS = {mx.float32: 1e-4, mx.bfloat16: 2e-2}  # of the largest difference over the largest number
FORMATS = {
    "plain": None, "affine 4": Quantization(bits=4, group_size=64), "affine 8": Quantization(bits=8, group_size=64),
    "mxfp4": Quantization(bits=4, group_size=32, mode="mxfp4"),
    "nvfp4": Quantization(bits=4, group_size=16, mode="nvfp4"),
    "mxfp8": Quantization(bits=8, group_size=32, mode="mxfp8"),
}  # fmt: skip
Compute = Callable[[], list[mx.array]]


@dataclass(frozen=True)
class Sizes:
    """Sizes as a canvas has them, but with fewer and smaller experts."""

    tokens: int = 256
    hidden: int = 1408
    heads: int = 16
    dim: int = 256
    experts: int = 32
    top_k: int = 8
    inner: int = 704
    vocabulary: int = 32768


def _random(seed: int, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def _rms(x: mx.array, weight: mx.array | None) -> mx.array:
    return mx.fast.rms_norm(x, weight, 1e-6)


def heads_case(sizes: Sizes, dtype: mx.Dtype) -> tuple[Compute, Compute]:
    widths = sizes.heads, sizes.heads // 2, sizes.heads // 2
    projected = tuple(_random(i, (sizes.tokens, n * sizes.dim), dtype) for i, n in enumerate(widths))
    norms = _random(3, (sizes.dim,), dtype), _random(4, (sizes.dim,), dtype)
    turning = 10_000 ** (mx.arange(sizes.dim // 4) * (2 / sizes.dim))
    wavelengths = mx.concatenate([turning, mx.full((sizes.dim // 4,), mx.inf)])
    positions = mx.arange(500, 500 + sizes.tokens, dtype=mx.int32)

    def theirs() -> list[mx.array]:
        made = [x.reshape(1, sizes.tokens, -1, sizes.dim) for x in projected]
        q, k, v = (_rms(x, w).transpose(0, 2, 1, 3) for x, w in zip(made, (*norms, None), strict=True))
        options = {"traditional": False, "base": None, "scale": 1.0, "offset": 500, "freqs": wavelengths}
        return [mx.fast.rope(q, sizes.dim, **options), mx.fast.rope(k, sizes.dim, **options), v]

    return lambda: kernels.heads(projected, norms, positions, wavelengths, 1e-6), theirs


def residual_case(sizes: Sizes, dtype: mx.Dtype) -> tuple[Compute, Compute]:
    x, y = (_random(i, (sizes.tokens, sizes.hidden), dtype) for i in range(2))
    norms = [_random(i, (sizes.hidden,), dtype) for i in range(2, 6)]

    def theirs() -> list[mx.array]:
        joined = x + _rms(y, norms[0])
        return [joined, *(_rms(joined, weight) for weight in norms[1:])]

    return lambda: kernels.residual(x, y, norms, 1e-6), theirs


def tail_case(sizes: Sizes, dtype: mx.Dtype) -> tuple[Compute, Compute]:
    x, dense = (_random(i, (sizes.tokens, sizes.hidden), dtype) for i in range(2))
    pairs = _random(2, (sizes.tokens * sizes.top_k, sizes.hidden), dtype)
    weights = mx.softmax(_random(3, (sizes.tokens, sizes.top_k), mx.float32), axis=-1)
    norms = [_random(i, (sizes.hidden,), dtype) for i in range(4, 8)]
    scalars = 1 + _random(8, (sizes.tokens, 1), dtype)

    def theirs() -> list[mx.array]:
        y = (weights[:, None].astype(dtype) @ pairs.reshape(*weights.shape, -1)).squeeze(1)
        joined = (x + _rms(_rms(dense, norms[0]) + _rms(y, norms[1]), norms[2])) * scalars
        return [joined, _rms(joined, norms[3])]

    return lambda: kernels.tail(x, dense, pairs, weights, norms, scalars, 1e-6), theirs


def route_case(sizes: Sizes, dtype: mx.Dtype) -> tuple[Compute, Compute]:
    """Compared are the weights [N, E], the experts in ascending order, and where each ends."""
    scores, scale = _random(0, (sizes.tokens, sizes.experts), mx.float32), _random(1, (sizes.experts,), dtype)
    scores = mx.argsort(scores, axis=-1).astype(dtype)  # no two of a token are equal

    def weighed(experts: mx.array, weights: mx.array) -> mx.array:
        return mx.put_along_axis(mx.zeros(scores.shape), experts.reshape(weights.shape), weights, axis=-1)

    def ours() -> list[mx.array]:
        routing = kernels.route(scores, scale, sizes.top_k, 0.1)
        return [weighed(routing.experts, routing.weights), routing.experts[routing.order], routing.ends]

    def theirs() -> list[mx.array]:
        experts = mx.argpartition(scores, -sizes.top_k, axis=-1)[:, -sizes.top_k :]
        chosen = mx.take_along_axis(scores, experts, axis=-1).astype(mx.float32) * 0.1
        weights = mx.softmax(chosen, axis=-1) * scale[experts].astype(mx.float32)
        ascending = experts.flatten()[mx.argsort(experts.flatten())]
        ends = (ascending[None] <= mx.arange(sizes.experts)[:, None]).sum(axis=-1)
        return [weighed(experts, weights), ascending, ends]

    return ours, theirs


def _expert_layer(seed: int, shape: tuple[int, ...], stored: Quantization | None, dtype: mx.Dtype) -> ExpertLinear:
    layer, weight = ExpertLinear(*shape), _random(seed, shape, dtype) * shape[-1] ** -0.5
    if stored is None:
        layer.weight = weight
        return layer
    layer.quantize(stored)
    made = mx.quantize(weight, **vars(stored))
    layer.load_weights(list(zip(("weight", "scales", "biases"), made, strict=False)))
    return layer


def experts_case(sizes: Sizes, dtype: mx.Dtype, stored: Quantization | None) -> tuple[Compute, Compute]:
    gate_up = _expert_layer(0, (sizes.experts, 2 * sizes.inner, sizes.hidden), stored, dtype)
    down = _expert_layer(1, (sizes.experts, sizes.hidden, sizes.inner), stored, dtype)
    x = _random(2, (sizes.tokens, sizes.hidden), dtype)
    chosen = mx.argsort(_random(3, (sizes.tokens, sizes.experts), mx.float32), axis=-1)[:, : sizes.top_k]
    chosen = mx.where(chosen == 1, 0, chosen).flatten().astype(mx.int32)  # an expert may have nothing to do
    order = mx.argsort(chosen).astype(mx.int32)
    ends = (chosen[None] <= mx.arange(sizes.experts)[:, None]).sum(axis=-1).astype(mx.int32)
    routing = kernels.Routing(chosen, mx.ones((sizes.tokens, sizes.top_k)), order, ends)

    def theirs() -> list[mx.array]:
        ascending = chosen[order].astype(mx.uint32)
        y = gate_up(x[order // sizes.top_k], ascending, ascending=True)
        gate, up = mx.split(y, 2, axis=-1)
        y = down(geglu(gate, up), ascending, ascending=True)
        return [y[mx.argsort(order)]]

    def ours() -> list[mx.array]:
        hidden = kernels.multiply(gate_up, x, routing, gated=True)
        return [kernels.multiply(down, hidden, routing, gated=False)]

    return ours, theirs


def vocabulary_case(sizes: Sizes, dtype: mx.Dtype) -> tuple[Compute, Compute]:
    """A whole sweep, with half of the positions heavy and some tokens barred, both with the kernel and without."""
    table = Embedding(sizes.vocabulary, sizes.dim)
    table.weight, table.dtype = _random(0, table.weight.shape, dtype), dtype
    spread = mx.linspace(0.02, 0.5, sizes.tokens)[:, None].astype(dtype)
    uniforms = mx.random.uniform(shape=(sizes.tokens,), key=mx.random.key(3))
    inputs = SweepInputs(
        _random(1, (sizes.tokens, sizes.dim), dtype) * spread, mx.full((sizes.tokens,), 0.6), uniforms,
        np.arange(sizes.tokens) % 2 == 0,
    )  # fmt: skip
    inputs.allowed = mx.random.uniform(shape=(2, sizes.vocabulary), key=mx.random.key(2)) < 0.5
    inputs.allowed_index = mx.arange(sizes.tokens) % 2

    def sweep(by_kernel: bool) -> list[mx.array]:
        run = Sweep(Slices(table), inputs, 30.0)
        run.constants = run.kernel_constants() if by_kernel else None
        result = run.run()
        listed = mx.put_along_axis(mx.zeros((sizes.tokens, sizes.vocabulary)), result.tokens, result.shares, axis=-1)
        return [result.argmax, result.entropy, result.confidence, result.top, result.normaliser, result.soft, listed]

    return lambda: sweep(True), lambda: sweep(False)


def cases(sizes: Sizes, dtype: mx.Dtype) -> Iterator[tuple[str, Callable[[], tuple[Compute, Compute]]]]:
    """Names, and what makes ours and theirs."""
    yield "heads", lambda: heads_case(sizes, dtype)
    yield "residual", lambda: residual_case(sizes, dtype)
    yield "route", lambda: route_case(sizes, dtype)
    yield "tail", lambda: tail_case(sizes, dtype)
    yield "vocabulary", lambda: vocabulary_case(sizes, dtype)
    for name, stored in FORMATS.items():
        yield f"experts {name}", lambda stored=stored: experts_case(sizes, dtype, stored)


def difference(ours: list[mx.array], theirs: list[mx.array]) -> float:
    """The largest difference over the largest number; infinite where integers differ, or a number is not finite."""
    worst = 0.0
    for actual, expected in zip(ours, theirs, strict=True):
        if mx.issubdtype(expected.dtype, mx.floating):
            actual, expected = actual.astype(mx.float32), expected.astype(mx.float32)
            error = mx.abs(actual - expected).max().item() / max(mx.abs(expected).max().item(), 1e-30)
        else:
            error = 0.0 if mx.array_equal(actual.astype(expected.dtype), expected).item() else float("inf")
        worst = max(worst, error if error == error else float("inf"))
    return worst


def milliseconds(compute: Compute) -> float:
    return 1e3 * median_seconds(lambda: mx.eval(compute()), mx.synchronize, 5)


def judge(make: Callable[[], tuple[Compute, Compute]], bound: float) -> dict[str, object]:
    """Compare and time -> `error`, milliseconds of both, whether it is `used`; or a `note` why it cannot run."""
    try:
        ours, theirs = make()
        error = difference(ours(), theirs())
        ms, ms_of_mlx = (milliseconds(compute) for compute in (ours, theirs))
    except (RuntimeError, ValueError, TypeError) as wrong:  # what Metal's compiler says is long
        return {"used": False, "note": " ".join(str(wrong).split())[:200]}
    return {"error": error, "ms": ms, "ms_of_mlx": ms_of_mlx, "used": error <= bound and ms < ms_of_mlx}


def judge_all(sizes: Sizes) -> dict[str, dict]:
    """Judge each kernel in each dtype. Those between the products are used together: where all are right, and as fast
    in sum."""
    verdicts = {}
    for dtype, bound in BOUNDS.items():
        for name, make in cases(sizes, dtype):
            verdicts[f"{name} {dtype}"] = judge(make, bound)
            mx.clear_cache()
        glue = [verdicts[f"{name} {dtype}"] for name in kernels.GLUE]
        right = all(each.get("error", float("inf")) <= bound for each in glue)
        faster = right and sum(each["ms"] - each["ms_of_mlx"] for each in glue) < 0
        for each in glue:
            each["used"] = faster
    return verdicts


def verdicts_file() -> Path:
    """The file of this chip's verdicts."""
    text = f"{mx.device_info(mx.gpu)} {mx.__version__} {Path(metal.__file__).read_text()} {Path(__file__).read_text()}"
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlx_dgemma"
    return folder / f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def choose(*, afresh: bool = False) -> dict[str, dict]:
    """Find out which kernels are used on this machine, by the file or by trying `afresh`; none without Metal."""
    kernels.verdicts.clear()
    if not mx.metal.is_available() or os.environ.get("MLX_DGEMMA_KERNELS") == "0":
        return kernels.verdicts
    file = verdicts_file()
    with contextlib.suppress(OSError, ValueError):
        kernels.verdicts.update({} if afresh else json.loads(file.read_text(encoding="utf-8")))
    if not kernels.verdicts:
        kernels.verdicts.update(judge_all(Sizes()))
        with contextlib.suppress(OSError):  # it is only found out again
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(kernels.verdicts, indent=1), encoding="utf-8")
    return kernels.verdicts
