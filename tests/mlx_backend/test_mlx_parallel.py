"""A rank's share on MLX: what it holds, and what it sends."""

from __future__ import annotations

import checkpoints
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.shares import WHOLE, Share
from mlx_dgemma.load import load_model
from mlx_dgemma.mlx_backend import parallel
from mlx_dgemma.seam.model import Row, Text


class Group:
    def rank(self) -> int:
        return 1

    def size(self) -> int:
        return 2


def test_a_rank_of_two_holds_its_half_and_sends_what_is_counted(monkeypatch, tmp_path):
    """Where all layers' heads divide. Nobody adds anything: this is about sizes."""
    summed: list[int] = []
    monkeypatch.setenv("MLX_HOSTFILE", "hosts")
    monkeypatch.setattr(mx.distributed, "init", lambda **_: Group())
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x: (summed.append(x.nbytes), x)[1])
    monkeypatch.setattr(mx.distributed, "all_gather", lambda x: (summed.append(2 * x.nbytes), mx.tile(x, (2, 1, 1)))[1])
    monkeypatch.setattr(parallel, "mine", WHOLE)
    given = checkpoints.config(full={"num_key_value_heads": 2}, vocab_size=960)
    folder = checkpoints.write(tmp_path / "model", given, checkpoints.weights(given))
    config, share = parse_config(given), Share(1, 2)
    whole = dict(tree_flatten(load_model(Checkpoint(folder, config), "mlx", "float32").network.parameters()))
    model = load_model(Checkpoint(folder, config), "mlx", "float32", share=share)
    for path, array in tree_flatten(model.network.parameters()):
        part = share.of(config, path, whole[path].shape)
        assert np.array_equal(np.array(array), np.array(whole[path])[part]), path
    rng, cache = np.random.default_rng(0), model.new_cache()
    model.encode([Text(rng.integers(960, size=9))], [cache])
    row = Row(rng.integers(960, size=16), cache, 0.7, rng.random(16, dtype=np.float32))
    row.self_conditioning = model.denoise([row])[0].self_conditioning
    summed.clear()
    model.denoise([row])
    assert abs(sum(summed) - share.sent(config, 4)) <= 16 * 4 * 4  # a few numbers a position
