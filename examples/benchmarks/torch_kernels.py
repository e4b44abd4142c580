"""The kernels of a denoise step on torch: how often each runs in a step, and microseconds, on random weights.

    python examples/benchmarks/torch_kernels.py [--shape 26b-a4b] [--precision bf16] [--context 512] [--rows 1]

Prints a line a kernel, the longest last, and what lies between them.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where it is not installed

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from mlx_dgemma.benchmark.subject import PRECISIONS, published
from mlx_dgemma.load import dummy
from mlx_dgemma.seam.model import Row, Text

STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="26b-a4b")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1)
    options = parser.parse_args()
    config, gpu, rng, rows = published(options.shape), torch.cuda.is_available(), np.random.default_rng(0), []
    model = dummy(config, "torch", *PRECISIONS[options.precision])
    for _ in range(options.rows):
        uniforms, canvas = (rng.random(config.canvas_length, np.float32), rng.integers(256, size=config.canvas_length))
        text = Text(rng.integers(256, size=options.context))
        rows.append(Row(canvas, model.new_cache(options.context), 0.7, uniforms, text))
    for _ in range(3):  # the text is encoded, kernels are compiled, graphs are captured
        for row, found in zip(rows, model.denoise(rows), strict=True):
            row.pending, row.self_conditioning = Text(), found.self_conditioning
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as trace:
        start = time.perf_counter()
        for _ in range(STEPS):
            model.denoise(rows)
        whole = (time.perf_counter() - start) / STEPS * 1e6
    kernels = [
        (e.self_device_time_total if gpu else e.self_cpu_time_total, e.count, e.key) for e in trace.key_averages()
    ]
    print(f"{torch.cuda.get_device_name() if gpu else 'cpu'}: a step takes {whole:.0f} us under the profiler")
    for spent, count, name in sorted(kernels)[-60:]:
        print(f"{spent / STEPS:10.1f} us {count / STEPS:7.1f} times  {name[:110]}")
    print(f"{whole - sum(spent for spent, *_ in kernels) / STEPS:10.1f} us in between")


if __name__ == "__main__":
    main()
