"""What loading takes at most: counted on a CPU, with weights in tiles as on a GPU."""

from __future__ import annotations

import weakref
from collections import Counter

import checkpoints
import numpy as np
import pytest
from folders import quantized

pytest.importorskip("torch", reason="the torch backend: pip install torch==2.13.0")
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlx_dgemma.benchmark.subject import PRECISIONS
from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.load import dummy, load_model
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.torch_backend import device, formats

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "moe_intermediate_size": 64}


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations inside return, while they are alive."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for array in tree_leaves(made):
            if isinstance(array, torch.Tensor) and not array.is_meta:
                storage = array.untyped_storage()
                if id(storage) not in self.bytes:
                    self.bytes[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.bytes.pop, id(storage), None)
        self.most = max(self.most, self.bytes.total())
        return made


@pytest.fixture
def tiles(monkeypatch):
    """Loading lays weights out as on a GPU, a few rows at a time."""
    monkeypatch.setattr(formats, "PIECE", 1 << 10)
    with monkeypatch.context() as loading:
        loading.setattr(device, "by_kernel", lambda x: not x.is_meta)
        yield loading


def check(most: int, network: torch.nn.Module, copy: int = 1) -> None:
    """The model, and a copy of one linear, of `copy` times its bytes."""
    sizes = [sum(a.nbytes for a in module.buffers(recurse=False)) for module in network.modules()]
    assert sum(sizes) <= most <= sum(sizes) + 1.15 * copy * max(sizes), (sum(sizes), max(sizes), most)


@pytest.mark.parametrize("vocab_size", [8192, 288])
@pytest.mark.parametrize("precision", ["4bit", "fp8", "bf16"])
def test_random_weights_take_one_copy_of_one_linear(precision, vocab_size, tiles):
    config = parse_config(checkpoints.config(**SHAPE, vocab_size=vocab_size))
    with Alive() as alive:
        model = dummy(config, "torch", *PRECISIONS[precision])
    check(alive.most, model.network, 2 if precision == "fp8" else 1)  # bfloat16 before


def test_a_checkpoint_takes_one_copy_of_one_linear_and_says_the_same(tmp_path, tiles):
    folder, *_ = quantized(tmp_path, shape=SHAPE | {"vocab_size": 8192})
    checkpoint = Checkpoint(folder, parse_config(*read_configs(folder)))
    with Alive() as alive:
        model = load_model(checkpoint, "torch", "float32")
    check(alive.most, model.network)
    tiles.undo()
    plain, found = load_model(checkpoint, "torch", "float32"), []
    layers = [one.network.model.decoder.layers[0] for one in (model, plain)]
    assert layers[0].self_attn.qkv.linears[0].width == 128 and layers[1].self_attn.qkv.linears[0].width is None
    for one in (model, plain):
        row = Row(
            np.arange(16, dtype=np.int32), one.new_cache(), 1.0, np.zeros(16, np.float32), pending=Text([3, 4, 5])
        )
        found.append(one.logits(row))
    assert np.array_equal(*found)
