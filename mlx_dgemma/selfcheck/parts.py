"""The parts of a pass, each computed on the device and checked against the CPU device and against NumPy in float64."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile, zip_longest

import mlx.core as mx
import numpy as np

from ..checkpoint.config import Quantization
from ..mlx_backend import guard, kernels
from ..mlx_backend.attention import attend
from ..mlx_backend.cache import LayerCache
from ..mlx_backend.layers import Embedding, ExpertLinear, Linear
from ..mlx_backend.measure import step_parts, step_primitives
from ..mlx_backend.model import MLXModel
from ..mlx_backend.sweep import Slices, Sweep, SweepInputs
from ..seam.model import Row, Text
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
from ..writing.diffuse import diffuse
from ..writing.sampling import Sampling

BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # of `relative`; TF32 would make 3e-4 of float32
# An error of a logit, of up to 30 / temperature, is a relative one of its probability.
VOCABULARY_BOUNDS = {"float32": 5e-4, "bfloat16": 0.2}
VIEWS = {"Broadcast", "Copy", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"}
VIEWS |= {"StopGradient", "Transpose", "Unflatten", "View"}
TASKS = {  # prompt -> the only right answer
    "Solve this sudoku:\n...3\n.124\n1342\n2.3.": "4213\n3124\n1342\n2431",
    "Extract JSON: Eve, a vet from Oslo, is 43 years old.": '{"name": "Eve", "age": 43, "job": "vet", "city": "Oslo"}',
    "Write a function first(a, w) that adds w to the first of a.": "def first(a, w):\n    return a[0] + w\n",
}
Arrays = list[np.ndarray]
Compute = Callable[[], list[mx.array]]
Prepare = Callable[[mx.Dtype], Compute]
Measure = Callable[[Arrays, Arrays], tuple[float, str]]
Loaded = tuple[MLXModel, Tokenizer, Sampling]


def device() -> str:
    return "gpu" if mx.is_available(mx.gpu) else "cpu"


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
    text: int = 32768  # tokens of a long one


@dataclass(frozen=True, kw_only=True)
class Part:
    """The result of one check."""

    name: str
    device: str = field(default_factory=lambda: device())  # that is checked: "gpu" or "cpu"
    seconds: float | None = None  # median of some runs
    reference_seconds: float | None = None  # of the CPU device, where it is the GPU that is checked
    error: float | None = None  # against the CPU device, likewise
    exact_error: float | None = None  # against NumPy in float64
    bound: float | None = None  # of both errors
    peak_memory: int | None = None  # bytes
    verdict: str  # ok, differs, failed (it raised), not available (a device need not have it), not used (nor need this)
    note: str = ""


def timed(compute: Compute) -> tuple[Arrays, float]:
    """Returns arrays, and the median seconds of some runs behind a warm-up. On a CPU a long warm-up counts."""
    seconds: list[float] = []
    while len(seconds) < 6 and sum(seconds[1:]) < 0.5:
        start = time.perf_counter()
        mx.eval(arrays := compute())
        mx.synchronize()
        seconds.append(time.perf_counter() - start)
        if mx.default_device() == mx.cpu and seconds[0] > 0.5:
            break
    return [np.array(array.astype(mx.float32)) for array in arrays], statistics.median(seconds[1:] or seconds)


def relative(arrays: Arrays, expected: Arrays) -> tuple[float, str]:
    """Returns the largest difference over the largest expected value, and no note. RuntimeError if a number is not
    finite."""
    for array in (*arrays, *expected):
        if not np.isfinite(array).all():
            raise RuntimeError(f"{np.sum(~np.isfinite(array))} of {array.size} numbers are not finite")
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(arrays, expected, strict=True)), ""


def compare(
    name: str, prepare: Prepare, exact: Arrays, dtype: str = "float32", *,
    reference: Prepare | None = None, bound: float | None = None, measure: Measure = relative,
) -> Part:  # fmt: skip
    """Checks `prepare(dtype)` on the device against `reference` (or itself) in float32 on the CPU, and `exact`.
    `measure` makes an error and a note of arrays and those expected."""
    bound = BOUNDS[dtype] if bound is None else bound
    mx.reset_peak_memory()
    with mx.stream(getattr(mx, device())):
        arrays, seconds = timed(prepare(getattr(mx, dtype)))
    peak_memory = mx.get_peak_memory()
    exact_error, note = measure(arrays, exact)
    worst, error, reference_seconds = exact_error, None, None
    if device() == "gpu":
        with mx.stream(mx.cpu):
            expected, reference_seconds = timed((reference or prepare)(mx.float32))
        error, other = measure(arrays, expected)
        worst, note = max(error, exact_error), note if exact_error > bound else other
    mx.clear_cache()
    return Part(
        name=name, seconds=seconds, reference_seconds=reference_seconds, error=error, exact_error=exact_error,
        bound=bound, peak_memory=peak_memory, note=note, verdict="ok" if worst <= bound else "differs",
    )  # fmt: skip


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(name: str, sizes: Sizes, *, dim: int, causal: bool = False, fused: bool = False, dtype: str) -> Part:
    """Checks attention of a canvas or of a chunk of text; or of a canvas with the fused kernel, which network.py does
    not ask for and a device may lack."""
    groups, window = {256: (8, sizes.past + 1), 512: (2, None)}[dim]
    keys, rng = sizes.past + sizes.queries, np.random.default_rng(dim)
    arrays = [rng.normal(0, 2 / dim**0.5, (1, sizes.heads, sizes.queries, dim))]  # scores of a few units
    arrays += [rng.normal(size=(1, groups, keys, dim)) for _ in "kv"]

    def prepare(dtype: mx.Dtype, force: bool = False) -> Compute:
        inputs = [mx.array(array).astype(dtype) for array in arrays]
        if force:
            return lambda: [mx.fast.scaled_dot_product_attention(*inputs, scale=1.0, force_fused=True)]
        return lambda: [attend(*inputs, causal=causal, window=window)]

    q, k, v = arrays
    q = q.reshape(groups, -1, sizes.queries, dim)  # head h looks at key head h // (heads / groups)
    scores = q @ k[0][:, None].swapaxes(-1, -2)
    if causal:
        distance = np.arange(sizes.past, keys)[:, None] - np.arange(keys)
        scores[..., (distance < 0) | (distance >= (window or keys))] = -np.inf
    exact = (softmax(scores) @ v[0][:, None]).reshape(1, -1, sizes.queries, dim)
    try:
        return compare(name, partial(prepare, force=fused), [exact], dtype, reference=prepare)
    except ValueError as error:
        if not fused:
            raise
        return Part(name=name, verdict="not available", note=str(error).split("] ")[-1])


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], bits: int | None) -> dict[str, np.ndarray]:
    """Makes the arrays of a `Linear` with values of about 1 / sqrt(in), plain or in groups of 64."""
    *outer, width = shape
    if bits is None:
        return {"weight": rng.standard_normal(shape, dtype=np.float32) * np.float32(width**-0.5)}
    packed = rng.integers(2**32, size=(*outer, width * bits // 32), dtype=np.uint32)
    scales = rng.uniform(0.5, 1.5, (*outer, width // 64)).astype(np.float32) * np.float32(4 / 2**bits * width**-0.5)
    return {"weight": packed, "scales": scales, "biases": scales * np.float32((1 - 2**bits) / 2)}


def exact_weight(arrays: dict[str, np.ndarray], bits: int | None) -> np.ndarray:
    """Unpacks the same into [out, in] float64: the lowest bits are the first value."""
    if bits is None:
        return arrays["weight"].astype(np.float64)
    values = arrays["weight"][..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & np.uint32(2**bits - 1)
    grouped = values.reshape(len(values), -1, 64) * arrays["scales"].astype(np.float64)[..., None]
    return (grouped + arrays["biases"][..., None]).reshape(len(values), -1)


def fill(linear: Linear, arrays: dict[str, np.ndarray], bits: int | None, dtype: mx.Dtype) -> None:
    """Gives `linear` the arrays of `random_weight`, the floats among them as `dtype`."""
    if bits is not None:
        linear.quantize(Quantization(bits=bits, group_size=64))
    linear.load_weights([(name, mx.array(array)) for name, array in arrays.items()])
    linear.set_dtype(dtype)


def experts(name: str, sizes: Sizes, *, shape: tuple[int, int], bits: int | None, dtype: str) -> Part:
    """Checks `ExpertLinear` on rows sorted by expert: gather_qmm or gather_mm."""
    rng = np.random.default_rng(shape[1])
    arrays = random_weight(rng, (sizes.experts, *shape), bits)
    x = rng.standard_normal((sizes.rows, shape[1]), dtype=np.float32)
    chosen = np.sort(rng.integers(1, sizes.experts, sizes.rows)).astype(np.uint32)  # no row has expert 0

    def prepare(dtype: mx.Dtype) -> Compute:
        layer = ExpertLinear(sizes.experts, *shape)
        fill(layer, arrays, bits, dtype)
        inputs, index = mx.array(x).astype(dtype), mx.array(chosen)
        return lambda: [layer(inputs, index, ascending=True)]

    exact = np.zeros((sizes.rows, shape[0]))
    for expert in set(chosen.tolist()):
        weight = exact_weight({name: array[expert] for name, array in arrays.items()}, bits)
        exact[chosen == expert] = x[chosen == expert].astype(np.float64) @ weight.T
    return compare(name, prepare, [exact], dtype)


def vocabulary(name: str, sizes: Sizes, *, spread: float, dtype: str = "float32") -> Part:
    """Checks `sweep.Sweep` over an 8-bit table. Two samples are both right where the uniform lies within a rounding of
    the boundary between them, and so are two argmaxes of equal logits."""
    L, V, cap, temperature = sizes.positions, sizes.vocabulary, 30.0, 0.8
    rng, each = np.random.default_rng(int(spread)), np.arange(L)
    arrays = random_weight(rng, (V, sizes.width), 8)
    hidden = rng.normal(0, spread, (L, sizes.width)).astype(np.float32)
    uniforms = rng.random(L, dtype=np.float32)
    uniforms[:2] = 0, np.nextafter(np.float32(1), np.float32(0))
    logits = np.tanh(hidden.astype(np.float64) @ exact_weight(arrays, 8).T / cap) * (cap / temperature)
    shares = softmax(logits)
    sums = np.cumsum(shares, axis=1)

    def prepare(dtype: mx.Dtype) -> Compute:
        table = Embedding(V, sizes.width)
        fill(table, arrays, 8, dtype)
        given = mx.array(hidden).astype(dtype)
        inputs = SweepInputs(given, mx.full((L,), temperature), mx.array(uniforms), np.ones(L, bool))

        def compute() -> list[mx.array]:
            result = Sweep(Slices(table), inputs, cap).run()
            return [result.argmax, result.sample, result.entropy, result.confidence, result.top, result.soft]

        return compute

    sample = np.minimum((sums <= uniforms[:, None]).sum(axis=1), V - 1)
    right = [logits.argmax(axis=1), sample, -(shares * np.log(shares)).sum(axis=1), shares[each, sample]]
    right += [shares.max(axis=1), shares @ exact_weight(arrays, 8)]

    def weighed(argmax: np.ndarray, sample: np.ndarray, *others: np.ndarray) -> Arrays:
        """Returns the argmax's logit, the nearest uniform of the sample, entropy, confidence over the sample's
        probability, top over the argmax's, soft embedding."""
        argmax, sample = argmax.astype(int), sample.astype(int)
        if (highest := max(argmax.max(), sample.max())) >= V:
            raise RuntimeError(f"token {highest} is past the vocabulary of {V}")
        share, (entropy, confidence, top, soft) = shares[each, sample], others
        nearest = np.clip(uniforms, sums[each, sample] - share, sums[each, sample])
        return [logits[each, argmax], nearest, entropy, confidence / share, top / shares[each, argmax], soft]

    def measure(arrays: Arrays, expected: Arrays) -> tuple[float, str]:
        other = [int((a != b).sum()) for a, b in zip(arrays[:2], expected[:2], strict=True)]
        error, _ = relative(weighed(*arrays), weighed(*expected))
        return error, f"of {L}, other argmax {other[0]}, other sample {other[1]}"

    return compare(name, prepare, right, dtype, bound=VOCABULARY_BOUNDS[dtype], measure=measure)


def in_place(name: str, sizes: Sizes, *, ahead: bool) -> Part:
    """Checks that one layer's K and V are not copied by passes that write a block and a canvas behind it. The error is
    the memory that the passes take, as a share of K and V. `ahead`: a token while the last one is on its way, as left
    to right; a pass in flight may hold K and V then, and what that takes is told."""
    length, passes, text = 1 if ahead else sizes.queries, 40, sizes.text
    cache = LayerCache(sizes.queries, None, None, text + (passes + 1) * sizes.queries)
    with mx.stream(getattr(mx, device())):
        cache.write(*(mx.random.normal((1, 2, text, 512), mx.bfloat16) for _ in "kv"), text=True)
        new = mx.random.normal((1, 2, length, 512), mx.bfloat16)
        mx.eval(cache.keys, cache.values, new)
        expected = cache.keys[:, :, :text].sum(axis=-1).tolist()
        mx.reset_peak_memory()
        before, start = mx.get_active_memory(), time.perf_counter()
        seen: list[mx.array] = []
        for _ in range(passes):
            last = seen
            spans = [cache.write(new, new, text=text) for text in ((True,) if ahead else (True, False))]
            seen = [cache.view(span)[0].max() for span in spans]
            mx.async_eval(seen, cache.keys, cache.values)
            mx.eval(last if ahead else seen)
        mx.eval(seen)
        seconds = (time.perf_counter() - start) / passes
        taken = (mx.get_peak_memory() - before) / (cache.keys.nbytes + cache.values.nbytes)
        same = cache.keys[:, :, :text].sum(axis=-1).tolist() == expected
    note = f"passes take {taken:.2f} of K and V" if same else "what was there has changed"
    return Part(
        name=name, seconds=seconds, exact_error=None if ahead else taken, bound=None if ahead else 0.25, note=note,
        peak_memory=mx.get_peak_memory(), verdict="ok" if same and (ahead or taken <= 0.25) else "differs",
    )  # fmt: skip


def kernel(name: str, sizes: Sizes, *, key: str, dtype: mx.Dtype) -> Part:
    """Tells how `guard` judged a kernel of ours. None is an error: what is not right and faster is not used."""
    verdict = kernels.verdicts.get(f"{key} {dtype}")
    if verdict is None:
        off = "our kernels are for Metal, and MLX_DGEMMA_KERNELS=0 is off"
        return Part(name=name, verdict="not available", note=off)
    if "note" in verdict:
        return Part(name=name, verdict="not used", note=verdict["note"])
    bound, error = guard.BOUNDS[dtype], verdict["error"]
    why = "wrong" if error > bound else "slower than MLX's operations, alone or together"
    return Part(
        name=name, seconds=verdict["ms"] / 1e3, reference_seconds=verdict["ms_of_mlx"] / 1e3, exact_error=error,
        bound=bound, verdict="ok" if verdict["used"] else "not used", note="" if verdict["used"] else why,
    )  # fmt: skip


def generation(name: str, sizes: Sizes, *, loaded: Loaded) -> Part:
    """Checks whole answers of the embedded model. The error counts the tokens that differ."""
    model, tokenizer, sampling = loaded
    longest, stops = model.facts.canvas_length, model.facts.stop_ids

    def write(prompt: str) -> mx.array:
        """Returns [1 + n]: how many steps it took, and the tokens before the stop."""
        tokens = tokenizer.chat([{"role": "user", "content": prompt}])
        steps = list(diffuse(model, tokens, Ask(max_tokens=longest, sampling=sampling)))
        written = [token for step in steps if step.final for token in step.draft.tolist()]
        return mx.array([len(steps), *takewhile(lambda token: token not in stops, written)])

    def measure(arrays: Arrays, expected: Arrays) -> tuple[float, str]:
        steps = ["/".join(str(int(array[0])) for array in side) for side in (arrays, expected)]
        count, note = 0, f"steps {' against '.join(steps[: 1 + bool(expected[0][0])])}"
        for pair in zip(arrays, expected, strict=True):
            tokens, right = (array[1:].astype(int).tolist() for array in pair)
            differs = [a != b for a, b in zip_longest(tokens, right)]
            if any(differs) and not count:
                note += f"; token {differs.index(True)}: {tokenizer.decode(tokens)!r}, not {tokenizer.decode(right)!r}"
            count += sum(differs)
        return float(count), note

    right = [np.array([0, *tokenizer.encode(text)]) for text in TASKS.values()]  # of steps, nothing is known
    return compare(name, lambda _: lambda: [write(prompt) for prompt in TASKS], right, bound=0.0, measure=measure)


def checks(loaded: Loaded) -> Iterator[tuple[str, Callable[[str, Sizes], Part]]]:
    """Yields names and checks, in the order in which they run."""
    for dim in (256, 512):
        for dtype in BOUNDS:
            yield f"attention {dim} canvas {dtype}", partial(attention, dim=dim, dtype=dtype)
            yield f"attention {dim} fused {dtype}", partial(attention, dim=dim, fused=True, dtype=dtype)
        yield f"attention {dim} text float32", partial(attention, dim=dim, causal=True, dtype="float32")
    for label, shape, bits in (("4-bit", (1408, 2816), 4), ("4-bit", (2816, 704), 4), ("plain", (1408, 2816), None)):
        for dtype in ("float32", "bfloat16"):
            yield f"experts {label} {shape[1]} {dtype}", partial(experts, shape=shape, bits=bits, dtype=dtype)
    for dtype in VOCABULARY_BOUNDS:
        yield f"vocabulary flat {dtype}", partial(vocabulary, spread=1.0, dtype=dtype)
        yield f"vocabulary peaked {dtype}", partial(vocabulary, spread=12.0, dtype=dtype)
    yield "K/V in place", partial(in_place, ahead=False)
    yield "K/V in place, left to right", partial(in_place, ahead=True)
    guard.choose(afresh=True)
    for dtype in guard.BOUNDS:
        for key, _ in guard.cases(guard.Sizes(), dtype):
            yield f"kernel {key} {str(dtype).split('.')[-1]}", partial(kernel, key=key, dtype=dtype)
    yield "generation", partial(generation, loaded=loaded)


def step(model: MLXModel) -> dict[str, object]:
    """Times a denoise step of the embedded model behind a short text, not the first of its block: `milliseconds` by
    part, and the `primitives` of MLX's graph by name, `kernels` of which are no mere views."""
    rng, length = np.random.default_rng(0), model.facts.canvas_length
    cache = model.new_cache()
    model.encode([Text(rng.integers(model.facts.vocab_size, size=length))], [cache])
    canvas, uniforms = rng.integers(model.facts.vocab_size, size=length), rng.random(length, dtype=np.float32)
    row = Row(canvas.astype(np.int32), cache, 0.6, uniforms)
    row.self_conditioning = model.denoise([row])[0].self_conditioning
    primitives = step_primitives(model, [row])
    count = sum(count for name, count in primitives.items() if name not in VIEWS)
    milliseconds = {part: 1e3 * seconds for part, seconds in step_parts(model, [row]).items()}
    return {"milliseconds": milliseconds, "kernels": count, "primitives": primitives}
