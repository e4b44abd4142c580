"""Does a process that serves for long stay as it was? Requests of varying prompt and answer length, one after another.

    python examples/soak.py [--requests 300]

Prints, for every tenth part of the run: MLX's active and cached memory and the process's, in MB, and the median
milliseconds of a pass.
"""

import argparse
import statistics
import time

import mlx.core as mx
import numpy as np
import psutil

from mlx_dgemma import load
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.diffuse import diffuse
from mlx_dgemma.writing.sampling import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    requests = parser.parse_args().requests
    model, _, _ = load()
    sampling, rng, seconds = Sampling(max_denoising_steps=4), np.random.default_rng(0), []
    print("requests  active MB  cached MB  process MB  ms a pass")
    for number in range(1, requests + 1):
        prompt = rng.integers(16, 272, size=rng.integers(1, 400))
        ask = Ask(sampling=sampling, max_tokens=int(rng.integers(1, 193)), seed=number)
        start = time.perf_counter()
        for _ in diffuse(model, prompt, ask):
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
        if number % max(1, requests // 10) == 0:
            memory = [mx.get_active_memory(), mx.get_cache_memory(), psutil.Process().memory_info().rss]
            figures = "".join(f"{m / 1e6:11.1f}" for m in memory)
            print(f"{number:8}{figures}{1e3 * statistics.median(seconds):11.1f}", flush=True)
            seconds.clear()


if __name__ == "__main__":
    main()
