"""Against transformers, live: logits within 1e-4 in float32, and whole runs token for token."""

from __future__ import annotations

import dataclasses
import os
import sys
from functools import cache

import checkpoints
import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference runs on torch: pip install torch==2.13.0")
pytest.importorskip("transformers")
import reference
import runs

from mlx_dgemma.checkpoint.checkpoint import Checkpoint
from mlx_dgemma.checkpoint.config import parse_config
from mlx_dgemma.checkpoint.folder import read_configs
from mlx_dgemma.load import load, load_model
from mlx_dgemma.seam.model import Row, Text
from mlx_dgemma.writing.sampling import parse_sampling

BOUND = 1e-4
RUNS = int(os.environ.get("RUNS", "1"))  # seeds of whole runs on random weights
BACKENDS = ["mlx", "torch"]
CASES = {
    "hub": {},
    "transformers": {"layout": "transformers"},
    "no KV sharing, top-1": {"num_key_value_heads": 4, "full": {"num_key_value_heads": 4}, "top_k_experts": 1},
    "8 heads a KV head, top-8": {
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "full": {"num_key_value_heads": 1},
        "top_k_experts": 8,
    },
    "sliding-sliding-full": {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2},
}
SLOW = pytest.mark.slow
# Below, at and above the sliding window of 24, and several windows long.
LENGTHS = [1, pytest.param(23, marks=SLOW), 24, pytest.param(25, marks=SLOW), 70]


PROMPT = np.random.default_rng(0).integers(96, size=20).tolist()
AT_LENGTH = {"torch transformers", "mlx no KV sharing, top-1", "torch no KV sharing, top-1"}
PAIRS = [(backend, case) for backend in BACKENDS for case in CASES]
PAIRS = [pytest.param(pair, id=" ".join(pair), marks=[SLOW] * (" ".join(pair) in AT_LENGTH)) for pair in PAIRS]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    backend, case = request.param
    config = checkpoints.config(**CASES[case])
    folder = checkpoints.write(tmp_path_factory.mktemp("case"), config, checkpoints.weights(config, seed=3))
    model = load_model(Checkpoint(folder, parse_config(config, checkpoints.generation_config())), backend, "float32")
    return model, reference.load(folder)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def _row(model, canvas, cache, conditioning=None, pending=(), temperature=0.7):
    uniforms = np.full(len(canvas), 0.5, dtype=np.float32)
    return Row(canvas, cache, temperature, uniforms, pending=Text(pending), self_conditioning=conditioning)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.sample(8)
def test_logits_of_three_blocks(pair, length):
    model, theirs = pair
    rng = np.random.default_rng(length)
    vocabulary, canvas_length = model.facts.vocab_size, model.facts.canvas_length
    session, cache = reference.Session(theirs), model.new_cache()
    pending = rng.integers(vocabulary, size=length)
    for _ in range(3):
        session.encode(pending)
        canvas, conditioning, processed = rng.integers(vocabulary, size=canvas_length), None, None
        for temperature in (0.8, 0.7):
            row = _row(model, canvas, cache, conditioning, pending, temperature)
            [prediction] = model.denoise([row])
            row.pending = Text()
            ours, expected = model.logits(row), session.logits(canvas, processed)
            assert np.abs(ours - expected).max() <= BOUND
            conditioning, processed = prediction.self_conditioning, expected / np.float32(temperature)
            pending, canvas = (), rng.integers(vocabulary, size=canvas_length)
        pending = rng.integers(vocabulary, size=canvas_length)


@pytest.mark.parametrize("piece", [pytest.param(1, marks=SLOW), 7, 24])
def test_prompt_in_pieces(pair, piece, monkeypatch):
    model, theirs = pair
    tokens = np.random.default_rng(5).integers(model.facts.vocab_size, size=30)
    canvas = np.arange(model.facts.canvas_length)
    session = reference.Session(theirs)
    session.encode(tokens)
    expected = session.logits(canvas)
    cache = model.new_cache()
    for start in range(0, len(tokens), piece):
        model.encode([Text(tokens[start : start + piece])], [cache])
    assert np.abs(model.logits(_row(model, canvas, cache)) - expected).max() <= BOUND
    monkeypatch.setattr(sys.modules[type(model).__module__], "PREFILL_CHUNK", piece)
    assert np.abs(model.logits(_row(model, canvas, model.new_cache(), pending=tokens)) - expected).max() <= BOUND


def test_the_causal_pass_scores_as_the_encoder_and_the_head_do(pair):
    model, theirs = pair
    tokens = np.random.default_rng(6).integers(model.facts.vocab_size, size=40)
    hidden = reference.Session(theirs).encode(tokens)
    table = theirs.get_input_embeddings().weight.detach().numpy()
    logits = np.tanh(hidden @ table.T / 30) * 30
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    [found] = model.encode([Text(tokens)], [model.new_cache()], score=True)
    assert np.isnan(found.logprob[0])
    assert np.array_equal(found.argmax, logits.argmax(axis=-1))
    assert np.abs(found.logprob[1:] - logprobs[np.arange(39), tokens[1:]]).max() <= BOUND


def loaded(folder, backend: str):
    config, generation = read_configs(folder)
    checkpoint = Checkpoint(folder, parse_config(config, generation))
    return load_model(checkpoint, backend, "float32"), parse_sampling(generation)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(seed, peaked) -> a folder whose stop token comes up in the third block, and the reference's run with it. Which
    token that is our own run tells, for it is many times faster."""

    @cache
    def run(seed: int, peaked: float):
        case, made = {"seed": seed, "peaked": peaked, "layout": "hub"}, tmp_path_factory.mktemp("stopped")
        prompt = np.random.default_rng(seed).integers(96, size=20).tolist()
        model, sampling = loaded(runs.random_case(made / "all", case, [95]), "mlx")
        tokens = runs.whole_run(model, prompt, sampling, seed=seed, max_tokens=48)["tokens"]
        folder = runs.random_case(made / "stopped", case, runs.late_stop(tokens, 16, 2) or [95])
        return folder, prompt, reference.generate(reference.load(folder), prompt, seed=seed, max_tokens=48)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize("peaked", [1.0, 10.0])
def test_whole_runs_over_blocks(stopped, backend, seed, peaked):
    folder, prompt, expected = stopped(seed, peaked)
    model, sampling = loaded(folder, backend)
    runs.same(runs.whole_run(model, prompt, sampling, seed=seed, max_tokens=48), expected)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A folder, and the reference's run with a canvas of half its width."""
    wide, half = (checkpoints.config(canvas_length=n, eos=(95,)) for n in (16, 8))
    folder, generation = tmp_path_factory.mktemp("narrow"), checkpoints.generation_config(eos_token_id=[95])
    weights = checkpoints.weights(wide, peaked=10.0)
    theirs = reference.load(checkpoints.write(folder / "half", half, weights, generation))
    expected = reference.generate(theirs, PROMPT, seed=0, max_tokens=20)
    return checkpoints.write(folder / "wide", wide, weights, generation), expected


@pytest.mark.slow
def test_a_narrow_canvas_is_that_of_a_model_which_has_no_other(narrow, backend):
    folder, expected = narrow
    model, sampling = loaded(folder, backend)
    sampling = dataclasses.replace(sampling, canvas_length=8)
    runs.same(runs.whole_run(model, PROMPT, sampling, seed=0, max_tokens=20), expected)


@cache
def embedded(tokens: tuple[int, ...], eos: int | None) -> dict:
    """The reference's run of the embedded model."""
    theirs = reference.load(checkpoints.TINY)
    if eos:
        theirs.generation_config.eos_token_id = [eos]
    return reference.generate(theirs, tokens, seed=1, max_tokens=192)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "eos"),
    [
        *(pytest.param(prompt, None, id=f"its own stops-{prompt}") for prompt in runs.PROMPTS),
        pytest.param(runs.PROMPTS[0], 5, id="only <turn|>"),
        pytest.param(runs.PROMPTS[1], 50, id="a letter"),
    ],
)
def test_the_embedded_model_token_for_token(backend, prompt, eos):
    model, tokenizer, sampling = load(backend=backend)
    if eos:
        model.facts = dataclasses.replace(model.facts, stop_ids=(eos,))
    tokens = tokenizer.chat([{"role": "user", "content": prompt}])
    found = runs.whole_run(model, tokens, sampling, seed=1, max_tokens=192)
    runs.same(found, embedded(tuple(tokens), eos))
