"""Whole runs of transformers' DiffusionGemma, for test_goldens.py to hold ours to without torch.

python tests/measure/make_goldens.py        # needs torch and transformers; writes tests/goldens.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import checkpoints
import numpy as np
import reference
import runs
import solve_rates
import torch
import transformers


def main() -> None:
    made = {"torch": torch.__version__, "transformers": transformers.__version__, "random": [], "tiny": []}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(runs.GOLDENS):
            prompt = np.random.default_rng(case["seed"]).integers(96, size=20).tolist()
            eos, blocks = [95], 5
            for turn in range(2):  # the first run is there to find a stop token for the second
                path = runs.random_case(Path(folder) / f"{number}-{turn}", case, eos)
                run = reference.generate(reference.load(path), prompt, seed=case["seed"], max_tokens=16 * blocks)
                eos = eos if turn else runs.late_stop(run["tokens"], 16, 3) or [95]
            made["random"].append({**case, "prompt": prompt, "eos": eos, "max_tokens": 16 * blocks, **run})
    model = reference.load(checkpoints.TINY)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints.TINY)
    for prompt in runs.PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        run = reference.generate(model, tokens, seed=0, max_tokens=192)
        made["tiny"].append({"text": prompt, "prompt": tokens, "seed": 0, "max_tokens": 192, **run})
    rates = solve_rates.rates(solve_rates.theirs(None), 8)
    made["rates"] = {"prompts": 8, "tasks": rates}
    (Path(__file__).parents[1] / "goldens.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
