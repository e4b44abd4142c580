"""How often a pass must look at the vocabulary a second time, for positions that it took for light.

    python tests/measure/second_looks.py [--answers 200] [--dtype bfloat16]

The embedded model answers prompts of all tasks in turn, each with a seed of its own, on lists as in 16 bits. Prints one
JSON object: passes that were conditioned on an earlier one, those of them with a second look, and positions of lists.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np

from mlx_dgemma.load import load
from mlx_dgemma.mlx_backend.vocabulary import SoftEmbedding
from mlx_dgemma.tiny.tasks import TASKS, made
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.diffuse import diffuse


def prompts(answers: int) -> list[str]:
    each = [made(name, -(-answers // len(TASKS))) for name in TASKS]
    return [prompt for turn in zip(*each, strict=True) for prompt, _ in turn][:answers]


def looks(prompts: Sequence[str], dtype: str) -> dict[str, float]:
    model, tokenizer, sampling = load(dtype=dtype)
    passes, listed = [], []
    compute = SoftEmbedding.compute

    def noted(self, slices, cap):
        passes.append(bool((self.needs_table & ~self.heavy).any()))
        listed.append(float(np.mean(~self.heavy)))
        return compute(self, slices, cap)

    SoftEmbedding.compute = noted
    try:
        for seed, prompt in enumerate(prompts):
            tokens = tokenizer.chat([{"role": "user", "content": prompt}])
            for _ in diffuse(model, tokens, Ask(max_tokens=model.facts.canvas_length, sampling=sampling, seed=seed)):
                pass
    finally:
        SoftEmbedding.compute = compute
    return {"passes": len(passes), "second_looks": sum(passes), "share_of_lists": float(np.mean(listed))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    options = parser.parse_args()
    print(json.dumps({**vars(options), **looks(prompts(options.answers), options.dtype)}))
