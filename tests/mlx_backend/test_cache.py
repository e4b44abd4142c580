"""One layer's K and V: what is seen, what is kept, and that the past is not copied for every pass; and whose file a
saved cache is."""

from __future__ import annotations

from copy import copy

import checkpoints
import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.mlx_backend import weights
from mlx_dgemma.mlx_backend.cache import LayerCache
from mlx_dgemma.seam.model import Text

KEPT, SEEN = 30, 20
CONFIG = checkpoints.config()


def tokens(first: int, count: int, dim: int = 4) -> tuple[mx.array, mx.array]:
    """Keys that are their positions, values their negatives."""
    positions = mx.broadcast_to(
        mx.arange(first, first + count, dtype=mx.float32)[None, None, :, None], (1, 2, count, dim)
    )
    return positions, -positions


@pytest.mark.parametrize("pieces", [[5, 1, 1, 40, 16, 16], [100], [10] * 12])
@pytest.mark.parametrize("sliding", [False, True])
def test_what_is_seen_and_kept(pieces, sliding):
    cache, length = LayerCache(40, SEEN, KEPT) if sliding else LayerCache(40, None, None), 0
    for count in pieces:
        for canvas in (True, False):  # first a canvas, which leaves nothing behind
            keys, values = cache.view(cache.write(*tokens(1000 if canvas else length, count), text=not canvas))
            past = min(length, SEEN) if sliding else length
            start = 1000 if canvas else length
            expected = [*range(length - past, length), *range(start, start + count)]
            assert np.array_equal(np.array(keys[0, 1, :, 0]), expected)
            assert np.array_equal(np.array(values), -np.array(keys))
        length += count
        assert cache.retained == (min(length, KEPT) if sliding else length)
        assert np.array_equal(np.array(cache.text()["keys"][0, 0, :, 0]), range(length - cache.retained, length))


@pytest.mark.parametrize("sliding", [False, True])
def test_a_pass_writes_in_place(sliding):
    """Of 20,000 tokens, 40 MB: a canvas of 16 costs about its own size. Room is made once in a while."""
    cache = LayerCache(16, 19_000, 19_500) if sliding else LayerCache(16, None, None, 21_000)
    cache.write(*tokens(0, 20_000, 128), text=True)
    mx.eval(cache.keys, cache.values)
    copied = 0
    for step in range(60):
        new = tokens(20_000, 16, 128)
        mx.eval(new)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        spans = [cache.write(*new, text=text) for text in ((True, False) if step % 2 else (False,))]
        seen = [cache.view(span) for span in spans]
        mx.eval(cache.keys, cache.values, seen)
        del seen
        copied += mx.get_peak_memory() - before > 1_000_000
    assert copied <= 1


@pytest.mark.parametrize("sliding", [False, True])
def test_a_text_sees_itself_behind_which_a_canvas_is_written(sliding):
    cache = LayerCache(6, SEEN, KEPT) if sliding else LayerCache(6, None, None)
    length = 0
    for count in (7, 50, 1, 1, 13, 6, 6, 6):
        text = cache.write(*tokens(length, count), text=True)
        canvas = cache.write(*tokens(1000, 6), text=False)
        past, length = length, length + count
        for span, end, behind in ((text, past, range(past, length)), (canvas, length, range(1000, 1006))):
            first = max(0, end - SEEN) if sliding else 0
            assert np.array_equal(np.array(cache.view(span)[0][0, 0, :, 0]), [*range(first, end), *behind])


def test_a_fork_is_a_copy_only_once_it_is_written():
    cache = LayerCache(64, None, None, 300)
    cache.write(*tokens(0, 200, 256), text=True)
    mx.eval(cache.keys, cache.values)
    before = mx.get_active_memory()
    fork = copy(cache)
    assert mx.get_active_memory() == before
    fork.write(*tokens(500, 8, 256), text=True)
    cache.write(*tokens(700, 8, 256), text=True)
    for layer, start in ((fork, 500), (cache, 700)):
        assert np.array_equal(np.array(layer.text()["keys"][0, 0, :, 0]), [*range(200), *range(start, start + 8)])


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.weights(CONFIG)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """tensors and a dtype -> their model."""

    def make(tensors: dict[str, np.ndarray], dtype: str = "float32"):
        folder = checkpoints.write(tmp_path_factory.mktemp("model"), CONFIG, tensors)
        return load_model(Checkpoint(folder, parse_config(CONFIG, checkpoints.generation_config())), "mlx", dtype)

    return make


@pytest.fixture(scope="module")
def saved(model_of, tensors, tmp_path_factory):
    """A cache's file, and the model that made it."""
    model, path = model_of(tensors), tmp_path_factory.mktemp("saved") / "text.cache"
    cache = model.new_cache()
    model.encode([Text([3, 4, 5])], [cache])
    cache.save(path)
    return path, model


def test_the_same_weights_take_it(saved, model_of, tensors):
    cache = model_of(tensors).new_cache()
    cache.load(saved[0])
    assert cache.length == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_another_model(saved, model_of, tensors, dtype):
    with pytest.raises(ValueError, match="made by another model"):
        model_of(tensors, dtype).new_cache().load(saved[0])


@pytest.mark.parametrize("change", ["one weight", "two swapped"])
def test_a_tuned_model_is_another_model(saved, model_of, tensors, change):
    name = "model.decoder.layers.1.experts.gate_up_proj"
    array = tensors[name].copy()
    if change == "one weight":
        array[5, 30, 20] = np.nextafter(array[5, 30, 20], np.float32(9))
    else:
        array[5, 30, 20], array[2, 7, 9] = array[2, 7, 9], array[5, 30, 20]
    with pytest.raises(ValueError, match="made by another model"):
        model_of({**tensors, name: array}).new_cache().load(saved[0])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.uint32, mx.uint8], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (33, 65)])
def test_a_checksum_is_of_every_byte_in_its_place(monkeypatch, dtype, shape):
    monkeypatch.setattr(weights, "CHECKED", 100)
    array = mx.random.randint(0, 250, shape, key=mx.random.key(0)).astype(dtype)
    raw = np.array(array.reshape(-1).view(mx.uint8))
    words = np.pad(raw, (0, -len(raw) % 4)).view(np.uint32).tolist()
    expected = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**64
    assert weights.checksum(array) == weights.checksum(mx.array(np.array(array.view(mx.uint8))).view(dtype)) == expected


def test_a_checksum_sees_signs_that_are_swapped():
    """Their words differ by 2^31 alone, which an even factor would take out of 32 bits."""
    array = mx.array([1.0, -1.0, 1.0])
    assert weights.checksum(array) != weights.checksum(mx.array([-1.0, 1.0, 1.0]))
    assert weights.checksum(array) != weights.checksum(mx.array([1.0, 1.0, -1.0]))
