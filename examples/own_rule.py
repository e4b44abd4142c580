"""Change one rule of a step: accept a fixed number of positions a pass, however unsure they are.

The loop below is `mlx_dgemma.writing` cut down to one block; all that it needs from a model is one call.

    python examples/own_rule.py
"""

import numpy as np

from mlx_dgemma import Row, load
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.sampling import renoise, temperature

PER_PASS = 8
PROMPT = "Extract JSON: Tess is 40 and works as a vet in Accra."


def accept_the_surest(entropy: np.ndarray, count: int) -> np.ndarray:
    accepted = np.zeros(len(entropy), dtype=bool)
    accepted[np.argsort(entropy)[:count]] = True
    return accepted


model, tokenizer, sampling = load()
length, vocabulary = model.facts.canvas_length, model.facts.vocab_size
rng = np.random.default_rng(0)
canvas, prompt = rng.integers(vocabulary, size=length), Text(prompt_tokens(tokenizer, PROMPT))
row = Row(canvas, model.new_cache(), sampling.t_max, np.zeros(length), pending=prompt)
for step in range(length // PER_PASS):
    row.temperature, row.uniforms = temperature(sampling, step), rng.random(length, dtype=np.float32)
    [prediction] = model.denoise([row])
    accepted = accept_the_surest(prediction.entropy, PER_PASS * (step + 1))
    row.canvas = renoise(prediction.sample, accepted, rng.integers(vocabulary, size=length))
    row.self_conditioning, row.pending = prediction.self_conditioning, Text()
    print(f"{accepted.sum():3} accepted: {tokenizer.decode(prediction.argmax)!r}")
