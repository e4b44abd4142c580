"""Models that are watched, or that write what a script says, over real weights and a real cache."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.load import load_model
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.conversation import Conversation
from mlx_dgemma.writing.sampling import Sampling

BPE = Path(__file__).parents[1] / "fixtures" / "bpe"


class Counting:
    """A model, and how many tokens it was given to encode."""

    def __init__(self, model):
        self.model, self.encoded = model, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode(self, texts, caches, **options):
        self.encoded += sum(map(len, texts))
        return self.model.encode(texts, caches, **options)

    def denoise(self, rows):
        self.encoded += sum(len(pending) for pending in {id(row.cache): row.pending for row in rows}.values())
        return self.model.denoise(rows)


class Scripted(Counting):
    """Its n-th pass predicts the n-th text, whatever the weights say; one pass a block settles it."""

    def __init__(self, model, tokenizer, texts):
        super().__init__(model)
        canvas = model.facts.canvas_length
        ids = [tokenizer.encode(text, special_tokens=True) for text in texts]
        self.script = [block for tokens in ids for block in blocks(tokens, canvas)]

    def denoise(self, rows):
        [prediction] = super().denoise(rows)
        draft = np.array(self.script.pop(0), np.int32)
        return [replace(prediction, argmax=draft, sample=draft, entropy=np.zeros(len(draft), np.float32))]


class Slipping(Counting):
    """Its first two passes are wrong at one place, and as sure of it as of the rest."""

    def __init__(self, model, place: int):
        super().__init__(model)
        self.place, self.left = place, 2

    def denoise(self, rows):
        predictions = super().denoise(rows)
        self.left -= 1
        return [self._slip(each) for each in predictions] if self.left >= 0 else predictions

    def _slip(self, prediction):
        argmax = prediction.argmax.copy()
        argmax[self.place] += 1
        return replace(prediction, argmax=argmax)


class Timed:
    """A model by whose clock a pass and a token take as long as a test says."""

    def __init__(self, model, a_pass: float = 1.0, a_token: float = 1.0):
        self.model, self.seconds, self.a_pass, self.a_token = model, 0.0, a_pass, a_token

    def __getattr__(self, name):
        return getattr(self.model, name)

    def now(self) -> float:
        return self.seconds

    def denoise(self, rows):
        self.seconds += self.a_pass
        return self.model.denoise(rows)

    def autoregress(self, continuations, draw):
        with closing(self.model.autoregress(continuations, draw)) as passes:
            for tokens in passes:
                self.seconds += self.a_token
                yield tokens


def blocks(ids: list[int], length: int) -> list[list[int]]:
    padded = ids + [0] * (-len(ids) % length)
    return [padded[i : i + length] for i in range(0, len(padded), length)]


def random_bpe(folder: Path, seed: int = 0):
    """Random weights behind the BPE fixture, and its tokenizer; as in the published checkpoint, a tool's turn is a
    stop."""
    tokenizer = Tokenizer(BPE)
    stops = tuple(map(tokenizer.token_id, ("<eos>", "<turn|>", "<|tool_response>")))
    config = checkpoints.config(vocab_size=tokenizer.vocab_size, eos=stops)
    generation = checkpoints.generation_config(eos_token_id=list(stops))
    checkpoints.write(folder, config, checkpoints.weights(config, seed=seed, peaked=10.0), generation)
    return load_model(Checkpoint(folder, parse_config(config, generation)), "mlx", "float32"), tokenizer


def scripted(model, tokenizer: Tokenizer, *texts: str, **options) -> Conversation:
    """A conversation whose answers are these."""
    how = Ask(sampling=Sampling(max_denoising_steps=1))
    return Conversation(Scripted(model, tokenizer, texts), tokenizer, how, **options)
