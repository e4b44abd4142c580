"""What a run needs of memory: README's table is what `memory.py` counts, of the published shape."""

from __future__ import annotations

import re
from pathlib import Path

import checkpoints
import pytest

import mlx_dgemma
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.load import load
from mlx_dgemma.train.memory import in_last_layers, linear_shapes, needed
from mlx_dgemma.train.options import Options

README = (Path(mlx_dgemma.__file__).parent / "train" / "README.md").read_text()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return parse_config(*read_configs(checkpoints.published(tmp_path_factory.mktemp("published"))))


@pytest.mark.parametrize(("name", "weights"), [("4-bit", 15.4), ("bfloat16", 50.5)])
def test_the_table(config, name, weights):
    row = next(line for line in README.splitlines() if line.startswith(f"| {name} |"))
    totals = [float(number) for number in re.findall(r"([\d.]+) GB:", row)]
    options = Options(batch_size=1)
    counted = [sum(needed(config, int(weights * 1e9), options, n, True).values()) / 1e9 for n in (1024, 4096)]
    assert totals == [round(total, 1) for total in counted]


def test_an_adapter_s_numbers(config):
    """18.6 million on attention and the dense MLP at rank 16; 238 million on all experts at rank 8."""
    experts = {"keys": ["experts.gate_up_proj", "experts.down_proj"], "rank": 8}
    for lora, numbers in (({}, 18.6e6), (experts, 238e6)):
        options = Options(batch_size=1, lora_parameters=lora)
        learnt = needed(config, 0, options, 10, True)["what is learnt"]
        assert learnt == pytest.approx(16 * numbers, rel=0.01)


def test_shapes_are_the_network_s(tmp_path):
    from mlx_dgemma.mlx_backend.lora import shapes

    model, _, _ = load(None, "mlx")
    ours, theirs = linear_shapes(model.config), shapes(model.network)
    assert ours == {path: theirs[path] for path in ours}
    assert {p for p in theirs if ".layers." in p} - set(ours) == {p for p in theirs if p.endswith("router.proj")}


def test_the_last_layers():
    paths = [f"model.decoder.layers.{i}.mlp.up_proj" for i in range(3)]
    assert in_last_layers(paths, 3, -1) == paths and in_last_layers(paths, 3, 1) == paths[2:]
