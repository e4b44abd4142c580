"""What every implementation of the seam must hold; `seam/model.py` says it in words."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import checkpoints
import numpy as np
import paths
import pytest
import shim

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.seam.model import Continuation, Draw, Row, Text

# The paths of a GPU are taken on the CPU in float32, when told so.
BACKENDS = ["mlx", "mlx as on a GPU", "mlx with our kernels", "torch", "torch as on a GPU"]
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
SHAPES = {"long window": {"sliding_window": 64}, "short window": {"sliding_window": 24, "top_k_experts": 3}}
AT_LENGTH = ("mlx with our kernels", "torch as on a GPU")
VECTORS = ("argmax", "sample", "entropy", "confidence", "top")


MODELS = [
    pytest.param((b, s), id=f"{b} {s}", marks=[pytest.mark.slow] * (s == "long window" or b in AT_LENGTH))
    for b in BACKENDS
    for s in SHAPES
    if b in ("mlx", "torch") or s == "short window"  # texts that do not fill it are short, too
]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    backend, shape = request.param
    if backend.startswith("torch"):
        torch = pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
        torch.set_num_threads(1)  # the models are small: a second thread mostly waits
        patch = pytest.MonkeyPatch()
        patch.setattr("mlx_dgemma.torch_backend.model.PREFILL_CHUNK", 64)  # what a text is padded to
        request.addfinalizer(patch.undo)
    if backend in ("mlx as on a GPU", "mlx with our kernels"):
        paths.as_on_a_gpu(request)
    config = checkpoints.config(**LAYERS, **SHAPES[shape])
    if backend == "mlx with our kernels":  # of a shape that they take, but for the vocabulary's
        patch = pytest.MonkeyPatch()
        shim.install(patch)
        request.addfinalizer(patch.undo)
        config = checkpoints.config(moe_intermediate_size=32, **LAYERS, **SHAPES[shape])
    folder = checkpoints.write(tmp_path_factory.mktemp("contract"), config, checkpoints.weights(config, peaked=3))
    model = load_model(
        Checkpoint(folder, parse_config(config, checkpoints.generation_config())), backend.split()[0], "float32"
    )
    model.backend, model.company = backend.split()[0], 0.0  # by how much company changes a row's numbers
    if backend == "torch as on a GPU":
        from replayed import Replayed

        model.padded = True  # rows go together, padded to the shapes that are captured there
        model.graphs = Replayed(model.device)
        model.company = 1e-5
    return model


def text(model, length: int, seed: int = 0) -> Text:
    return Text(np.random.default_rng(seed).integers(model.facts.vocab_size, size=length))


def encoded(model, tokens):
    cache = model.new_cache()
    model.encode([tokens], [cache])
    return cache


def row(model, cache, seed: int = 1, **changes) -> Row:
    rng = np.random.default_rng(seed)
    length = changes.pop("length", model.facts.canvas_length)
    canvas = rng.integers(model.facts.vocab_size, size=length).astype(np.int32)
    return dataclasses.replace(Row(canvas, cache, 0.7, rng.random(length, dtype=np.float32)), **changes)


def same(one, other, bound: float = 0.0) -> None:
    """To the bit, or the same tokens and numbers within `bound`."""
    for name in VECTORS:
        assert np.abs(getattr(one, name) - getattr(other, name)).max() <= bound, name


def close(one, other) -> None:
    assert np.array_equal(one.argmax, other.argmax)
    assert np.abs(one.entropy - other.entropy).max() < 1e-4


def test_kinds_and_shapes(model):
    [found] = model.denoise([row(model, encoded(model, text(model, 9)))])
    for name, dtype in (
        ("argmax", np.int32),
        ("sample", np.int32),
        ("entropy", np.float32),
        ("confidence", np.float32),
        ("top", np.float32),
    ):
        array = getattr(found, name)
        assert array.shape == (16,) and array.dtype == dtype


def test_rows_alone_and_in_company(model):
    rows = [row(model, encoded(model, text(model, n, n)), seed=n, temperature=0.4 + n / 100) for n in (1, 30, 47)]
    rows.append(row(model, encoded(model, text(model, 5)), seed=9, length=7, pending=text(model, 4)))
    rows[1].self_conditioning = model.denoise([dataclasses.replace(rows[1])])[0].self_conditioning
    alone = [model.denoise([dataclasses.replace(one, cache=one.cache.copy())])[0] for one in rows]
    for one, other in zip(alone, model.denoise(rows), strict=True):
        same(one, other, model.company)


def test_denoise_appends_pending_and_nothing_else(model):
    cache = encoded(model, text(model, 30))
    before = model.logits(row(model, cache))
    model.denoise([row(model, cache)])
    assert cache.length == 30
    assert np.array_equal(model.logits(row(model, cache)), before)
    model.denoise([row(model, cache, pending=text(model, 5))])
    assert cache.length == 35


@pytest.mark.parametrize("length", [1, 16, 50])
def test_pending_or_encoded_beforehand(model, length):
    old, new = text(model, 30), text(model, length, 2)
    cache, other = encoded(model, old), encoded(model, old)
    [one] = model.denoise([row(model, cache, pending=new)])
    model.encode([new], [other])
    [two] = model.denoise([row(model, other)])
    same(one, two, model.company)
    assert cache.length == other.length == 30 + length
    same(*(model.denoise([row(model, c, seed=3)])[0] for c in (cache, other)), model.company)


@pytest.mark.parametrize("piece", [1, 7, 24])
def test_pieces_equal_at_once(model, piece):
    tokens, cache = text(model, 45), model.new_cache()
    scores = [model.encode([tokens[i : i + piece]], [cache], score=True)[0] for i in range(0, 45, piece)]
    whole = model.new_cache()
    [score] = model.encode([tokens], [whole], score=True)
    close(model.denoise([row(model, cache)])[0], model.denoise([row(model, whole)])[0])
    assert np.array_equal(np.concatenate([s.argmax for s in scores]), score.argmax)
    pieces = np.concatenate([s.logprob for s in scores])
    assert np.isnan(pieces[0]) and np.abs(pieces[1:] - score.logprob[1:]).max() < 1e-4


def test_texts_encoded_together(model):
    texts = [text(model, n, n) for n in (3, 40, 17)]
    together = [model.new_cache() for _ in texts]
    model.encode(texts, together)
    for tokens, cache in zip(texts, together, strict=True):
        same(model.denoise([row(model, cache)])[0], model.denoise([row(model, encoded(model, tokens))])[0])


def test_rows_that_share_a_cache(model):
    cache = encoded(model, text(model, 30))
    alone = [model.denoise([row(model, cache, seed=s)])[0] for s in (1, 2)]
    shared = model.denoise([row(model, cache, seed=s) for s in (1, 2)])
    for one, other in zip(alone, shared, strict=True):
        same(one, other)
    pending = text(model, 5)
    model.denoise([row(model, cache, seed=s, pending=pending) for s in (1, 2)])
    assert cache.length == 35
    with pytest.raises(ValueError, match="share"):
        model.denoise([row(model, cache, pending=p) for p in (pending, pending[:2])])


def test_a_cache_and_its_copy(model):
    tokens = text(model, 40)
    cache = encoded(model, tokens)
    [before] = model.denoise([row(model, cache)])
    fork = cache.copy()
    model.encode([text(model, 20, 5)], [fork])
    assert (cache.length, fork.length) == (40, 60)
    same(model.denoise([row(model, cache)])[0], before)
    model.encode([text(model, 20, 6)], [cache])
    [expected] = model.denoise([row(model, encoded(model, tokens + text(model, 20, 5)))])
    close(model.denoise([row(model, fork)])[0], expected)


@pytest.mark.parametrize(("length", "trimmed"), [(5, 1), (24, 16), (60, 1), (60, 16)])
def test_trim_then_encode(model, length, trimmed):
    tokens = text(model, length + trimmed)
    cache = encoded(model, tokens)
    cache.trim(trimmed)
    assert cache.length == length
    never = encoded(model, tokens[:length])
    close(model.denoise([row(model, cache)])[0], model.denoise([row(model, never)])[0])
    scores = [model.encode([text(model, 9, 4)], [c], score=True)[0] for c in (cache, never)]
    assert np.allclose(scores[0].logprob, scores[1].logprob, atol=1e-4)
    close(model.denoise([row(model, cache)])[0], model.denoise([row(model, never)])[0])


def test_trim_all_and_too_much(model):
    cache = encoded(model, text(model, 10))
    cache.trim(10)
    assert cache.length == 0
    same(model.denoise([row(model, cache)])[0], model.denoise([row(model, model.new_cache())])[0])
    with pytest.raises(ValueError, match="forget 1 of 0"):
        cache.trim(1)
    long = encoded(model, text(model, 200))
    with pytest.raises(ValueError, match="sliding"):
        long.trim(100)
    assert long.length == 200


def test_save_and_load(model, tmp_path):
    cache = encoded(model, text(model, 50))
    cache.save(tmp_path / "text.cache")
    assert [p.name for p in tmp_path.iterdir()] == ["text.cache"]
    loaded = model.new_cache()
    loaded.load(tmp_path / "text.cache")
    assert (loaded.length, loaded.nbytes) == (cache.length, cache.nbytes)
    for _ in range(2):
        same(model.denoise([row(model, loaded)])[0], model.denoise([row(model, cache)])[0])
        for c in (cache, loaded):
            model.encode([text(model, 8, 3)], [c])


def test_a_cache_of_another_model_or_a_damaged_one(model, tmp_path):
    config = checkpoints.config(sliding_window=model.config.sliding_window, **LAYERS)
    folder = checkpoints.write(tmp_path / "other", config, checkpoints.weights(config, seed=8))
    other = load_model(
        Checkpoint(folder, parse_config(config, checkpoints.generation_config())), model.backend, "float32"
    )
    encoded(other, text(other, 5)).save(tmp_path / "theirs.safetensors")
    cache = encoded(model, text(model, 5))
    with pytest.raises(ValueError, match="another model"):
        cache.load(tmp_path / "theirs.safetensors")
    (tmp_path / "broken").write_bytes(b"no cache")
    with pytest.raises(ValueError, match="broken"):
        cache.load(tmp_path / "broken")
    whole = (cache.save(tmp_path / "ours"), (tmp_path / "ours").read_bytes())[1]
    (tmp_path / "ours").write_bytes(whole[: -len(whole) // 3] + bytes(-(-len(whole) // 3)))  # its end is zeros
    with pytest.raises(ValueError, match="damaged"):
        cache.load(tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cache.load(tmp_path / "nowhere")
    assert cache.length == 5


def test_the_canvas_looks_both_ways(model):
    cache = encoded(model, text(model, 30))
    one = row(model, cache)
    before = model.logits(one)
    for changed in (0, 15):
        canvas = one.canvas.copy()
        canvas[changed] = (canvas[changed] + 1) % model.facts.vocab_size
        moved = np.abs(model.logits(dataclasses.replace(one, canvas=canvas)) - before).max(axis=-1)
        assert (moved > 1e-6).all()


def test_fixed_positions(model):
    fixed = np.arange(16) % 3 == 0
    one = row(model, encoded(model, text(model, 30)), fixed=fixed)
    [found] = model.denoise([one])
    for name, given in zip(VECTORS, (one.canvas, one.canvas, 0, 1, 1), strict=True):
        assert np.array_equal(getattr(found, name)[fixed], np.broadcast_to(given, 16)[fixed])
    [free] = model.denoise([dataclasses.replace(one, fixed=None)])
    for name in VECTORS:
        assert np.array_equal(getattr(found, name)[~fixed], getattr(free, name)[~fixed])
    # One-hot where fixed: a hint of those ids over the free row's conditioning says the same.
    hint = np.where(fixed, one.canvas, -1)
    told = model.logits(dataclasses.replace(one, self_conditioning=found.self_conditioning))
    hinted = model.logits(dataclasses.replace(one, self_conditioning=free.self_conditioning, hint=hint))
    assert np.array_equal(told, hinted)
    assert not np.array_equal(told, model.logits(dataclasses.replace(one, self_conditioning=free.self_conditioning)))


def test_a_hint_is_the_conditioning_of_a_certain_model(model):
    one = row(model, encoded(model, text(model, 30)))
    ids = text(model, 16, 7).tokens
    # A model that is certain: only one token is allowed at each position.
    sets, allowed = [model.token_set([i]) for i in ids], np.arange(16, dtype=np.int32)
    [certain] = model.denoise([dataclasses.replace(one, allowed=allowed, token_sets=sets)])
    assert np.array_equal(certain.sample, ids)
    told = model.logits(dataclasses.replace(one, self_conditioning=certain.self_conditioning))
    hinted = model.logits(dataclasses.replace(one, hint=ids))
    assert np.abs(told - hinted).max() < 1e-4
    # -1 hints at nothing: zeros, as on a first pass.
    nothing = model.logits(dataclasses.replace(one, hint=np.full(16, -1, np.int32)))
    assert np.abs(nothing - model.logits(one)).max() < 1e-4


def test_allowed_restricts_argmax_draw_and_entropy(model):
    one = row(model, encoded(model, text(model, 30)))
    ids = [5, 90, 17]
    sets = [model.token_set([1, 2]), model.token_set(ids)]
    allowed = np.where(np.arange(16) < 8, 1, -1).astype(np.int32)
    [found] = model.denoise([dataclasses.replace(one, allowed=allowed, token_sets=sets)])
    [free] = model.denoise([one])
    assert set(found.argmax[:8]) | set(found.sample[:8]) <= set(ids)
    for name in VECTORS:
        assert np.array_equal(getattr(found, name)[8:], getattr(free, name)[8:])
    logits = model.logits(one)[:8, ids].astype(np.float64) / one.temperature
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert np.abs(found.entropy[:8] + (np.exp(logprobs) * logprobs).sum(axis=-1)).max() < 1e-4
    assert set(found.allowed_logprobs) == set(range(8))
    for position, values in found.allowed_logprobs.items():
        assert np.abs(values - logprobs[position]).max() < 1e-4
    with pytest.raises(ValueError, match="token set"):
        model.token_set([])
    with pytest.raises(ValueError, match="points to token set 2, the row has 2"):
        model.denoise([dataclasses.replace(one, allowed=np.full(16, 2, np.int32), token_sets=sets)])


def test_a_token_set_goes_with_its_last_reference(model):
    handle = model.token_set([5, 90, 17])
    allowed, gone = np.zeros(16, np.int32), weakref.ref(handle)
    one = row(model, encoded(model, text(model, 30)), allowed=allowed, token_sets=[handle])
    [found] = model.denoise([one])
    model.logits(dataclasses.replace(one, self_conditioning=found.self_conditioning))
    del handle, one
    gc.collect()
    assert gone() is None and set(found.argmax) <= {5, 90, 17}


def test_rows_with_different_token_sets(model):
    sets = [[model.token_set([5, 90, 17]), model.token_set([3])], [model.token_set([8, 9])], []]
    indices = [np.arange(16, dtype=np.int32) % 3 - 1, np.zeros(16, np.int32), None]
    caches = [encoded(model, text(model, n, n)) for n in (5, 30, 12)]
    rows = [
        row(model, cache, seed=i, allowed=allowed, token_sets=own)
        for i, (cache, allowed, own) in enumerate(zip(caches, indices, sets, strict=True))
    ]
    alone = [model.denoise([one])[0] for one in rows]
    for one, other in zip(alone, model.denoise(rows), strict=True):
        same(one, other, model.company)
        assert one.allowed_logprobs.keys() == other.allowed_logprobs.keys()
        for position, values in one.allowed_logprobs.items():
            assert np.abs(values - other.allowed_logprobs[position]).max() < 1e-4


def test_top_is_the_probability_of_the_argmax(model):
    one = row(model, encoded(model, text(model, 30)), temperature=1.3)
    [found] = model.denoise([one])
    logits = model.logits(one).astype(np.float64) / one.temperature
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    assert np.abs(found.top - probabilities.max(axis=-1)).max() < 1e-5


def test_the_uniforms_fix_the_draw(model):
    one = row(model, encoded(model, text(model, 30)), temperature=1.3)
    logits = model.logits(one).astype(np.float64) / one.temperature
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    below = np.nextafter(np.float32(1), np.float32(0))
    for uniforms in (np.zeros(16), np.linspace(0, below, 16), np.full(16, below), one.uniforms):
        [found] = model.denoise([dataclasses.replace(one, uniforms=uniforms.astype(np.float32))])
        sums = np.cumsum(probabilities, axis=-1)
        at = np.take_along_axis(sums, found.sample[:, None], axis=-1)[:, 0]
        own = np.take_along_axis(probabilities, found.sample[:, None], axis=-1)[:, 0]
        # The smallest token whose cumulative probability exceeds the uniform, up to float32 rounding.
        assert (at > uniforms - 1e-6).all() and (at - own <= uniforms + 1e-6).all()
        assert np.abs(found.confidence - own).max() < 1e-5
    entropy = -(probabilities * np.log(probabilities)).sum(axis=-1)
    assert np.abs(found.entropy - entropy).max() < 1e-4
    assert np.array_equal(found.argmax, logits.argmax(axis=-1))


def continuation(model, cache, pending=None, seed: int = 1, length: int = 16, allowed=None) -> Continuation:
    uniforms = np.random.default_rng(seed).random(length, dtype=np.float32)
    return Continuation(cache, Text() if pending is None else pending, uniforms, allowed)


def test_left_to_right_takes_the_argmax_of_the_causal_pass(model):
    tokens = text(model, 20)
    texts = [continuation(model, model.new_cache(), tokens), continuation(model, encoded(model, tokens[:9]))]
    writing = model.autoregress(texts, Draw())
    written = np.array([next(writing) for _ in range(6)]).T
    fork = texts[0].cache.copy()  # in the midst of it
    fork.trim(2)
    [score] = model.encode([Text([4])], [fork], score=True)
    [expected] = model.encode([Text([4])], [encoded(model, tokens + Text(written[0, :4]))], score=True)
    assert np.abs(score.logprob - expected.logprob).max() < 1e-4
    writing.close()
    for one, start, own in zip(texts, (tokens, tokens[:9]), written, strict=True):
        assert one.cache.length == len(start) + 6
        [score] = model.encode([start + Text(own)], [model.new_cache()], score=True)
        likeliest = score.argmax[:-1] == np.append(start.tokens, own)[1:]
        assert likeliest.any() and np.abs(score.top[:-1] - score.logprob[1:])[likeliest].max() < 1e-5
        assert (score.top[:-1] >= score.logprob[1:] - 1e-5).all()
        assert np.array_equal(score.argmax[len(start) - 1 : -1], own)
    drawn = list(model.autoregress([continuation(model, texts[0].cache, length=5)], Draw(temp=1.0)))
    assert len(drawn) == 5 and texts[0].cache.length == 31


def test_left_to_right_ends_with_the_uniforms(model):
    one = continuation(model, encoded(model, text(model, 20)), length=3)
    assert len(list(model.autoregress([one], Draw()))) == 3 and one.cache.length == 23


@pytest.mark.parametrize("draw", [Draw(), Draw(temp=1.3), Draw(temp=1.3, top_k=2)], ids=["argmax", "drawn", "top-k"])
def test_left_to_right_within_a_token_set(model, draw):
    tokens, ids = text(model, 20), np.array([5, 90, 17, 33])
    texts = [
        continuation(model, encoded(model, tokens), length=1, allowed=model.token_set(ids)),
        continuation(model, encoded(model, tokens), length=1),
    ]
    [[restricted, free]] = model.autoregress(texts, draw)
    alone = [
        next(model.autoregress([dataclasses.replace(one, cache=encoded(model, tokens))], draw))[0] for one in texts
    ]
    assert [restricted, free] == alone
    scores = model.encode([Text([i]) for i in ids], [encoded(model, tokens) for _ in ids], score=True)
    logprobs = np.array([score.logprob[0] for score in scores], np.float64)
    if not draw.temp:
        assert restricted == ids[logprobs.argmax()]
        return
    order = np.argsort(ids)
    p = np.exp(logprobs[order] / draw.temp)
    p = np.where(p >= np.sort(p)[-(draw.top_k or 4)], p, 0)
    sums = np.cumsum(p)
    assert restricted == ids[order][np.searchsorted(sums, texts[0].uniforms[0] * sums[-1], side="right")]


@pytest.fixture(scope="module")
def next_token(model) -> np.ndarray:
    """[V] float64: the log-probability of each token behind `text(model, 20)`, by the causal pass."""
    start, ids = encoded(model, text(model, 20)), range(model.facts.vocab_size)
    scores = model.encode([Text([i]) for i in ids], [start.copy() for _ in ids], score=True)
    return np.array([score.logprob[0] for score in scores], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"top_k": 9, "top_p": 0.8}, {"min_p": 0.3}])
def test_left_to_right_draws_from_what_the_options_leave(model, next_token, options):
    start = encoded(model, text(model, 20))
    texts = [continuation(model, start.copy(), seed=seed, length=1) for seed in range(8)]
    [drawn] = model.autoregress(texts, Draw(temp=1.3, **options))
    p = np.exp(next_token / 1.3)
    p /= p.sum()
    for one, token in zip(texts, drawn, strict=True):
        order = np.argsort(-p)
        kept = p >= options.get("min_p", 0) * p.max()
        kept[order[options.get("top_k", len(p)) :]] = False
        kept[order[np.cumsum(p[order]) - p[order] >= options.get("top_p", 1)]] = False
        sums = np.cumsum(np.where(kept, p, 0))
        assert token == np.searchsorted(sums, one.uniforms[0] * sums[-1], side="right")


@pytest.mark.parametrize("length", [3, 60])
def test_the_bytes_of_a_cache_are_known_beforehand(model, length):
    """60 tokens are more than sliding layers keep. A cache also has the last hidden states."""
    cache = model.new_cache()
    model.encode([Text(np.arange(length) % 90)], [cache])
    hidden = 4 * model.config.hidden_size * min(length, model.facts.canvas_length + 1)
    assert cache.nbytes == model.cache_bytes(length) + hidden
    assert model.free_memory() > 1e6


def test_the_clock_goes_forward(model):
    first, second = model.now(), model.now()
    assert isinstance(first, float) and second >= first


def test_token_ids_out_of_the_vocabulary(model):
    with pytest.raises(ValueError, match=r"token ids must be in \[0, 96\), got 96"):
        model.encode([Text([96])], [model.new_cache()])
