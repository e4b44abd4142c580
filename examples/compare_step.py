"""Seconds of one denoising step, ours and mlx-vlm's, on the same random weights, in turns, in one process.

    python examples/compare_step.py [--peaked 40] [--repeat 9]

Needs mlx-vlm 0.7.10 in the same environment. A step is all that its loop does between two canvases, self-conditioned:
network, head, temperature, argmax, draw, entropy, accept, renoise, stop rule; mlx-vlm's is its entropy-bound path.
Prints one JSON object: medians, their ratio, and the median entropy of a position.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import checkpoints

from mlx_dgemma.config import parse_config
from mlx_dgemma.interface import Row
from mlx_dgemma.load import load_model
from mlx_dgemma.sampling import Sampling, Settled, accept, renoise

SHAPE = {
    "vocab_size": 32768, "hidden_size": 704, "intermediate_size": 528, "moe_intermediate_size": 176,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 256, "num_experts": 32, "top_k_experts": 4,
    "sliding_window": 1024, "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "canvas_length": 256,
    "full": {"head_dim": 512, "num_key_value_heads": 1},
}  # fmt: skip
TEMPERATURE = 0.6


def ours(folder: Path, config: dict, prompt: np.ndarray):
    model = load_model(folder, parse_config(config, checkpoints.generation_config()), "mlx", "float32")
    cache, sampling, rng = model.new_cache(), Sampling(), np.random.default_rng(1)
    model.encode([prompt], [cache])
    state = {"canvas": rng.integers(32768, size=256), "conditioning": None, "settled": Settled(sampling)}

    def step() -> float:
        uniforms = rng.random(256, dtype=np.float32)
        row = Row(state["canvas"], cache, TEMPERATURE, uniforms, self_conditioning=state["conditioning"])
        [found] = model.denoise([row])
        accepted = accept(found.entropy, sampling.entropy_bound)
        state["canvas"] = renoise(found.sample, accepted, rng.integers(32768, size=256))
        state["settled"](found.argmax, found.entropy)
        state["conditioning"] = found.self_conditioning
        return float(np.median(found.entropy))

    return step


def theirs(folder: Path, prompt: np.ndarray):
    from mlx_vlm.generate import diffusion as d
    from mlx_vlm.utils import load_model as load_theirs

    model = load_theirs(folder)
    ids = mx.array(prompt)[None]
    cache = model.make_cache()
    model.diffusion_prefill_cache(ids, cache=cache, prefill_step_size=512, chunk_prefill=True)
    context = model.diffusion_prepare_self_conditioning()
    state = {"canvas": mx.random.randint(0, 32768, (1, 256)), "conditioning": None, "history": []}
    stopping = {"stability_threshold": 1, "confidence_threshold": 0.005}

    def step() -> None:
        masks = model.diffusion_decoder_masks(state["canvas"], cache)
        logits = model.diffusion_decoder_logits(state["canvas"], cache, state["conditioning"], masks) / TEMPERATURE
        argmax = mx.argmax(logits, axis=-1).astype(mx.int32)
        drawn = d._diffusion_sample_canvas(logits, mx.int32, 1.0)
        entropy = d._diffusion_token_entropy(logits)
        state["conditioning"] = model.diffusion_self_conditioning(logits, context)
        accepted = d._diffusion_entropy_transfer_mask(entropy, 0.1)
        noise = d._diffusion_initialize_canvas(1, 256, 32768, mx.int32)
        state["canvas"] = mx.where(accepted, drawn, noise)
        d._diffusion_stable_and_confident(argmax, logits, state["history"], stopping)
        mx.eval(state["canvas"], argmax)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peaked", type=float, default=1.0, help="factor on the final norm")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    config = checkpoints.config(**SHAPE)
    config["vision_config"] = None
    prompt = np.random.default_rng(0).integers(32768, size=512)
    with tempfile.TemporaryDirectory() as path:
        folder = checkpoints.write(Path(path), config, checkpoints.weights(config, peaked=options.peaked))
        steps = {"ours": ours(folder, config, prompt), "mlx_vlm": theirs(folder, prompt)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.repeat + 2):  # the first two of each are not counted: no conditioning, and warm-up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    entropy = steps["ours"]()
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    print(json.dumps({**medians, "ratio": medians["ours"] / medians["mlx_vlm"], "median_entropy": entropy}))


if __name__ == "__main__":
    main()
