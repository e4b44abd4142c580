"""Counts of the published shape against the design's roofline (its printed tables), and of the embedded model against
its file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import checkpoints
import pytest

from mlx_dgemma.benchmark.count import BITS, Count, break_even, parameters
from mlx_dgemma.benchmark.devices import DEVICES, Device, device
from mlx_dgemma.benchmark.predict import advice, prediction
from mlx_dgemma.benchmark.subject import published
from mlx_dgemma.checkpoint.folder import read_tensors
from mlx_dgemma.checkpoint.names import weight_class
from mlx_dgemma.errors import Mistake

CONFIG = published("26b-a4b")
NEAR = 0.02
FLOPS = {  # context -> TFLOP of dense layers, experts, head, soft embedding, attention; of a step; of a commit
    512: (0.857, 0.731, 0.378, 0.378, 0.113, 2.457, 1.701),
    16384: (0.857, 0.731, 0.378, 0.378, 0.832, 3.176, 2.420),
    131072: (0.857, 0.731, 0.378, 0.378, 5.642, 7.986, 7.230),
}
BYTES = {  # precision -> GB: resident, a step, a token; context 512
    "bf16": (50.50, 52.09, 7.79),
    "fp8": (25.25, 26.10, 3.96),
    "8bit": (26.83, 27.73, 4.19),
    "4bit-uniform": (14.20, 14.73, 2.28),
    "4bit": (15.41, 16.31, 3.48),
}
ROOFLINE = {  # GB/s, TFLOP/s, precision -> ms: step, commit, token; steps, tokens per forward
    "M1 Max": ((400, 10.4, "4bit-uniform"), (236.2, 163.5, 5.69, 5.5, 46.8)),
    "M4 Max": ((546, 18.4, "4bit-uniform"), (133.5, 92.4, 4.17, 7.3, 35.1)),
    "M5 Max": ((614, 50, "4bit-uniform"), (49.1, 34.0, 3.71, 18.6, 13.8)),
    "RTX 4090": ((1008, 165, "4bit-uniform"), (14.9, 13.8, 2.26, 37.9, 6.8)),
    "H100 BF16": ((3350, 989, "bf16"), (15.5, 14.7, 2.33, 37.4, 6.9)),
    "H200 FP8": ((4800, 1979, "fp8"), (5.4, 5.1, 0.82, 37.8, 6.8)),
    "DGX Spark": ((273, 62, "4bit-uniform"), (54.0, 50.9, 8.33, 38.6, 6.6)),
}


def near(found: float, printed: float, digits: int) -> bool:
    """Within 2 %, and what the last printed digit leaves open."""
    return abs(found - printed) <= NEAR * printed + 0.5 * 10**-digits


@pytest.mark.parametrize("context", FLOPS)
def test_flops_of_each_part(context):
    dense, experts, head, soft, attention, step, commit = FLOPS[context]
    count = Count(CONFIG, BITS["bf16"])
    found, mixing = count.denoise(context), 2 * 256 * count.weights["self-conditioning"] / 1e12
    tera = {part: value / 1e12 for part, value in found.flops.items()}
    # The roofline has the small network of self-conditioning among its dense layers, and in its commit.
    assert near(tera["linears"] + mixing, dense, 3)
    assert near(tera["experts"], experts, 3)
    assert near(tera["head and draw"], head, 3)
    assert near(tera["self-conditioning"] - mixing, soft, 3)
    assert near(tera["attention"], attention, 3)
    assert near(found.total_flops / 1e12, step, 3)
    assert near(count.commit(context).total_flops / 1e12 + mixing, commit, 3)


@pytest.mark.parametrize("precision", BYTES)
def test_bytes(precision):
    count = Count(CONFIG, BITS[precision])
    found = count.resident, count.denoise(512).total_bytes, count.token(512).total_bytes
    assert all(near(value / 1e9, printed, 2) for value, printed in zip(found, BYTES[precision], strict=True))


@pytest.mark.parametrize("name", ROOFLINE)
def test_seconds_and_break_even(name):
    (bandwidth, rate, precision), printed = ROOFLINE[name]
    found = prediction(Count(CONFIG, BITS[precision]), 512, (bandwidth * 1e9, rate * 1e12))
    milliseconds = [1e3 * found["seconds"][pass_] for pass_ in ("step", "commit", "token")]
    even = found["break_even"]
    digits = (1, 1, 2, 1, 1)
    for value, expected, last in zip(
        [*milliseconds, even["steps"], even["tokens_per_forward"]], printed, digits, strict=True
    ):
        assert near(value, expected, last)


def test_a_break_even_is_where_both_take_as_long():
    even = break_even(256, step=0.1, commit=0.07, token=0.01)
    assert math.isclose(even["steps"] * 0.1 + 0.07, 256 * 0.01)
    assert math.isclose(even["steps"] * even["tokens_per_forward"], 256)
    assert break_even(256, step=0.1, commit=3.0, token=0.01)["tokens_per_forward"] is None


def test_parameters_are_those_of_the_file():
    stored = Counter()
    for name, tensor in read_tensors(checkpoints.TINY).items():
        stored[weight_class(name)] += math.prod(tensor.shape)
    assert parameters(published("tiny")) == {name: stored[name] for name in parameters(CONFIG)}


def test_rows_share_weights_and_not_text():
    count = Count(CONFIG, BITS["bf16"])
    one, four = count.denoise(512), count.denoise(512, rows=4)
    assert math.isclose(four.total_flops, 4 * one.total_flops)
    assert four.bytes["attention"] == 4 * one.bytes["attention"]
    assert math.isclose(four.bytes["experts"], one.bytes["experts"], rel_tol=1e-6)  # all are read anyhow
    assert 1 < count.token(512, rows=2).bytes["experts"] / count.token(512).bytes["experts"] < 2


def test_sliding_layers_see_no_more_than_their_window():
    count = Count(replace(CONFIG, layers=CONFIG.layers[:5]), BITS["bf16"])  # sliding ones only
    assert count.denoise(1023).flops == count.denoise(100_000).flops


def test_every_device_has_what_a_prediction_needs_and_says_where_from():
    for one in DEVICES.values():
        assert isinstance(one, Device) and one.bandwidth > 1e10 and one.flops["bf16"] > 1e12 and one.memory > 1e9
        kinds = {source.split(":")[0] for source in one.sources.values()}
        assert kinds <= {"vendor", "derived", "third-party"}
    families = {name.split("-")[0] for name in DEVICES}
    assert {"m1", "m2", "m3", "m4", "m5", "rtx", "h100", "h200", "dgx"} <= families


def test_fp8_where_the_machine_has_it():
    assert device("h100").flops_for("fp8") == 2 * device("h100").flops_for("bf16") + 1e12
    assert device("m4-max").flops_for("fp8") == device("m4-max").flops_for("bf16")


def test_advice_turns_at_the_break_even():
    assert set(advice(1.0).values()) == {"autoregression"}
    assert set(advice(100.0).values()) == {"diffusion"}
    assert advice(15.0) == {"JSON, short answers": "diffusion", "maths, code": "either", "prose": "autoregression"}


def test_unknown_names_are_mistakes_with_the_list():
    with pytest.raises(Mistake, match=r"'m9'.*m1, m1-pro"):
        device("m9")
    with pytest.raises(Mistake, match=r"'30b'.*26b-a4b, tiny"):
        published("30b")
