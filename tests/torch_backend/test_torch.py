"""The torch backend alone: precisions, growing pools, shapes for graphs, and messages to the user."""

from __future__ import annotations

import dataclasses
import gc
import sys

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
pytest.importorskip("transformers", reason="the reference")
import reference
import torch
from folders import quantized, says, tensors, write

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.errors import Mistake
from mlx_dgemma.load import choose_backend, load, load_model
from mlx_dgemma.seam.model import Continuation, Draw, Row, Text
from mlx_dgemma.torch_backend import device as devices
from mlx_dgemma.torch_backend import shapes, weights


def made(folder, dtype: str = "float32", **shape):
    config = checkpoints.config(**shape)
    checkpoints.write(folder, config, checkpoints.weights(config, seed=5))
    return load_model(Checkpoint(folder, parse_config(config, checkpoints.generation_config())), "torch", dtype)


def logits(model, canvas=None) -> np.ndarray:
    canvas = np.arange(model.config.canvas_length) % 90 if canvas is None else canvas
    row = Row(canvas, model.new_cache(), 1.0, np.zeros(len(canvas), np.float32), Text(np.arange(40)))
    return model.logits(row)


def test_bfloat16_errs_no_more_than_the_reference_does(tmp_path):
    exact, rounded = made(tmp_path), made(tmp_path, "bfloat16")
    published = reference.load(tmp_path).to(torch.bfloat16)
    errors = {"ours": [], "reference": []}
    for seed in range(8):
        canvas = np.random.default_rng(seed).integers(96, size=16)
        expected = logits(exact, canvas)
        ids = torch.arange(40)[None]
        with torch.no_grad():
            output = published.model.encoder(input_ids=ids, position_ids=ids)
            output = published(
                decoder_input_ids=torch.tensor(canvas)[None],
                past_key_values=output.past_key_values,
                decoder_position_ids=torch.arange(40, 56)[None],
            )
        errors["reference"].append(np.abs(output.logits[0].float().numpy() - expected))
        errors["ours"].append(np.abs(logits(rounded, canvas) - expected))
    mean = {who: np.mean(error) for who, error in errors.items()}
    assert 0 < mean["ours"] <= 1.5 * mean["reference"], mean


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
def test_quantized_folders_say_what_mlx_says(tmp_path, mode):
    group = {"nvfp4": 16}.get(mode, 32)
    default = {"group_size": group, "bits": 8 if mode == "mxfp8" else 4, "mode": mode}
    folder, _, _ = quantized(tmp_path, default=default)
    torch_model, mlx_model = (load(folder, backend)[0] for backend in ("torch", "mlx"))
    canvas = np.arange(16)
    assert np.abs(logits(torch_model, canvas) - logits(mlx_model, canvas)).max() < 1e-3


def test_fp8():
    """The embedded model: the error of its logits is 5.7 % of their spread, where bfloat16's is 1.1 %."""
    models = {dtype: load(backend="torch", dtype=dtype)[0] for dtype in ("float32", "bfloat16", "fp8")}
    rows = {dtype: logits(model) for dtype, model in models.items()}
    error = {d: np.sqrt(np.mean((x - rows["float32"]) ** 2) / np.var(rows["float32"])) for d, x in rows.items()}
    print(error)
    assert 0 < error["bfloat16"] < 0.015 and error["bfloat16"] < error["fp8"] < 0.1, error
    network = models["fp8"].network
    layer = network.model.decoder.layers[0]
    assert layer.experts.gate_up_proj.weight.dtype == layer.self_attn.o_proj.weight.dtype == torch.float8_e4m3fn
    assert layer.router.proj.weight.dtype == network.table.weight.dtype == torch.bfloat16


def test_fp8_is_for_torch_and_for_weights_that_are_not_quantized(tmp_path):
    folder, _, _ = quantized(tmp_path)
    says(folder, "fp8", "torch", backend="mlx", dtype="fp8")
    says(folder, "quantized already", "fp8", backend="torch", dtype="fp8")


def test_the_pool_grows_and_moves_what_it_holds(tmp_path):
    model = made(tmp_path)
    tokens = np.random.default_rng(0).integers(96, size=300)
    caches = [model.new_cache() for _ in range(3)]
    for piece in np.split(tokens, 10):
        model.encode([Text(piece)] * 3, caches)
    assert model.pool.slots == 3 and model.pool.capacity >= 300
    whole = model.new_cache(300)
    model.encode([Text(tokens)], [whole])
    assert model.pool.slots == 4
    row = Row(np.arange(16), whole, 1.0, np.zeros(16, np.float32))
    expected = model.logits(row)
    for cache in caches:
        assert np.abs(model.logits(dataclasses.replace(row, cache=cache)) - expected).max() < 1e-4
    del caches, whole, row, cache
    gc.collect()
    assert sorted(model.pool.free) == [0, 1, 2, 3]


def test_few_shapes_serve_all_requests(tmp_path):
    """Each shape of the rows, texts and contexts of a run is captured once."""
    model = made(tmp_path)
    model.padded, seen = True, set()
    run = model.graphs.run
    model.graphs.run = lambda key, *rest: (seen.add(key), run(key, *rest))[1]
    for request in range(6):
        rows = []
        for i in range(request % 3 + 1):
            pending = Text(np.arange(5 + 7 * request + i))
            rows.append(Row(np.arange(16), model.new_cache(), 0.7, np.zeros(16, np.float32), pending))
        for _ in range(3):
            model.denoise(rows)
            rows = [dataclasses.replace(row, pending=Text()) for row in rows]
    passes = [key[1].blocks for key in seen if key[0] == "pass" and not key[1].blocks[-1].causal]
    assert {blocks[-1].count for blocks in passes} == {1, 2, 4}
    assert {len(blocks) for blocks in passes} == {1, 2}
    assert {block.length for blocks in passes for block in blocks} == {16}
    assert {block.context for blocks in passes for block in blocks} == {64} and len(passes) == 6


def test_one_synchronisation_a_step(tmp_path, monkeypatch):
    model = made(tmp_path)
    model.padded, count = True, []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: (count.append(x), x)[1])
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        if name != "tolist":  # the experts' loop on a CPU reads their ends
            monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits for the device"))
    row = Row(np.arange(16), model.new_cache(), 0.7, np.zeros(16, np.float32), Text(np.arange(9)))
    row.allowed, row.token_sets = np.zeros(16, np.int32), [model.token_set([4, 5, 6])]
    model.denoise([row])
    assert len(count) == 1


@pytest.mark.slow
def test_chains_can_be_compiled():
    from mlx_dgemma.torch_backend import fused, sweep

    generator = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(s, generator=generator) for s in ((6, 32), (6, 32), (32,)))
    cases = [
        (fused.rms_norm, (x, w, 1e-6)),
        (fused.rms_norm, (x, None, 1e-6)),
        (fused.rotated_norm, (x.view(6, 2, 16), w[:16], torch.randn((2, 6, 8), generator=generator), 1e-6)),
        (fused.gated, (x,)),
        (fused.gated, (x, True)),
        (fused.after_attention, (x, y, (w, w + 1, w + 2), w, 1e-6)),
        (fused.after_attention, (x, y, (w, w + 1, w + 2), w, 1e-6, True)),
        (fused.after_experts, (x, y, y + 1, (w, w, w), x[:, :1], 1e-6)),
        (fused.to_fp8, (x,)),
        (sweep.reduce_slices, (x.view(6, 4, 8), y[:, 0].abs(), None, 30.0)),
        (sweep.probabilities, (x, y[:, 0].abs(), x > 0, y[:, 1], 30.0)),
    ]
    for function, arguments in cases:
        # A GPU's compiler gets this: one graph for all sizes. That it is traced is seen without compiling it.
        traced = torch.compile(function.__wrapped__, dynamic=True, fullgraph=True, backend="aot_eager")
        result, expected = traced(*arguments), function(*arguments)
        for array, other in zip(*map(flat, (result, expected)), strict=True):
            assert torch.allclose(array.float(), other.float(), atol=1e-5), function.__name__


def flat(value) -> list[torch.Tensor]:
    return [array for part in value for array in flat(part)] if isinstance(value, tuple) else [value]


def test_autoregression_at_the_end_of_the_context(tmp_path):
    model = made(tmp_path, max_position_embeddings=44)
    text = Continuation(model.new_cache(), Text(np.arange(40)), np.zeros(16, np.float32))
    assert len(list(model.autoregress([text], Draw()))) == 4


def test_powers_of_two():
    assert [shapes.power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 1000)] == [0, 1, 2, 4, 4, 8, 1024]


def test_what_is_chosen(monkeypatch):
    module = sys.modules["mlx_dgemma.load"]
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    assert choose_backend() == ("torch" if torch.cuda.is_available() and sys.platform != "darwin" else "mlx")
    monkeypatch.setattr(module, "find_spec", lambda name: name == "torch")
    assert choose_backend() == "torch"
    monkeypatch.setattr(module, "find_spec", lambda name: False)
    assert choose_backend() == "mlx"


def test_without_torch(monkeypatch, tmp_path):
    write(tmp_path)
    monkeypatch.delitem(sys.modules, "mlx_dgemma.torch_backend.load", raising=False)  # so that it is imported anew
    monkeypatch.setitem(sys.modules, "torch", None)
    says(tmp_path, "torch cannot be imported", "mlx_dgemma[cuda]", backend="torch")


def test_too_little_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "free", lambda device: 1000)
    says(write(tmp_path), "too little memory", "needs", "free", backend="torch")


def test_a_cache_that_takes_the_place_of_another(tmp_path):
    """The pool has no second slot, and nothing that was captured with its addresses is dropped."""
    model = made(tmp_path)
    row = Row(np.arange(16), model.new_cache(), 1.0, np.zeros(16, np.float32), Text(np.arange(9)))
    model.denoise([row])
    moves: list[None] = []
    model.pool.moved = lambda: moves.append(None)
    for _ in range(3):
        unused = [model.new_cache(), model.new_cache().copy()]  # as a writing that is given another one
        row = dataclasses.replace(row, cache=model.new_cache())
        row.cycle = row  # only the collector frees what held the last cache
        model.denoise([row])
        assert all(cache.slot is None for cache in unused)
    assert model.pool.slots == 1 and not moves
    fork = row.cache.copy()
    assert model.pool.slots == 2 and len(moves) == 1 and fork.length == 9


def test_rows_that_start_together_take_as_many_slots(tmp_path):
    model = made(tmp_path)
    rows = [Row(np.arange(16), model.new_cache(), 1.0, np.zeros(16, np.float32)) for _ in range(5)]
    moves: list[None] = []
    model.pool.moved = lambda: moves.append(None)
    model.padded = True
    model.denoise([*rows, rows[0]])
    assert model.pool.slots == 5 and len(moves) == 1


def test_no_output_of_a_pass_is_read_behind_the_next(tmp_path, monkeypatch):
    """Graphs share their memory: what one left there, another may overwrite."""
    model = made(tmp_path)
    model.padded, run, left = True, model.graphs.run, []

    def overwriting(key, function, inputs):
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        for tensor in left:
            tensor.fill_(-1)
        outputs = run(key, function, inputs)
        left[:] = [a for a in vars(outputs).values() if a is not None] if key[0] == "sweep" else [outputs]
        return outputs

    def results() -> list:
        texts, sets = [Text(np.arange(n)) for n in (9, 5)], [model.token_set([3, 5, 8])]
        rows = [Row(np.arange(16), model.new_cache(), 1.0, np.zeros(16, np.float32), text) for text in texts]
        rows[0].allowed, rows[0].token_sets = np.zeros(16, np.int32), sets
        arrays = []
        for _ in range(2):
            last = model.denoise(rows)
            arrays += [a for p in last for a in (p.entropy, p.sample, *p.allowed_logprobs.values())]
            for row, prediction in zip(rows, last, strict=True):
                row.pending, row.self_conditioning = Text(), prediction.self_conditioning
        arrays += [text.logprob[1:] for text in model.encode(texts, [model.new_cache() for _ in texts], score=True)]
        following = [Continuation(row.cache, Text(), np.zeros(2, np.float32)) for row in rows]
        return [*arrays, *model.autoregress(following, Draw())]

    expected = results()
    monkeypatch.setattr(model.graphs, "run", overwriting)
    for found, wanted in zip(results(), expected, strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_a_checksum_sees_every_number_and_its_place(dtype, monkeypatch):
    monkeypatch.setattr(weights, "WORDS", 8)  # several parts
    numbers = torch.arange(103).to(torch.uint8).view(torch.uint8).to(dtype)
    before = weights.checksum(numbers)
    changed, swapped = set(), set()
    for place in range(len(numbers)):
        other = numbers.clone().view(torch.uint8)
        other[place * numbers.element_size()] ^= 1
        changed.add(weights.checksum(other.view(dtype)).item())
        pair = [place, (place + 50) % len(numbers)]
        other = numbers.clone()
        other[pair] = numbers[pair[::-1]]
        swapped.add(weights.checksum(other).item())
        assert torch.equal(other, numbers) == (weights.checksum(other) == before).item()
    assert before.item() not in changed and len(changed) == len(numbers)
    assert weights.checksum(numbers.view(-1, 1)) == before


def test_a_saved_cache_belongs_to_weights_and_dtype(tmp_path):
    """One weight of any tensor, two that change places, or another dtype: another model."""
    model, path = made(tmp_path / "model"), tmp_path / "text.cache"
    cache = model.new_cache()
    model.encode([Text(np.arange(9))], [cache])
    cache.save(path)
    model.new_cache().load(path)
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(ValueError, match="another model"):
            made(tmp_path / "model", dtype).new_cache().load(path)
    network = model.network
    for array in network.buffers():
        before, numbers = array.clone(), array.view(-1)
        numbers[-1] *= 1.001  # one weight
        assert weights.fingerprint(network, model.config) != cache.fingerprint()
        array.copy_(before)
        if numbers[0] != numbers[-1]:
            numbers[[0, -1]] = numbers[[-1, 0]]  # two that change places
            assert weights.fingerprint(network, model.config) != cache.fingerprint()
            array.copy_(before)
    assert weights.fingerprint(network, model.config) == cache.fingerprint()


def test_out_of_device_memory(monkeypatch, tmp_path):
    model, zeros = made(tmp_path), torch.zeros

    def full(shape, *arguments, **options):
        if len(shape) == 4 and shape[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …")
        return zeros(shape, *arguments, **options)

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(Mistake, match=r"1 caches of 128 tokens .* needs 20\.00 GiB at once, .* are free on the CPU"):
        model.encode([Text([1])], [model.new_cache(100)])


def test_a_tensor_that_is_wrong(tmp_path):
    path = "model.decoder.layers.1.experts.gate_up_proj"
    folder = write(tmp_path, {**tensors(), path: np.zeros((8, 48, 31), np.float32)})
    says(folder, "shape [8, 48, 31]", "need [8, 48, 32]", backend="torch")
