"""What our savings save: a pass as it is, and with one thing done the other way, in turns, in one process.

    python examples/step_gains.py [--shape small] [--precision float32] [--repeat 7]

Prints a line each: milliseconds the other way, as it is, and the ratio; medians.
"""

import argparse
from unittest import mock

import mlx.core as mx
import numpy as np
from compare_step import SHAPES, config_of, in_turns

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.mlx_backend.cache import LayerCache
from mlx_dgemma.mlx_backend.dummy import PRECISIONS, dummy_mlx
from mlx_dgemma.seam.model import Row

LONG = 8192


def concatenated(layer: LayerCache, keys: mx.array, values: mx.array):
    """`LayerCache.visible` without a place behind the text: the past is copied in every layer."""
    start = layer.first if layer.seen is None else max(layer.first, layer.end - layer.seen)
    past = [getattr(layer, kind)[:, :, start : layer.end] for kind in ("keys", "values")]
    return mx.concatenate([past[0], keys], axis=2), mx.concatenate([past[1], values], axis=2)


class Bench:
    def __init__(self, model):
        self.model, self.rng = model, np.random.default_rng(0)
        self.text, self.long = model.new_cache(), model.new_cache()
        model.encode([self.tokens(512)], [self.text])
        model.encode([self.tokens(LONG)], [self.long])
        self.block = self.tokens(256)
        self.eight = [self.row(self.text.copy()) for _ in range(8)]

    def tokens(self, count: int) -> np.ndarray:
        return self.rng.integers(self.model.config.vocab_size, size=count)

    def row(self, cache, length: int = 256, **changes) -> Row:
        return Row(self.tokens(length), cache, 0.6, self.rng.random(length, dtype=np.float32), **changes)

    def denoise(self, *rows: Row):
        return lambda: self.model.denoise(rows)

    def copied(self) -> None:
        with mock.patch.object(LayerCache, "visible", concatenated):
            self.model.denoise([self.row(self.long)])

    def one_by_one(self) -> None:
        for row in self.eight:
            self.model.denoise([row])

    def committed_first(self) -> None:
        cache = self.text.copy()
        self.model.encode([self.block], [cache])
        self.model.denoise([self.row(cache)])

    def committed_within(self) -> None:
        self.model.denoise([self.row(self.text.copy(), pending=self.block)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    model = dummy_mlx(parse_config(config_of(options.shape, options.precision)), options.precision, peaked=8)
    bench = Bench(model)
    pairs = {
        f"K and V in place, {LONG:,} tokens before": (bench.copied, lambda: model.denoise([bench.row(bench.long)])),
        "a block committed by the next one's first pass": (bench.committed_first, bench.committed_within),
        "eight rows in one pass": (bench.one_by_one, bench.denoise(*bench.eight)),
        "a canvas of 128": (bench.denoise(bench.row(bench.text)), bench.denoise(bench.row(bench.text, 128))),
        "a canvas of 64": (bench.denoise(bench.row(bench.text)), bench.denoise(bench.row(bench.text, 64))),
    }
    for name, (before, after) in pairs.items():
        seconds = in_turns({"before": before, "after": after}, options.repeat)
        was, now = (1000 * seconds[which] for which in ("before", "after"))
        print(f"{name:48} {was:8.0f} ms {now:8.0f} ms  {now / was:.2f}", flush=True)


if __name__ == "__main__":
    main()
