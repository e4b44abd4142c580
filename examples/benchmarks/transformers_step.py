"""Seconds of a denoise step of transformers' own `generate`, on random weights of a published shape.

    python examples/benchmarks/transformers_step.py [--cache dynamic] [--precision bf16] [--context 512] [--blocks 3]

From draft to draft, sampler and stop rule included; the first block, which may compile, is not counted. With `--cache
static` the passes are compiled, as transformers does it by itself. Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where it is not installed

import torch
import transformers
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from mlx_dgemma.benchmark.subject import shape

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


class Clock:
    """A streamer that looks at the clock when a draft comes."""

    def __init__(self, steps: int):
        self.steps, self.drafts, self.seconds, self.last = steps, 0, [], None

    def put(self, value) -> None:
        self.last = None  # a block was committed

    def put_draft(self, value) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.drafts += 1
        if self.last is not None and self.drafts > self.steps:
            self.seconds.append(now - self.last)
        self.last = now

    def end(self) -> None:
        pass


def measure(config: dict, options: argparse.Namespace) -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not config.get("vision_config"):  # transformers builds an image tower always: the smallest, which no text enters
        config = {**config, "vision_config": shape("tiny")["vision_config"]}
    with torch.device(device):
        built = DiffusionGemmaConfig(**config)
        model = DiffusionGemmaForBlockDiffusion._from_config(built, dtype=DTYPES[options.precision]).eval()
        prompt = torch.randint(config["text_config"]["vocab_size"], (1, options.context))
    clock = Clock(options.steps)
    cache = {} if options.cache == "dynamic" else {"cache_implementation": "static"}
    length = options.blocks * config["canvas_length"]
    model.generate(
        prompt, max_new_tokens=length, max_denoising_steps=options.steps, eos_token_id=-1, streamer=clock, **cache
    )
    gpu = device == "cuda"
    return {
        **vars(options),
        "seconds": statistics.median(clock.seconds), "least": min(clock.seconds), "most": max(clock.seconds),
        "n": len(clock.seconds), "device": torch.cuda.get_device_name() if gpu else "cpu",
        "peak_memory": torch.cuda.max_memory_allocated() if gpu else None,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="26b-a4b")
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="a block")
    parser.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(measure(shape(options.shape), options)))


if __name__ == "__main__":
    main()
