"""Structured output: do random schemas' outputs validate, and are the values of the JSON task as right as in free text?

    python tests/measure/schema_rates.py --schemas 500 --prompts 200 --seeds 3

Schema i comes from random.Random(f"schema {i}") and is answered with seed i by three models: the embedded one, and
random weights over its tokenizer of bytes and over the BPE fixture. Random weights never settle: more passes
than the few that they are given would show nothing new. Prompts are those of solve_rates.py's JSON task, prompt i with
seeds i, 1000 + i, and so on. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import checkpoints
import jsonschema

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.automaton import Automaton
from mlx_dgemma.forms.language import Language, begin_within
from mlx_dgemma.forms.lattice import Vocabulary
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tiny import tasks
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.diffuse import begin

BPE = Path(__file__).parents[1] / "fixtures" / "bpe"
MAX_TOKENS = 160  # two and a half canvases
DEPTH = 3
WORDS = ["", "name", "age", "Größe", 'say "hi"', "a\\b", "line\nend", "🧑‍🚀", "x", "id", "<eos>", "天空", "\x00\x1f"]
PATTERNS = ["^[A-Z]{2}-\\d{1,3}$", "a|b$", "^\\w+@\\w+\\.(com|org)$", "[^a-z]é", "^(ab){1,2}\\s?$", "^$", '\\\\"', "."]
PERSON = {"name": {"type": "string"}, "age": {"type": "integer"}, "job": {"type": "string"}, "city": {"type": "string"}}
TASK = {"type": "object", "properties": PERSON, "required": list(PERSON)}


def random_number(draw: random.Random) -> float | int:
    return draw.choice([draw.randint(-2000, 2000), round(draw.uniform(-3, 3), 4), draw.uniform(-1e6, 1e6), 0])


def random_value(draw: random.Random, depth: int):
    kind = draw.randrange(6 if depth else 4)
    if kind == 4:
        return [random_value(draw, depth - 1) for _ in range(draw.randint(0, 2))]
    if kind == 5:
        return {word: random_value(draw, depth - 1) for word in draw.sample(WORDS, draw.randint(0, 2))}
    return [draw.choice(WORDS), random_number(draw), None, draw.random() < 0.5][kind]


def random_bounds(draw: random.Random) -> dict:
    low = random_number(draw)
    bounds = {draw.choice(["minimum", "exclusiveMinimum"]): low} if draw.random() < 0.5 else {}
    if draw.random() < 0.5:
        bounds[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.choice([2, 10, 123.5, 10**9])
    return bounds


def random_string(draw: random.Random) -> dict:
    kind = draw.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": draw.choice(PATTERNS)}
    if kind == 1:
        least = draw.randint(0, 8)
        return {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 12)}
    if kind == 2:
        return {"type": "string", "pattern": "^[a-zé]+ ?[a-z]*$", "minLength": 3, "maxLength": 9}
    return {"type": "string"}


def random_schema(draw: random.Random, depth: int = DEPTH) -> dict:
    nested = ["object", "array", "object", "array", "anyOf"][: 5 if depth else 0]
    kind = draw.choice(nested * (4 if depth == DEPTH else 1) + list("sninbec"))
    if kind == "object":
        names = draw.sample(WORDS, draw.randint(0, 4))
        properties = {name: random_schema(draw, depth - 1) for name in names}
        return {"type": "object", "properties": properties, "required": [n for n in names if draw.random() < 0.6]}
    if kind == "array":
        least = draw.randint(0, 2)
        bounds = {"minItems": least, "maxItems": least + draw.randint(0, 3)}
        return {"type": "array", "items": random_schema(draw, depth - 1), **bounds}
    if kind == "anyOf":
        return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}
    if kind == "s":
        return random_string(draw)
    if kind in "ni":
        return {"type": ["number", "integer"][kind == "i"], **random_bounds(draw)}
    if kind == "b":
        return {"type": draw.choice(["boolean", "null", ["boolean", "null"], ["string", "integer"]])}
    if kind == "e":
        return {"enum": [random_value(draw, 2) for _ in range(draw.randint(1, 5))]}
    return {"const": random_value(draw, 2)}


def sampled(automaton: Automaton, draw: random.Random) -> bytes:
    """A text of the automaton: random bytes for a while, then the nearest way to the end."""
    text, state, length = bytearray(), 0, draw.randint(0, 120)
    nearest = automaton.nearest[1]
    while len(text) < length or not automaton.accepting[state]:
        if len(text) >= length and nearest[state] >= 0:
            byte = nearest[state]
        elif automaton.rows[state]:
            low, high, _ = draw.choice(automaton.rows[state])
            byte = draw.randint(low, high)
        else:
            break
        text.append(byte)
        state = int(automaton.table[state, byte])
    return bytes(text)


def random_model(folder: Path, tokenizer_folder: Path):
    """Random weights over a tokenizer -> (model, tokenizer, sampling)."""
    shape = checkpoints.config(canvas_length=64, vocab_size=Tokenizer(tokenizer_folder).vocab_size, eos=(1, 6))
    generation = checkpoints.generation_config(eos_token_id=[1, 6])
    checkpoints.write(folder, shape, checkpoints.weights(shape, peaked=4.0), generation)
    for path in tokenizer_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_bytes((tokenizer_folder / "chat_template.jinja").read_bytes())
    return load(folder)


def models() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        folders = {"bytes, random": checkpoints.TINY, "bpe, random": BPE}
        made = {name: random_model(Path(folder) / name, source) for name, source in folders.items()}
    return {"embedded": load(None), **made}


def written(model, tokenizer, prompt: str, ask: Ask, language: Language | None) -> Answer:
    answer, text = Answer(model.facts, tokenizer, ask.max_tokens), Text(prompt_tokens(tokenizer, prompt))
    writing = begin(model, text, ask) if language is None else begin_within(model, text, ask, language)
    for step in run(model, [writing]):
        answer.add(step)
    return answer


def outputs(loaded, numbers: range, passes: int, mode: str = "diffusion") -> Iterator[tuple[dict, str | None]]:
    """(schema, output) each; None for one whose shortest document does not fit."""
    model, tokenizer, sampling = loaded
    ask = Ask(sampling=replace(sampling, max_denoising_steps=passes), max_tokens=MAX_TOKENS, mode=mode)
    vocabulary = Vocabulary(tokenizer, model.facts.vocab_size)
    for number in numbers:
        made = random_schema(random.Random(f"schema {number}"))
        try:
            language = Language(model, vocabulary, schema.automaton(made))
            yield made, written(model, tokenizer, "Make some JSON", replace(ask, seed=number), language).text
        except Mistake as mistake:
            if "the shortest text" not in str(mistake):
                raise
            yield made, None


def valid(made: dict, text: str) -> bool:
    try:
        return jsonschema.Draft202012Validator(made).is_valid(json.loads(text))
    except ValueError:
        return False


def validity(loaded, numbers: range, passes: int, mode: str = "diffusion") -> dict[str, int]:
    pairs = list(outputs(loaded, numbers, passes, mode))
    fit = [(made, text) for made, text in pairs if text is not None]
    return {"fit": len(fit), "too long": len(pairs) - len(fit), "valid": sum(valid(*pair) for pair in fit)}


def values(loaded, prompts: int, seeds: int) -> dict[str, dict[str, float]]:
    """Share of the JSON task's prompts whose object is right, and mean passes: in free text, and held to its schema."""
    model, tokenizer, sampling = loaded
    held = Language(model, Vocabulary(tokenizer, model.facts.vocab_size), schema.automaton(TASK))
    ask, table = Ask(sampling=sampling, max_tokens=MAX_TOKENS), {}
    for name, language in (("free", None), ("schema", held)):
        runs = []
        for number, (prompt, right) in enumerate(tasks.made("json", prompts)):
            for seed in range(number, 1000 * seeds, 1000):
                answer = written(model, tokenizer, prompt, replace(ask, seed=seed), language)
                runs.append((answer.text == right, answer.steps))
        solved, passes = zip(*runs, strict=True)
        table[name] = {"right": sum(solved) / len(runs), "passes": sum(passes) / len(runs)}
    return table


def narrow(loaded, prompts: int, mode: str = "diffusion", every: int = 1) -> dict[str, float]:
    """The JSON task with two or three of its four members asked for, in every so many-th of their 36 orders: share of
    the objects that are right, and mean passes, over `prompts` of each."""
    model, tokenizer, sampling = loaded
    vocabulary, runs = Vocabulary(tokenizer, model.facts.vocab_size), []
    orders = [names for count in (2, 3) for names in permutations(PERSON, count)][::every]
    given = iter(tasks.made("json", prompts * len(orders)))
    for names in orders:
        form = {"type": "object", "properties": {name: PERSON[name] for name in names}, "required": list(names)}
        held = Language(model, vocabulary, schema.automaton(form))
        for seed in range(prompts):
            prompt, right = next(given)
            ask = Ask(sampling=sampling, max_tokens=MAX_TOKENS, seed=seed, mode=mode)
            answer = written(model, tokenizer, prompt, ask, held)
            asked = {name: json.loads(right)[name] for name in names}
            runs.append((answer.text == json.dumps(asked), answer.steps))
    solved, passes = zip(*runs, strict=True)
    return {"right": sum(solved) / len(runs), "passes": sum(passes) / len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=4, help="that a canvas takes at most; schemas only")
    parser.add_argument("--mode", choices=["diffusion", "ar"], default="diffusion", help="schemas only")
    options = parser.parse_args()
    valid_texts = {
        name: validity(loaded, range(options.schemas), options.passes, options.mode)
        for name, loaded in models().items()
    }
    table = values(load(None), options.prompts, options.seeds)
    for mode in ("diffusion", "ar"):
        table[f"some members, {mode}"] = narrow(load(None), max(1, options.prompts // 36), mode)
    print(json.dumps({"schemas": valid_texts, "json task": table}, indent=1))


if __name__ == "__main__":
    main()
