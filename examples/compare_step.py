"""Seconds of one denoising step, ours and mlx-vlm's, on the same random weights, in turns, in one process.

    python examples/compare_step.py [--peaked 8] [--repeat 9]
    python examples/compare_step.py --shape 26b-a4b --precision 4bit --rows 8      # on a GPU: the published shape

Needs mlx-vlm 0.7.10 in the same environment; without it, ours is measured alone. A step is all that a loop does between
two canvases, self-conditioned: network, head, temperature, argmax, draw, entropy, accept, renoise, stop rule; mlx-vlm's
is its entropy-bound path. Prints one JSON object: median seconds and their ratio, the median entropy of a position, the
bytes of all weights and the share of the time that the machine's own copy would take to read them, the parts of our
step, and our step with several rows.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_dgemma.benchmark.passes import endless_blocks
from mlx_dgemma.benchmark.subject import PRECISIONS
from mlx_dgemma.benchmark.subject import shape as published
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.names import published_name
from mlx_dgemma.load import dummy
from mlx_dgemma.mlx_backend import measure
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.writing.sampling import Sampling

TEMPERATURE, BOUND = 0.6, 0.1
ON_MLX = ("float32", "bf16", "4bit")
SHAPES = {  # what differs from the published one
    "small": {
        "vocab_size": 32768, "hidden_size": 704, "intermediate_size": 528, "moe_intermediate_size": 176,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1, "num_experts": 32,
        "top_k_experts": 4, "num_hidden_layers": 6,
    },
    "26b-a4b": {},
}  # fmt: skip


def config_of(shape: str, precision: str) -> dict:
    """config.json of a checkpoint of that shape, without the image tower."""
    config = published("26b-a4b")
    text = {**config["text_config"], **SHAPES[shape]}
    text["layer_types"] = text["layer_types"][: text["num_hidden_layers"]]
    dtype = "float32" if precision == "float32" else "bfloat16"
    return {**config, "dtype": dtype, "text_config": text, "vision_config": None}


def random_model(shape: str, precision: str, peaked: float = 1.0):
    """Makes random weights on MLX."""
    config = parse_config(config_of(shape, precision))
    return dummy(config, "mlx", *PRECISIONS[precision], seed=0, peaked=peaked)


def ours(model, prompt: np.ndarray, rows: int = 1):
    caches = [model.new_cache() for _ in range(rows)]
    model.encode([Text(prompt)] * rows, caches)
    sampling = Sampling(entropy_bound=BOUND, t_min=TEMPERATURE, t_max=TEMPERATURE, max_denoising_steps=10**6)
    batch = endless_blocks(model, caches, sampling, seed=1)
    return lambda: float(np.median([step.entropy for step in batch.step().values()]))


def theirs(model, config: dict, prompt: np.ndarray):
    """Their step over the very arrays of `model`, which their loader is given in place of a file's."""
    from mlx_vlm import utils
    from mlx_vlm.generate import diffusion as d

    weights = {published_name(path): array for path, array in tree_flatten(model.network.parameters())}
    utils._load_safetensors = lambda file: weights
    layers = {path: m for path, m in model.network.named_modules() if "scales" in m}
    stored = {
        path: {"bits": m.quantization.bits, "group_size": m.quantization.group_size} for path, m in layers.items()
    }
    if stored:
        config = {**config, "quantization": {"bits": 4, "group_size": 64, **stored}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        (Path(folder) / "model.safetensors").touch()
        their_model = utils.load_model(Path(folder))
    vocabulary, length = model.facts.vocab_size, model.facts.canvas_length
    cache = their_model.make_cache()
    their_model.diffusion_prefill_cache(mx.array(prompt)[None], cache=cache, prefill_step_size=512, chunk_prefill=True)
    context = their_model.diffusion_prepare_self_conditioning()
    state = {"canvas": mx.random.randint(0, vocabulary, (1, length)), "conditioning": None, "history": []}
    stopping = {"stability_threshold": 1, "confidence_threshold": 0.005}

    def step() -> None:
        masks = their_model.diffusion_decoder_masks(state["canvas"], cache)
        raw = their_model.diffusion_decoder_logits(state["canvas"], cache, state["conditioning"], masks)
        logits = raw / TEMPERATURE
        argmax = mx.argmax(logits, axis=-1).astype(mx.int32)
        drawn = d._diffusion_sample_canvas(logits, mx.int32, 1.0)
        entropy = d._diffusion_token_entropy(logits)
        state["conditioning"] = their_model.diffusion_self_conditioning(logits, context)
        accepted = d._diffusion_entropy_transfer_mask(entropy, BOUND)
        noise = d._diffusion_initialize_canvas(1, length, vocabulary, mx.int32)
        state["canvas"] = mx.where(accepted, drawn, noise)
        d._diffusion_stable_and_confident(argmax, logits, state["history"], stopping)
        mx.eval(state["canvas"], argmax)

    return step


def in_turns(steps: dict, repeat: int) -> dict[str, float]:
    """Median seconds of each. The first two calls of each are not counted: no conditioning, and warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeat + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(options: argparse.Namespace) -> dict:
    config = config_of(options.shape, options.precision)
    model = random_model(options.shape, options.precision, options.peaked)
    prompt = np.random.default_rng(0).integers(model.facts.vocab_size, size=options.context)
    steps = {"ours": ours(model, prompt)}
    try:
        steps["mlx_vlm"] = theirs(model, config, prompt)
    except ImportError as error:
        if error.name != "mlx_vlm":
            raise
    if options.rows > 1:
        steps[f"ours, {options.rows} rows"] = ours(model, prompt, options.rows)
    found: dict = {**vars(options), "seconds": in_turns(steps, options.repeat), "median_entropy": steps["ours"]()}
    seconds = found["seconds"]
    if "mlx_vlm" in seconds:
        found["ratio"] = seconds["ours"] / seconds["mlx_vlm"]
    if options.rows > 1:
        found["times_the_tokens"] = options.rows * seconds["ours"] / seconds[f"ours, {options.rows} rows"]
    found["weights_bytes"] = sum(array.nbytes for _, array in tree_flatten(model.network.parameters()))
    if options.parts:
        rate = measure.ceilings("float32" if options.precision == "float32" else "bfloat16")["copy_bytes_per_second"]
        found["share_of_byte_floor"] = found["weights_bytes"] / rate / seconds["ours"]
        cache = model.new_cache()
        model.encode([Text(prompt)], [cache])
        length = model.facts.canvas_length
        row = Row(np.arange(length, dtype=np.int32), cache, TEMPERATURE, np.zeros(length, np.float32))
        row.self_conditioning = model.denoise([row])[0].self_conditioning
        found["parts"] = measure.step_parts(model, [row])
    return {**found, "device": measure.device(), "peak_memory": model.peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=ON_MLX, default="float32")
    parser.add_argument("--peaked", type=float, default=1.0, help="factor on the logits")
    parser.add_argument("--context", type=int, default=512, help="tokens of text before the canvas")
    parser.add_argument("--rows", type=int, default=1, help="of a batch to be measured too")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--parts", action="store_true", help="the parts of our step, and the machine's copy")
    print(json.dumps(report(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
