"""A whole run of ours in the words of `reference.generate`, and the cases that goldens were made of."""

from __future__ import annotations

import checkpoints

from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.diffuse import diffuse

GOLDENS = [  # of random weights: seed of the weights and the run, how peaked, layout
    {"seed": 0, "peaked": 1.0, "layout": "hub"},
    {"seed": 1, "peaked": 10.0, "layout": "hub"},
    {"seed": 2, "peaked": 10.0, "layout": "transformers"},
]
# Of the tiny model:
MANY = "Lima, Tokyo, Kyiv, Oslo, Rome, Bonn, Eve, Zoe, Yan, Omar"  # more words than it learnt to sort or reverse
HARD = f"Sort: {MANY}"  # it takes some forty passes, and is wrong
PROMPTS = [
    "Extract JSON: Zoe (31) works as a vet in Oslo.",
    "Sort: Lima, Tokyo, Kyiv",
    HARD,
]


def whole_run(model, tokens, sampling, *, seed: int, max_tokens: int) -> dict:
    """`tokens` of every block (pads after a stop token, as the reference writes them), steps of each block, and tokens
    per forward: those that are no pad, over all passes."""
    committed, steps = [], []
    for step in diffuse(model, tokens, Ask(sampling=sampling, max_tokens=max_tokens, seed=seed)):
        if step.final:
            committed += step.draft.tolist()
            steps.append(step.step + 1)
    stops = [i for i, token in enumerate(committed) if token in model.facts.stop_ids]
    if stops:
        committed[stops[0] + 1 :] = [model.facts.pad_id] * (len(committed) - stops[0] - 1)
    kept = sum(token != model.facts.pad_id for token in committed)
    return {"tokens": committed, "steps": steps, "tokens_per_forward": kept / sum(steps)}


def same(found: dict, expected: dict) -> None:
    assert found["tokens"] == expected["tokens"]
    assert found["steps"] == expected["steps"]
    assert abs(found["tokens_per_forward"] - expected["tokens_per_forward"]) < 1e-5


def random_case(folder, case: dict, eos: list[int]):
    """Write the checkpoint of a golden -> its folder."""
    config = checkpoints.config(layout=case["layout"])
    tensors = checkpoints.weights(config, seed=case["seed"], peaked=case["peaked"])
    return checkpoints.write(folder, config, tensors, checkpoints.generation_config(eos_token_id=eos))


def late_stop(tokens: list[int], length: int, block: int) -> list[int]:
    """A token that first comes up in the given block, as a stop id for a run that is to end there."""
    before, inside = tokens[: block * length], tokens[block * length : (block + 1) * length]
    return [token for token in inside if token not in before][:1]
