"""Seconds of a token written left to right, ours and mlx-lm's loop over its Gemma 4, on the very same arrays, in turns,
in one process.

    python examples/compare_autoregress.py [--tokens 64] [--repeat 9]
    python examples/compare_autoregress.py --shape 26b-a4b --precision 4bit      # on a GPU: the published shape

Needs mlx-lm in the same environment. Greedy; says whether both wrote the same. Prints one JSON object: median seconds a
token, and the median and the extremes of their ratio, turn by turn.
"""

import argparse
import json
import statistics
import time

import mlx.core as mx
import numpy as np
from compare_step import ON_MLX, SHAPES, config_of, random_model
from mlx.utils import tree_flatten

from mlx_dgemma.checkpoint.names import published_name
from mlx_dgemma.seam.model import Continuation, Draw, Text


def theirs(model, config: dict, prompt: np.ndarray):
    """Their loop over the arrays of `model`, the encoder's scalars among them."""
    import mlx.nn as nn
    from mlx_lm.generate import generate_step
    from mlx_lm.models.gemma4_text import Model, ModelArgs

    text = {**config["text_config"], "model_type": "gemma4_text", "enable_moe_block": True, "attention_k_eq_v": True}
    args = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    other = Model(ModelArgs.from_dict({**text, **args, "use_double_wide_mlp": False}))
    named = {published_name(path): array for path, array in tree_flatten(model.network.parameters())}
    scalars = {k.replace("encoder.language_model", "decoder"): v for k, v in named.items() if "encoder." in k}
    decoder = {k: v for k, v in {**named, **scalars}.items() if ".decoder." in k and "self_conditioning" not in k}
    weights = split({k.replace("model.decoder.", "model."): v for k, v in decoder.items()})
    layers = {path: m for path, m in model.network.named_modules() if "scales" in m}
    if layers:
        stored = {path: (m.quantization.group_size, m.quantization.bits) for path, m in layers.items()}
        experts = next(v for k, v in stored.items() if "experts" in k)
        dense = next(v for k, v in stored.items() if "self_attn" in k)

        def predicate(path: str, module) -> dict | bool:
            group, bits = experts if "switch_glu" in path else dense
            return hasattr(module, "to_quantized") and {"group_size": group, "bits": bits}

        nn.quantize(other, class_predicate=predicate)
    other.load_weights(list(weights.items()))
    return generate_step(mx.array(prompt), other, max_tokens=-1)


def split(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Experts as they keep them: gate and up apart."""
    found = {}
    for name, array in weights.items():
        base, dot, kind = name.partition(".experts.")
        layer, _, part = kind.partition(".")
        part = part or "weight"
        if not dot:
            found[name] = array
        elif layer.startswith("gate_up_proj"):
            gate, up = map(mx.contiguous, mx.split(array, 2, axis=1))
            found |= {f"{base}.experts.switch_glu.{k}_proj.{part}": v for k, v in (("gate", gate), ("up", up))}
        else:
            found[f"{base}.experts.switch_glu.down_proj.{part}"] = array
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=ON_MLX, default="float32")
    parser.add_argument("--context", type=int, default=512, help="tokens of text before the first")
    parser.add_argument("--tokens", type=int, default=64, help="of a turn")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    config, model = config_of(options.shape, options.precision), random_model(options.shape, options.precision)
    prompt = np.random.default_rng(0).integers(model.facts.vocab_size, size=options.context)
    uniforms = np.zeros((options.repeat + 1) * (options.tokens + 1), np.float32)
    text = Continuation(model.new_cache(), Text(prompt), uniforms)
    loops = {"ours": model.autoregress([text], Draw()), "mlx_lm": theirs(model, config, prompt)}
    written: dict[str, list] = {name: [] for name in loops}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(options.repeat + 1):  # the first, which reads the prompt, is not counted
        for name, loop in loops.items():
            written[name].append(next(loop)[0])  # under way while the other one was measured
            start = time.perf_counter()
            written[name] += [next(loop)[0] for _ in range(options.tokens)]
            seconds[name] += [(time.perf_counter() - start) / options.tokens] if turn else []
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["mlx_lm"], strict=True)]
    found = {name: statistics.median(times) for name, times in seconds.items()}
    written = {name: [int(token) for token in tokens] for name, tokens in written.items()}
    print(json.dumps({
        **vars(options), "seconds_a_token": found, "ratio": statistics.median(ratios), "from": min(ratios),
        "to": max(ratios), "same_tokens": written["ours"] == written["mlx_lm"],
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
