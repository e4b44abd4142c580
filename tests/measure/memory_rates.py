"""The memory that a pass takes above weights and K/V, in a process of its own: prints one JSON object, bytes.

    export PYTHONPATH=.:tests/support
    python tests/measure/memory_rates.py step [--hidden 704]
    python tests/measure/memory_rates.py long [--tokens 100000]
    python tests/measure/memory_rates.py long --backend torch --tokens 261888 --head-dim 16

`step`: a denoise step, vocabulary 262,144, canvas 256, self-conditioned. `long`: a long prompt, one sliding and one
full layer, one head. `grown` is of the process (Linux counts its peak), `allocated` of MLX's allocator.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkpoints
import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.convert.recipes import plain
from mlx_dgemma.load import dummy
from mlx_dgemma.seam.model import Row, Text


def peak_of_process() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measured(work) -> dict[str, int]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    mx.clear_cache()
    mx.reset_peak_memory()
    before, allocated = peak_of_process(), mx.get_active_memory()
    work()
    return {"grown": peak_of_process() - before, "allocated": mx.get_peak_memory() - allocated}


def row(cache, vocabulary: int, **changes) -> Row:
    rng = np.random.default_rng(0)
    return Row(rng.integers(vocabulary, size=256), cache, 0.6, rng.random(256, dtype=np.float32), **changes)


def step(options: argparse.Namespace) -> dict[str, int]:
    shape = {"vocab_size": 262144, "hidden_size": options.hidden, "sliding_window": 1024}
    config = parse_config(checkpoints.config(canvas_length=256, **shape), checkpoints.generation_config())
    model = dummy(config, "mlx", "float32", plain, peaked=options.peaked)
    cache = model.new_cache()
    model.encode([Text(np.arange(512))], [cache])

    def two_steps() -> None:
        [first] = model.denoise([row(cache, 262144)])
        model.denoise([row(cache, 262144, self_conditioning=first.self_conditioning)])

    return measured(two_steps)  # both: what the first has given back would not be seen to grow


def long(options: argparse.Namespace) -> dict[str, int]:
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": options.head_dim}
    full = {"head_dim": 2 * options.head_dim, "num_key_value_heads": 1}
    layers = ["sliding_attention", "full_attention"]
    shape = {**heads, "full": full, "layer_types": layers, "sliding_window": 1024, "max_position_embeddings": 262144}
    config = parse_config(checkpoints.config(canvas_length=256, **shape), checkpoints.generation_config())
    model = dummy(config, options.backend, "float32", plain)
    model.denoise([row(model.new_cache(), 96, pending=Text(np.arange(90)))])
    cache = model.new_cache(options.tokens)
    tokens = Text(np.random.default_rng(0).integers(96, size=options.tokens))
    return {**measured(lambda: model.denoise([row(cache, 96, pending=tokens)])), "kv": cache.nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("step")
    one.add_argument("--hidden", type=int, default=704)
    one.add_argument("--peaked", type=float, default=1.0)
    one.set_defaults(work=step)
    other = kinds.add_parser("long")
    other.add_argument("--tokens", type=int, default=100_000)
    other.add_argument("--backend", choices=["mlx", "torch"], default="mlx")
    other.add_argument("--head-dim", type=int, default=256, help="of the sliding layer; the full one has twice that")
    other.set_defaults(work=long)
    mx.set_default_device(mx.cpu)
    options = parser.parse_args()
    print(json.dumps(options.work(options)))


if __name__ == "__main__":
    main()
