"""Triton's kernels against plain torch: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
pytest.importorskip("triton", reason="torch has it on Linux with CUDA; elsewhere: pip install triton")

from folders import quantized, write
from packed import pack

from mlx_dgemma.checkpoint.adapter import ATTENTION_AND_MLP, begin
from mlx_dgemma.checkpoint.config import Quantization
from mlx_dgemma.load import learner, load
from mlx_dgemma.seam.learning import Optimizer
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import attention, attention_kernels, device, fused, kernels, routing
from mlx_dgemma.torch_backend.layers import ExpertLinear, Linear
from mlx_dgemma.train.loss import Example, Recipe, loss_of, noised

# ruff: noqa: E402, what may be missing comes first
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [
    *(Quantization(bits=bits, group_size=group) for bits, group in ((4, 64), (4, 32), (8, 64), (3, 64), (6, 128))),
    Quantization(bits=4, group_size=32, mode="mxfp4"),
    Quantization(bits=4, group_size=16, mode="nvfp4"),
    Quantization(bits=8, group_size=32, mode="mxfp8"),
]


@pytest.fixture(autouse=True)
def scalars(monkeypatch):
    """The interpreter keeps a scalar as an array of one number, which NumPy 2.4 and later take for no index."""
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def patched(tensor, *scope):
            patch(tensor, *scope)
            tensor.__index__ = lambda x: x.handle.data.item()

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def packed(layer: Linear, quantization: Quantization | None, seed: int = 0) -> Linear:
    """`layer` with random weights."""
    weight = np.random.default_rng(seed).normal(0, 1, layer.weight.shape).astype(np.float32)
    if quantization is None:
        layer.weight = torch.from_numpy(weight).to(DEVICE)
        return layer
    layer.quantize(quantization)
    for name, array in zip(("weight", "scales", "biases"), pack(weight, **vars(quantization))[0], strict=False):
        tensor = torch.from_numpy(array)
        setattr(layer, name, (tensor.view(torch.int32) if tensor.dtype == torch.uint32 else tensor).to(DEVICE))
    return layer


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def by_expert(x: torch.Tensor, layer: Linear, ends: list[int]) -> torch.Tensor:
    starts = [0, *ends[:-1]]
    return torch.cat(
        [x[a:b] @ layer.rows(i, torch.float32).T for i, (a, b) in enumerate(zip(starts, ends, strict=True))]
    )


@pytest.mark.parametrize(
    ("quantization", "ends"),
    [
        *((quantization, [3, 3, 40, 41, 57]) for quantization in (None, *FORMATS)),
        *((FORMATS[0], ends) for ends in ([0, 0, 0, 0, 64], [5, 5, 20, 20, 20])),
    ],
    ids=str,
)
@pytest.mark.sample(3)
def test_a_product_expert_by_expert(quantization, ends):
    layer = packed(ExpertLinear(5, 80, 192 if quantization is None else 256), quantization)
    x = rows(64, layer.rows(0, torch.float32).shape[1])
    expected = by_expert(x, layer, ends)
    layer.tile()
    result = kernels.grouped_product(x, layer.packed, torch.tensor(ends, dtype=torch.int32, device=DEVICE))
    assert (result[: ends[-1]] - expected).abs().max() < 1e-3


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("ends", [[3, 3, 40, 41, 57], [0, 150, 150, 181, 190]], ids=str)
def test_experts_in_e4m3(ends, rounded, gate, monkeypatch):
    """By tiles of 32 rows and of 128. A row is one and a half times as wide as the first are deep, and of any scale."""
    layer, count = packed(ExpertLinear(5, 80, 192), None), ends[-1] + 7
    layer.to_fp8()
    x = rows(20, 192) * torch.logspace(-6, 0, 20)[:, None].to(DEVICE)
    tokens = torch.randint(20, (count,), generator=torch.Generator().manual_seed(1)).int().to(DEVICE)
    expected = by_expert(fused.to_fp8(x).exact()[tokens], layer, ends)
    monkeypatch.setattr(device, "by_kernel", lambda x: True)
    x, ends = fused.to_fp8(x) if rounded else x, torch.tensor(ends, dtype=torch.int32, device=DEVICE)
    result = layer(x, ends, tokens, gate=gate)
    if gate:
        expected, result = fused.gated(expected), result.exact()
    assert result.dtype == (torch.float32 if gate else torch.bfloat16)
    error = (result.float()[: len(expected)] - expected).abs()
    assert (error <= (0.07 if gate else 0.01) * expected.abs().amax(dim=-1, keepdim=True)).all()


@pytest.mark.parametrize("quantization", [None, FORMATS[0], FORMATS[2], FORMATS[6]], ids=str)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.sample(3)
def test_tokens_are_gathered_and_gated_inside_a_product(quantization, per_row):
    """With the global scales that NVIDIA's NVFP4 has, of experts or of their rows."""
    layer, ends = packed(ExpertLinear(3, 96, 128), quantization), [4, 9, 30]
    x, tokens = rows(20, 128) * 0.3, torch.randint(20, (30,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    y, factors = by_expert(x[tokens], layer, ends), None
    if quantization is not None:
        factors = 0.5 + torch.rand((3, 96 if per_row else 1), generator=torch.Generator().manual_seed(2)).to(DEVICE)
        y = y * torch.repeat_interleave(factors, torch.tensor([4, 5, 21], device=DEVICE), dim=0)
        factors = factors.expand(3, 96).contiguous()
    layer.tile()
    result = kernels.grouped_product(
        x, layer.packed, torch.tensor(ends, dtype=torch.int32, device=DEVICE), tokens=tokens.int(), gated=True,
        factors=factors,
    )  # fmt: skip
    assert result.shape == (30, 48) and (result - fused.gated(y)).abs().max() < 1e-3


@pytest.mark.parametrize("quantization", [None, *FORMATS], ids=str)
@pytest.mark.sample(3)
def test_unpacking(quantization):
    """Of a table some rows; of experts all, with global scales. A row of the table is no multiple of a block wide."""
    small = quantization is not None and quantization.group_size < 64
    table, experts = (
        packed(Linear(300, 96 if small else 128), quantization),
        packed(ExpertLinear(3, 40, 256), quantization),
    )
    part, factors = slice(37, 290), 0.5 + torch.rand((3, 1)).to(DEVICE).expand(3, 40)
    expected = table.rows(part, torch.float32), experts.rows(slice(None), torch.float32) * factors[..., None]
    for layer in (table, experts):
        layer.tile()
    found = (
        kernels.unpacked(table.packed, torch.float32, rows=part),
        kernels.unpacked(experts.packed, torch.float32, factors=factors),
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("quantization", [None, FORMATS[0], FORMATS[5], FORMATS[6]], ids=str)
@pytest.mark.parametrize("gate", [False, True])
def test_the_gradient_through_frozen_experts(quantization, gate, monkeypatch):
    """Experts without rows, rows of no expert, a token in several rows."""
    monkeypatch.setattr(device, "by_kernel", lambda x: not x.requires_grad)
    layer, ends = packed(ExpertLinear(5, 80, 64), quantization), [3, 3, 40, 41, 57]
    if quantization == FORMATS[6]:
        layer.scale_globally(per_row=False)
        layer.weight_scale_2 = 0.5 + torch.rand(5).to(DEVICE)
    tokens = torch.randint(20, (64,), generator=torch.Generator().manual_seed(1)).int().to(DEVICE)
    layer.tile()
    ends, weight, found = (
        torch.tensor(ends, dtype=torch.int32, device=DEVICE),
        rows(57, 80)[:, : 40 if gate else 80],
        [],
    )
    for by_kernels in (True, False):
        if not by_kernels:
            monkeypatch.setattr(device, "by_kernel", lambda x: False)
            monkeypatch.setattr(ExpertLinear, "_all_at_once", ExpertLinear._expert_by_expert)
        x = (rows(20, 64, seed=2) * 0.3).requires_grad_()
        y = layer(x, ends, tokens, gate=gate)[:57]
        (y * weight).sum().backward()
        found.append((y.detach(), x.grad))
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4"])
def test_the_gradient_of_adapters_on_packed_weights(tmp_path, mode, monkeypatch):
    """The products alone by kernels, and with them the vocabulary's slices."""
    group = {"group_size": 16 if mode == "nvfp4" else 32, "bits": 4, "mode": mode}
    folder, _, _ = quantized(tmp_path, default=group, shape={"layer_types": ["sliding_attention", "full_attention"]})
    keys, found = (*ATTENTION_AND_MLP, "experts.gate_up_proj", "experts.down_proj"), []
    for by_kernels in (False, True):
        if by_kernels:
            monkeypatch.setattr(device, "by_kernel", lambda x: x.dtype == torch.int32)
        model, _, _ = load(folder, "torch", "float32")
        for layer in model.network.modules():
            if isinstance(layer, Linear) and by_kernels:
                layer.tile()
        start = partial(begin, keys=keys, rank=4, scale=2.0, seed=1)
        one = learner(model, "torch", start, Optimizer(max_norm=1e9), checkpoint=True)
        for array in one.learnt[1::2]:  # begun at zero, behind which the other of a pair has no gradient
            array.copy_(torch.randn(array.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        rng = np.random.default_rng(3)
        example = Example(*(rng.integers(2, 96, size=n).astype(np.int32) for n in (30, 20)))
        recipe = Recipe(self_conditioned=1.0)
        one.step([loss_of(noised([example], model.facts, 1, recipe, rng), model.facts, recipe)], 0.0)
        found.append([array.grad for array in one.learnt])
    largest = max(array.abs().max() for array in found[0])
    for theirs, mine in zip(*found, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * largest


@pytest.mark.parametrize("count", [1, 16, 150])
@pytest.mark.parametrize("quantization", [FORMATS[1], FORMATS[2]], ids=str)
def test_a_product(count, quantization):
    """A row that is no multiple of a block wide, and several tiles of rows."""
    layer = packed(Linear(136, 96 if quantization.group_size == 32 else 128), quantization)
    x = rows(count, layer.rows(0, torch.float32).shape[-1])
    expected = x @ layer.rows(slice(None), torch.float32).T
    layer.tile()
    assert (kernels.quantized_product(x, layer.packed) - expected).abs().max() < 1e-3


def test_tiles():
    """Those that were fastest on an H100; and where a token goes alone, as many tiles as there are multiprocessors."""
    affine, plain = {"MODE": 0, "BITS": 4}, {"MODE": 4, "BITS": 16}
    cases = {  # rows, experts, columns, format, gated -> rows and columns of a tile
        (2048, 128, 704, "affine", True): (32, 64),
        (2048, 128, 2816, "affine", False): (32, 128),
        (16384, 128, 2816, "affine", False): (64, 128),
        (16384, 128, 704, "plain", True): (64, 64),
        (256, 1, 262144, "affine", False): (256, 128),
        (256, 1, 2816, "affine", False): (128, 64),
        (8, 128, 704, "affine", True): (16, 32),
        (1, 1, 2816, "affine", False): (16, 16),
        (1, 1, 262144, "affine", False): (16, 128),
    }
    for (rows, experts, columns, name, gated), wanted in cases.items():
        tile = kernels.shape(rows, experts, columns, {"affine": affine, "plain": plain}[name], gated=gated)
        assert (tile["ROWS"], tile["COLUMNS"]) == wanted, (rows, experts, columns, name)


@pytest.mark.sample(1)
@pytest.mark.parametrize("quantization", FORMATS, ids=str)
def test_the_mean_of_a_table(quantization):
    """In two parts, the second of which ends within a block."""
    table = packed(Linear(600, 256), quantization)
    shares = torch.rand((70, 600), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = shares @ table.rows(slice(None), torch.float32)
    table.tile()
    assert (kernels.mean(shares, table.packed) - expected).abs().max() < 1e-3


SHARES = [(8, 2, 0, 8), (12, 3, 4, 4), (128, 8, 64, 64)]


@pytest.mark.parametrize(
    ("experts", "top_k", "first", "here", "count"),
    [*((*share, count) for share in SHARES for count in (1, 100)), (8, 2, 0, 8, 300), (8, 2, 0, 8, 600)],
)
def test_routes(experts, top_k, first, here, count, monkeypatch):
    """With another rank's experts, more blocks than are counted at a time, and some of a token's scores no numbers."""
    logits, per_expert = rows(count, experts), 1 + torch.rand(experts).to(DEVICE)
    if count > 50:
        logits[50, :4] = float("-inf")
    monkeypatch.setattr(device, "by_kernel", lambda x: False)
    expected = routing.route(logits, per_expert, top_k, first, here)
    monkeypatch.setattr(device, "by_kernel", lambda x: True)
    result = routing.route(logits, per_expert, top_k, first, here)
    local = int(expected.ends[-1])
    assert torch.equal(result.ends, expected.ends) and torch.equal(result.tokens[:local], expected.tokens[:local])
    for found, wanted in zip(result[:1] + result[2:3], expected[:1] + expected[2:3], strict=True):
        order = [routes.places.sort(dim=1).indices for routes in (result, expected)]
        found, wanted = (x.gather(1, i) for x, i in zip((found, wanted), order, strict=True))
        assert (
            (found - wanted).abs().max() < 1e-5 if found.is_floating_point() else (found == wanted)[found < local].all()
        )
    assert torch.equal(result.places.flatten().sort().values, torch.arange(count * top_k, device=DEVICE))
    logits[0] = float("nan")  # it is found out later; no place is left without a token
    result = routing.route(logits, per_expert, top_k, first, here)
    assert torch.equal(result.places.flatten().sort().values, torch.arange(count * top_k, device=DEVICE))


@pytest.mark.parametrize("values", [False, True])
def test_heads(values, monkeypatch):
    """Normed and rotated, in one kernel."""
    sizes = (4 * 16, 2 * 16, 2 * 16)[: 2 + values]
    angles = rows(7, 8, seed=3)
    rotation = torch.stack((angles.cos(), angles.sin()))
    arguments = rows(7, sum(sizes)), sizes, rows(16, seed=1), rows(16, seed=2), rotation, 1e-6
    results = []
    for on in (False, True):
        monkeypatch.setattr(device, "by_kernel", lambda x, on=on: on)
        results.append(attention.heads(*arguments))
    for expected, result in zip(*results, strict=True):
        assert (expected - result).abs().max() < 1e-5


def seen(case: str, count: int, queries: int) -> tuple[list[list[int]], list[list[int]], int]:
    """Ends of what each query sees."""
    length = [70, 3, 0][:count]
    if case == "canvas":
        return [[max(0, n - 23)] * queries for n in length], [[n] * queries for n in length], 70
    lo = [[max(0, n + i - 40) for i in range(queries)] for n in length]
    return lo, [[min(n + i + 1, n + 9) for i in range(queries)] for n in length], 70 + queries


@pytest.mark.parametrize("case", ["canvas", "text"])
@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("processors", [1, 24])
@pytest.mark.sample(4)
def test_attention_over_the_pool(case, dim, processors, monkeypatch):
    """In one part and in several."""
    monkeypatch.setattr(device, "multiprocessors", lambda: processors)
    count, queries, heads, groups, room = 3, 20, 4, 2, 96
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn((count, queries, n, dim), generator=generator) * 0.5 for n in (heads, groups, groups))
    cache = tuple(torch.randn((4, room + 1, groups, dim), generator=generator) for _ in range(2))
    lo, hi, width = seen(case, count, queries)
    number = {"dtype": torch.int32, "device": DEVICE}
    canvas = torch.tensor([20, 7, 20], **number) if case == "canvas" else None
    slot = torch.tensor([2, 0, 3], **number)
    keys = attention.KeyRange(slot, torch.tensor(lo, **number), torch.tensor(hi, **number), width, canvas)
    q, k, v, *cache = (x.to(DEVICE) for x in (q, k, v, *cache))
    expected = attention.plain(q, tuple(cache), (k, v), keys)
    strided = (torch.cat((x, x), dim=2)[:, :, : x.shape[2]] for x in (q, k, v))  # as parts of one product
    q, k, v = strided
    assert (attention_kernels.attend(q, tuple(cache), (k, v), keys) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("parts", "queries", "dim"), [(2, (2, 3, 5), 256), (3, (1, 5, 3), 512), (8, (1, 1, 4), 512), (8, (3, 7, 1), 64)]
)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)], ids=str)
def test_means_over_parts_of_the_keys(parts, queries, dim, dtype, error):
    """Parts without keys, a query without any, and scores of which only the highest count."""
    means, top, mass = rows(parts, *queries, dim), rows(parts, *queries, seed=1) * 60, rows(parts, *queries, seed=2)
    mass = mass.exp()
    for empty in ((0, ..., 0), (-1, 0), (slice(None), 0, -1, -1)):
        means[empty], top[empty], mass[empty] = 0, -1e30, 0
    shares = mass.double() * (top.double() - top.double().amax(dim=0)).exp()
    expected = (means * (shares / shares.sum(dim=0).clamp(min=1e-30))[..., None]).sum(dim=0)
    result = attention_kernels.combined(means, top, mass, dtype)
    assert result.dtype == dtype and (result - expected).abs().max() < error
    assert not result[0, -1, -1].any()


@pytest.mark.parametrize(("count", "top_k", "dim"), [(1, 8, 2816), (7, 3, 40), (5, 1, 1025), (16, 2, 16)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str)
def test_the_outputs_of_experts_are_summed(count, top_k, dim, dtype, error, monkeypatch):
    """A weight of 0 hides NaN: a row of padding, and an expert of another rank. A weight that is NaN is seen."""
    y, weights = rows(count * top_k, dim).to(dtype), rows(count, top_k, seed=1).abs()
    places = rows(count * top_k, seed=2).argsort().int().view(count, top_k)
    weights[1:2] = weights[-1, 0] = 0
    y[places[weights == 0].long()] = float("nan")
    results = []
    for on in (False, True):
        monkeypatch.setattr(device, "by_kernel", lambda x, on=on: on)
        results.append(fused.gather(y, places, weights))
    assert results[1].dtype == dtype and (results[0] - results[1]).abs().max() < error
    assert not results[1][1:2].any()
    weights[0, 0] = float("nan")
    assert fused.gather(y, places, weights)[0].isnan().all()
    assert fused.gather(y, places, weights.requires_grad_()).requires_grad  # the kernel knows no gradients


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "nvfp4"])
def test_a_whole_model_by_the_kernels(tmp_path, mode, monkeypatch):
    """Texts and canvases of several lengths, a sliding layer past its window, and what a pass tells the next. In
    float32: the interpreter cannot multiply bfloat16. Beside nvfp4, attention and the table are affine."""
    monkeypatch.setattr("mlx_dgemma.torch_backend.model.PREFILL_CHUNK", 32)
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    if mode == "plain":
        folder = write(tmp_path, **layers)
    else:
        folder = quantized(tmp_path, default={"group_size": 16, "bits": 4, "mode": mode}, shape=layers)[0]
    model, _, _ = load(folder, "torch", "float32")
    rng, results, pool = np.random.default_rng(0), {}, model.graphs.pool
    texts, canvases = [rng.integers(256, size=n) for n in (40, 3)], rng.integers(256, size=(2, 16))
    uniforms = rng.random((2, 16), dtype=np.float32)
    for by_kernel in (False, True):
        monkeypatch.setattr(device, "by_kernel", lambda x, on=by_kernel: on)
        model.padded = by_kernel
        monkeypatch.setattr(model.graphs, "pool", pool if by_kernel else None)  # the loop over experts is no graph
        if by_kernel:
            for layer in model.network.modules():
                if isinstance(layer, Linear):
                    layer.tile()
        rows = [Row(c, model.new_cache(), 0.7, u, Text(t)) for c, u, t in zip(canvases, uniforms, texts, strict=True)]
        conditioning = [prediction.self_conditioning for prediction in model.denoise(rows)]
        rows = [
            replace(row, pending=Text(), self_conditioning=last) for row, last in zip(rows, conditioning, strict=True)
        ]
        results[by_kernel] = np.stack([model.logits(row) for row in rows])
    assert np.abs(results[True] - results[False]).max() < 1e-3
