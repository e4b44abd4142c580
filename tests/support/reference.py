"""transformers' DiffusionGemma, dynamic cache and sdpa, made to draw from the loop's NumPy stream."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import DiffusionGemmaForBlockDiffusion

torch.set_num_threads(1)  # the models are small: a second thread mostly waits


def network() -> type[DiffusionGemmaForBlockDiffusion]:
    """Imported when it is needed: that takes seconds, in every worker."""
    from transformers import DiffusionGemmaForBlockDiffusion, logging

    logging.set_verbosity_error()  # the vision tower is missing on purpose
    logging.disable_progress_bar()
    return DiffusionGemmaForBlockDiffusion


def load(folder: Path) -> DiffusionGemmaForBlockDiffusion:
    return network().from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


class Session:
    """One text: what was encoded, and what the decoder says of a canvas behind it."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion):
        self.model, self.cache, self.length = model, None, 0

    @torch.no_grad()
    def encode(self, tokens) -> np.ndarray:
        """-> last hidden states, normed, [n, D]."""
        ids = torch.tensor(np.asarray(tokens)[None])
        positions = torch.arange(self.length, self.length + ids.shape[1])[None]
        output = self.model.model.encoder(input_ids=ids, past_key_values=self.cache, position_ids=positions)
        self.cache = output.past_key_values
        self.length += ids.shape[1]
        return output.last_hidden_state[0].numpy()

    @torch.no_grad()
    def logits(self, canvas, self_conditioning_logits=None) -> np.ndarray:
        """[L, V] float32; `self_conditioning_logits` are the processed ones, [L, V]."""
        if self_conditioning_logits is not None:
            self_conditioning_logits = torch.tensor(self_conditioning_logits)[None]
        positions = torch.arange(self.length, self.length + len(canvas))[None]
        output = self.model(
            decoder_input_ids=torch.tensor(np.asarray(canvas, dtype=np.int64)[None]),
            past_key_values=self.cache,
            decoder_position_ids=positions,
            self_conditioning_logits=self_conditioning_logits,
        )
        return output.logits[0].numpy()


@contextmanager
def drawing_from(seed: int):
    """torch.randint and torch.multinomial take their numbers from one NumPy generator, as the loop does: a canvas is
    `integers(V)`, a draw inverts the cumulative distribution at `random(L)`."""
    rng = np.random.default_rng(seed)
    randint, multinomial = torch.randint, torch.multinomial

    def numpy_randint(low, high, size, **_):
        assert low == 0 and size[0] == 1
        return torch.tensor(rng.integers(high, size=size[1]))[None]

    def numpy_multinomial(probabilities, num_samples, **_):
        assert num_samples == 1
        uniforms = rng.random(len(probabilities), dtype=np.float32)
        sums = np.cumsum(probabilities.double().numpy(), axis=-1)
        return torch.tensor((sums <= uniforms[:, None] * sums[:, -1:]).sum(axis=-1))[:, None]

    torch.randint, torch.multinomial = numpy_randint, numpy_multinomial
    try:
        yield
    finally:
        torch.randint, torch.multinomial = randint, multinomial


class _Steps:
    """A streamer that counts the drafts of each block."""

    def __init__(self):
        self.per_block: list[int] = []
        self.prompt = True

    def put(self, value):
        if not self.prompt:
            self.per_block.append(0)
        else:
            self.prompt, self.per_block = False, [0]

    def put_draft(self, value):
        self.per_block[-1] += 1

    def end(self):
        self.per_block.pop()


def generate(model, prompt, *, seed: int, max_tokens: int) -> dict:
    """A whole run: `tokens` of every block as they were committed (pads after a stop token), steps of each block,
    tokens per forward."""
    steps = _Steps()
    with drawing_from(seed):
        output = model.generate(torch.tensor([list(prompt)]), max_new_tokens=max_tokens, streamer=steps)
    return {
        "tokens": output.sequences[0, len(prompt) :].tolist(),
        "steps": steps.per_block,
        "tokens_per_forward": float(output.tokens_per_forward[0]),
    }
