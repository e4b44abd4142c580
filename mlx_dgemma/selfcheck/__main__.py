"""`python -m mlx_dgemma.selfcheck`: is this machine's arithmetic right, and how fast is each part of it?

Each part of a pass runs on the GPU, on MLX's CPU device in float32, and in NumPy in float64 by formulas that share no
line with the network; without a GPU it is the CPU device that is checked. Random numbers and the embedded model only.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from ..terminal.command import Parser, run

NAME = "mlx_dgemma.selfcheck"
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # of `relative`; TF32 would make 3e-4 of float32
VOCABULARY_BOUND = 5e-4  # an error of a logit, of up to 30 / temperature, is a relative one of its probability
TASKS = {  # prompt -> its one right answer
    "Solve this sudoku:\n...3\n.124\n1342\n2.3.": "4213\n3124\n1342\n2431",
    "Extract JSON: Eve, a vet from Oslo, is 43 years old.": '{"name": "Eve", "age": 43, "job": "vet", "city": "Oslo"}',
    "Write a function first(a, w) that adds w to the first of a.": "def first(a, w):\n    return a[0] + w\n",
}
Arrays = list[np.ndarray]
Prepare = Callable[[Any], Callable[[], list]]  # MLX dtype -> what is timed, which returns lazy arrays


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """As in the model where no other number is given; tests take less."""

    queries: int = 256  # a canvas, or a chunk of text
    past: int = 1023
    heads: int = 16
    experts: int = 8  # of 128, with as many rows each
    rows: int = 128
    positions: int = 64  # of 256
    vocabulary: int = 32768  # of 262,144
    width: int = 256  # of 2,816


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    device: str  # that is checked: "gpu" or "cpu"
    seconds: float | None = None  # median of a few runs
    reference_seconds: float | None = None  # of the CPU device, where it is the GPU that is checked
    error: float | None = None  # against the CPU device, likewise
    exact_error: float | None = None  # against NumPy in float64
    bound: float | None = None  # of both errors
    peak_memory: int | None = None  # bytes
    verdict: str  # ok, differs, failed (it raised), not available (a kernel that a device need not have)
    note: str = ""


def device() -> str:
    import mlx.core as mx

    return "gpu" if mx.is_available(mx.gpu) else "cpu"


def timed(compute: Callable[[], list]) -> tuple[Arrays, float]:
    """What `compute` makes, and the median seconds of a few runs behind a warm-up. On a CPU a long warm-up counts."""
    import mlx.core as mx

    seconds: list[float] = []
    while len(seconds) < 6 and sum(seconds[1:]) < 0.5:
        start = time.perf_counter()
        mx.eval(found := compute())
        mx.synchronize()
        seconds.append(time.perf_counter() - start)
        if mx.default_device() == mx.cpu and seconds[0] > 0.5:
            break
    return [np.array(mx.array(array).astype(mx.float32)) for array in found], statistics.median(seconds[1:] or seconds)


def relative(found: Arrays, expected: Arrays) -> tuple[float, str]:
    """The largest difference over the largest expected value. RuntimeError if a number is not finite."""
    for array in (*found, *expected):
        if wrong := int((~np.isfinite(array)).sum()):
            raise RuntimeError(f"{wrong} of {array.size} numbers are not finite")
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True)), ""


def compare(
    name: str, prepare: Prepare, exact: Callable[[], Arrays], bound: float, *, dtype: str = "float32",
    reference: Prepare | None = None, measure: Callable[[Arrays, Arrays], tuple[float, str]] = relative,
) -> Part:  # fmt: skip
    """`prepare(dtype)` on the device, against `reference` (or itself) in float32 on the CPU device, and `exact()`.
    `measure` makes an error and a note of what was found and what was expected."""
    import mlx.core as mx

    mx.reset_peak_memory()
    with mx.stream(getattr(mx, device())):
        found, seconds = timed(prepare(getattr(mx, dtype)))
    peak_memory = mx.get_peak_memory()
    exact_error, note = measure(found, exact())
    worst, error, reference_seconds = exact_error, None, None
    if device() == "gpu":
        with mx.stream(mx.cpu):
            expected, reference_seconds = timed((reference or prepare)(mx.float32))
        error, other = measure(found, expected)
        worst, note = max(error, exact_error), note if exact_error > bound else other
    mx.clear_cache()
    return Part(
        name=name, device=device(), seconds=seconds, reference_seconds=reference_seconds, error=error,
        exact_error=exact_error, bound=bound, peak_memory=peak_memory, note=note,
        verdict="ok" if worst <= bound else "differs",
    )  # fmt: skip


def attention(name: str, sizes: Sizes, *, dim: int, causal: bool = False, fused: bool = False, dtype: str) -> Part:
    """Attention of a canvas or of a chunk of text; or of a canvas with the fused kernel, which network.py does not ask
    for and a device may lack."""
    import mlx.core as mx

    from ..mlx_backend.attention import attend

    groups, window = {256: (8, sizes.past + 1), 512: (2, None)}[dim]
    keys, rng = sizes.past + sizes.queries, np.random.default_rng(dim)
    arrays = [rng.normal(0, 2 / dim**0.5, (1, sizes.heads, sizes.queries, dim))]  # scores of a few units
    arrays += [rng.normal(size=(1, groups, keys, dim)) for _ in "kv"]

    def prepare(dtype: mx.Dtype, force: bool = False) -> Callable[[], list]:
        inputs = [mx.array(array).astype(dtype) for array in arrays]
        if force:
            return lambda: [mx.fast.scaled_dot_product_attention(*inputs, scale=1.0, force_fused=True)]
        return lambda: [attend(*inputs, causal=causal, window=window)]

    def exact() -> Arrays:
        q, k, v = arrays
        q = q.reshape(groups, -1, sizes.queries, dim)  # head h looks at key head h // (heads / groups)
        scores = q @ k[0][:, None].swapaxes(-1, -2)
        if causal:
            distance = np.arange(sizes.past, keys)[:, None] - np.arange(keys)
            scores[..., (distance < 0) | (distance >= (window or keys))] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return [(weights @ v[0][:, None]).reshape(1, -1, sizes.queries, dim)]

    try:
        return compare(name, partial(prepare, force=fused), exact, BOUNDS[dtype], dtype=dtype, reference=prepare)
    except ValueError as error:
        if not fused:
            raise
        return Part(name=name, device=device(), verdict="not available", note=str(error).split("] ")[-1])


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], bits: int | None) -> dict[str, np.ndarray]:
    """The arrays of a `Linear` with values of about 1 / sqrt(in), plain or in groups of 64."""
    *outer, width = shape
    if bits is None:
        return {"weight": rng.standard_normal(shape, dtype=np.float32) * np.float32(width**-0.5)}
    packed = rng.integers(2**32, size=(*outer, width * bits // 32), dtype=np.uint32)
    scales = rng.uniform(0.5, 1.5, (*outer, width // 64)).astype(np.float32) * np.float32(4 / 2**bits * width**-0.5)
    return {"weight": packed, "scales": scales, "biases": scales * np.float32((1 - 2**bits) / 2)}


def exact_weight(arrays: dict[str, np.ndarray], bits: int | None) -> np.ndarray:
    """The same, [out, in] float64, unpacked: the lowest bits are the first value."""
    if bits is None:
        return arrays["weight"].astype(np.float64)
    values = arrays["weight"][..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & np.uint32(2**bits - 1)
    grouped = values.reshape(len(values), -1, 64) * arrays["scales"].astype(np.float64)[..., None]
    return (grouped + arrays["biases"][..., None]).reshape(len(values), -1)


def filled(linear, arrays: dict[str, np.ndarray], bits: int | None, dtype):
    """`linear` with the arrays of `random_weight`, the floats among them as `dtype`."""
    import mlx.core as mx

    from ..checkpoint.config import Quantization

    if bits is not None:
        linear.quantize(Quantization(bits=bits, group_size=64))
    linear.load_weights([(name, mx.array(array)) for name, array in arrays.items()])
    linear.set_dtype(dtype)
    return linear


def experts(name: str, sizes: Sizes, *, shape: tuple[int, int], bits: int | None, dtype: str) -> Part:
    """`ExpertLinear` on rows sorted by expert: gather_qmm or gather_mm on a GPU, one product an expert on the CPU."""
    import mlx.core as mx

    from ..mlx_backend import arithmetic, layers

    rng = np.random.default_rng(shape[1])
    arrays = random_weight(rng, (sizes.experts, *shape), bits)
    x = rng.standard_normal((sizes.rows, shape[1]), dtype=np.float32)
    chosen = np.sort(rng.integers(1, sizes.experts, sizes.rows)).astype(np.uint32)  # nobody asks expert 0

    def prepare(dtype: mx.Dtype) -> Callable[[], list]:
        layer = filled(layers.ExpertLinear(sizes.experts, *shape), arrays, bits, dtype)
        inputs, index = mx.array(x).astype(dtype), mx.array(chosen)
        return lambda: [layer(arithmetic.bring(inputs), arithmetic.bring(index))]

    def exact() -> Arrays:
        y = np.zeros((sizes.rows, shape[0]))
        for expert in set(chosen.tolist()):
            own = {name: array[expert] for name, array in arrays.items()}
            y[chosen == expert] = x[chosen == expert].astype(np.float64) @ exact_weight(own, bits).T
        return [y]

    return compare(name, prepare, exact, BOUNDS[dtype], dtype=dtype)


def vocabulary(name: str, sizes: Sizes, *, spread: float) -> Part:
    """`sweep.Sweep` over an 8-bit table. Two samples are both right where the uniform lies within a rounding of the
    boundary between them, and so are two argmaxes of one logit."""
    import mlx.core as mx

    from ..mlx_backend.layers import Embedding
    from ..mlx_backend.sweep import Asked, Slices, Sweep

    L, V, cap, temperature = sizes.positions, sizes.vocabulary, 30.0, 0.8
    rng, each = np.random.default_rng(int(spread)), np.arange(L)
    arrays = random_weight(rng, (V, sizes.width), 8)
    hidden = rng.normal(0, spread, (L, sizes.width)).astype(np.float32)
    uniforms = rng.random(L, dtype=np.float32)
    uniforms[:2] = 0, np.nextafter(np.float32(1), np.float32(0))
    logits = np.tanh(hidden.astype(np.float64) @ exact_weight(arrays, 8).T / cap) * (cap / temperature)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    sums = np.cumsum(shares, axis=1)

    def prepare(dtype: mx.Dtype) -> Callable[[], list]:
        table, inputs = filled(Embedding(V, sizes.width), arrays, 8, dtype), mx.array(hidden)
        asked = Asked(inputs, np.full(L, temperature, np.float32), uniforms, np.ones(L, dtype=bool))

        def compute() -> list:
            swept = vars(Sweep(Slices(table), asked, cap).run())
            return [mx.array(swept[name]) for name in ("argmax", "sample", "entropy", "confidence", "soft")]

        return compute

    sample = np.minimum((sums <= uniforms[:, None]).sum(axis=1), V - 1)
    right = [logits.argmax(axis=1), sample, -(shares * np.log(shares)).sum(axis=1), shares[each, sample]]
    right += [shares @ exact_weight(arrays, 8)]

    def weighed(top: np.ndarray, sample: np.ndarray, *others: np.ndarray) -> Arrays:
        """The argmax's logit, the nearest uniform of the sample, entropy, confidence over its own, soft embedding."""
        top, sample = top.astype(int), sample.astype(int)
        if max(top.max(), sample.max()) >= V:
            raise RuntimeError(f"token {max(top.max(), sample.max())} is past the vocabulary of {V}")
        share = shares[each, sample]
        nearest = np.clip(uniforms, sums[each, sample] - share, sums[each, sample])
        return [logits[each, top], nearest, others[0], others[1] / share, others[2]]

    def measure(found: Arrays, expected: Arrays) -> tuple[float, str]:
        other = [int((a != b).sum()) for a, b in zip(found[:2], expected[:2], strict=True)]
        error, _ = relative(weighed(*found), weighed(*expected))
        return error, f"of {L}, other argmax {other[0]}, other sample {other[1]}"

    return compare(name, prepare, lambda: right, VOCABULARY_BOUND, measure=measure)


def generation(name: str, sizes: Sizes, *, loaded: tuple) -> Part:
    """Whole answers of the embedded model. The error counts the tokens that are other ones."""
    import mlx.core as mx

    from ..writing.answer import Answer, prompt_tokens
    from ..writing.writing import diffuse

    model, tokenizer, sampling = loaded

    def write(prompt: str) -> mx.array:
        """[1 + n]: how many steps it took, and the tokens without the stop."""
        answer = Answer(model.config, tokenizer, model.config.canvas_length)
        for step in diffuse(model, prompt_tokens(tokenizer, prompt), max_tokens=answer.max_tokens, sampling=sampling):
            answer.add(step)
        return mx.array([answer.steps, *(token for token in answer.tokens if token not in model.config.stop_ids)])

    def measure(found: Arrays, expected: Arrays) -> tuple[float, str]:
        steps = ["/".join(str(int(array[0])) for array in arrays) for arrays in (found, expected)]
        count, note = 0, f"steps {' against '.join(steps[: 1 + bool(expected[0][0])])}"
        for pair in zip(found, expected, strict=True):
            one, other = (array[1:].astype(int).tolist() for array in pair)
            differs = [a != b for a, b in zip_longest(one, other)]
            if any(differs) and not count:
                note += f"; token {differs.index(True)}: {tokenizer.decode(one)!r}, not {tokenizer.decode(other)!r}"
            count += sum(differs)
        return float(count), note

    right = [np.array([0, *tokenizer.encode(text)]) for text in TASKS.values()]  # nothing is said of steps
    return compare(name, lambda _: lambda: [write(prompt) for prompt in TASKS], lambda: right, 0.0, measure=measure)


def parts(loaded: tuple) -> Iterator[tuple[str, Callable[[str, Sizes], Part]]]:
    for dim in (256, 512):
        for dtype in BOUNDS:
            yield f"attention {dim} canvas {dtype}", partial(attention, dim=dim, dtype=dtype)
            yield f"attention {dim} fused {dtype}", partial(attention, dim=dim, fused=True, dtype=dtype)
        yield f"attention {dim} text float32", partial(attention, dim=dim, causal=True, dtype="float32")
    for label, shape, bits in (("4-bit", (1408, 2816), 4), ("4-bit", (2816, 704), 4), ("plain", (1408, 2816), None)):
        for dtype in ("float32", "bfloat16"):
            yield f"experts {label} {shape[1]} {dtype}", partial(experts, shape=shape, bits=bits, dtype=dtype)
    yield "vocabulary flat", partial(vocabulary, spread=1.0)
    yield "vocabulary peaked", partial(vocabulary, spread=12.0)
    yield "generation", partial(generation, loaded=loaded)


def machine() -> dict:
    """Versions and devices; nothing that names the machine or its user."""
    import mlx.core as mx
    import psutil

    from .. import __version__

    mac = platform.mac_ver()[0]
    return {
        "system": f"macOS {mac}" if mac else platform.system(), "processor": platform.machine(),
        "memory": psutil.virtual_memory().total, "python": platform.python_version(), "mlx": mx.__version__,
        "mlx_dgemma": __version__, "device": device(), "device_info": mx.device_info(getattr(mx, device())),
        "tf32": os.environ.get("MLX_ENABLE_TF32"),
    }  # fmt: skip


def show(report: dict) -> None:
    """The table, on standard output."""
    from rich.console import Console
    from rich.table import Table

    from ..load import gigabytes

    info = report["device_info"]
    limit = info.get("max_recommended_working_set_size")
    print(f"{info.get('device_name', report['processor'])}, {gigabytes(report['memory'])} of memory", end=", ")
    print(f"{gigabytes(limit)} of it recommended for the GPU, " if limit else "", end="")
    print(report["system"], *(f"{name} {report[name]}" for name in ("mlx", "mlx_dgemma", "python")), sep=", ")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("part", "verdict", "seconds", "CPU s", "vs CPU", "exact", "bound"):
        table.add_column(title, justify="left" if title in ("part", "verdict") else "right")
    styles = {"seconds": ".4f", "reference_seconds": ".4f", "error": ".0e", "exact_error": ".0e", "bound": ".0e"}
    for part in report["parts"]:
        cells = ["" if part[name] is None else format(part[name], style) for name, style in styles.items()]
        table.add_row(part["name"], part["verdict"], *cells)
    Console(width=100, highlight=False).print(table)  # 80 are enough for it
    for part in report["parts"]:
        if part["note"] and part["verdict"] != "not available":
            print(f"{part['name']}: {part['note']}")
    print(f"{report['verdict']}: {report['seconds']:.0f} s, peak memory {gigabytes(report['peak_memory'])}")


def check(sizes: Sizes, found: list[Part]) -> None:
    """Append every part to `found`. One that raises is a result, too, and the others go on."""
    from ..load import load

    loaded = load(backend="mlx", dtype="float32")
    if device() == "cpu":
        print(f"{NAME}: there is no GPU: each part runs on the CPU, against NumPy in float64", file=sys.stderr)
    for name, part in parts(loaded):
        print(f"{name} … ", end="", file=sys.stderr, flush=True)
        try:
            found.append(part(name, sizes))
        except (RuntimeError, ValueError) as error:
            found.append(Part(name=name, device=device(), verdict="failed", note=" ".join(str(error).split())))
        print(found[-1].verdict, file=sys.stderr, flush=True)


def selfcheck(sizes: Sizes, *, only_json: bool) -> int:
    start, found, verdict = time.perf_counter(), [], "interrupted"
    try:
        check(sizes, found)
        verdict = "ok" if all(part.verdict in ("ok", "not available") for part in found) else "differs"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    report = {"verdict": verdict, **machine(), "seconds": time.perf_counter() - start}
    report["peak_memory"] = max((part.peak_memory or 0 for part in found), default=0)
    report["parts"] = list(map(asdict, found))
    if not only_json:
        show(report)
    # Four digits are enough for a line to paste.
    print(json.dumps(json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.4g}"))))
    return {"ok": 0, "differs": 1, "interrupted": 130}[verdict]


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Check this machine's arithmetic, part by part, and time it.")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone, without the table")
    return parser


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> int:
    options = parser().parse_args(arguments)
    os.environ["MLX_ENABLE_TF32"] = "0"  # MLX reads it at its first product: float32 is float32, on an M5 too
    return run(NAME, lambda: selfcheck(sizes or Sizes(), only_json=options.json))


if __name__ == "__main__":
    sys.exit(main())
