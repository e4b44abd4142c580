"""What our savings save: a pass as it is, and with one thing done the other way, in turns, in one process.

    python examples/step_gains.py [--shape small] [--precision float32] [--repeat 7]

Prints a line each: milliseconds the other way, as it is, and the ratio; medians.
"""

import argparse

import numpy as np
from compare_step import ON_MLX, SHAPES, in_turns, random_model

from mlx_dgemma.seam.model import Row, Text


class Bench:
    def __init__(self, model):
        self.model, self.rng = model, np.random.default_rng(0)
        self.text = model.new_cache()
        model.encode([self.tokens(512)], [self.text])
        self.block = self.tokens(256)
        self.eight = [self.row(self.text.copy()) for _ in range(8)]

    def tokens(self, count: int) -> Text:
        return Text(self.rng.integers(self.model.facts.vocab_size, size=count))

    def row(self, cache, length: int = 256, pending: Text | None = None) -> Row:
        canvas, uniforms = self.tokens(length).tokens, self.rng.random(length, dtype=np.float32)
        return Row(canvas, cache, 0.6, uniforms, pending=pending or Text())

    def denoise(self, *rows: Row):
        return lambda: self.model.denoise(rows)

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
    parser.add_argument("--precision", choices=ON_MLX, default="float32")
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    bench = Bench(random_model(options.shape, options.precision, peaked=8))
    pairs = {
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
