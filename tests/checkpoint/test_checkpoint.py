"""A checkpoint's headers, read once; and files that are there whole or not at all."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

from mlx_dgemma.checkpoint import checkpoint as module
from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.shares import Share
from mlx_dgemma.checkpoint.whole_file import whole_file

CONFIG = checkpoints.config(vocab_size=288)


def test_headers_are_read_once_and_shares_add_up(tmp_path, monkeypatch):
    stored = checkpoints.weights(CONFIG)
    copy = {"lm_head.weight": stored["model.decoder.embed_tokens.weight"]}
    vision = {"model.encoder.vision_tower.std_bias": np.zeros(9, np.float32)}
    folder = checkpoints.write(tmp_path / "model", CONFIG, stored | copy | vision)
    reads, read = [], module.read_tensors
    monkeypatch.setattr(module, "read_tensors", lambda folder: reads.append(folder) or read(folder))
    checkpoint = Checkpoint(folder, parse_config(CONFIG))
    assert checkpoint.nbytes() == sum(array.nbytes for array in stored.values())
    divided = [checkpoint.nbytes(Share(rank, 2)) for rank in (0, 1)]
    assert divided[0] == divided[1] and checkpoint.nbytes() < sum(divided) < 2 * checkpoint.nbytes()
    assert checkpoint.identity() == checkpoint.identity() and reads == [folder]


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path, suffix):
    path = tmp_path / ("a" * 200)
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path, suffix) as part:
        part.write_text("new")
        assert part.name.endswith(suffix) and path.read_text() == "old"
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == "old"
    with whole_file(path, suffix) as part:
        part.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == "new"
