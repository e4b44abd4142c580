"""A server to try clients by hand, above all agents, whose prompts are too long for the tiny model. The engine, the
tokenizer and the wires are the product's; instead of a network a script answers what the prompt itself asks for:

    SAY some text        answers that text
    CALL name {"a": 1}   calls this tool with these arguments, unless the last turn brings a tool's result

    PYTHONPATH=.:tests/support python tests/support/answering.py --port 8091
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from fakes import FakeModel, facts

from mlx_dgemma.server import run
from mlx_dgemma.server.__main__ import listen, parser
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.tokens.tools import CALL_CLOSE, CALL_OPEN, RESPONSE_OPEN
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.sampling import Sampling

BPE = Path(__file__).parents[1] / "fixtures" / "bpe"
MODEL, END = "<|turn>model\n", "<turn|>"
SECONDS = 0.1  # of a pass
TEMPLATE = """{{ bos_token }}{% if tools %}<|turn>system
{{ tools | tojson }}<turn|>
{% endif %}{% for m in messages %}<|turn>{{ "model" if m.role == "assistant" else m.role }}
{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<turn|>
{% endfor %}{% if add_generation_prompt %}<|turn>model
{% endif %}"""
WISH = re.compile(r"\b(SAY|CALL ([\w.-]+)) +(.+)")


def answer_to(prompt: str) -> str:
    """What is written behind `prompt`, with its control tokens."""
    turns = prompt.split("<|turn>")
    if turns[-2].startswith("tool"):
        return f"The tool said: {turns[-2][5:300].split(END)[0]}{END}"
    wishes = WISH.findall("\n".join(turn for turn in turns if turn.startswith("user")))
    if not wishes:
        return f"Nothing was asked for by SAY or CALL.{END}"
    _, name, rest = wishes[-1]
    if not name:
        return rest.replace(END, "").replace("\\n", "\n") + END
    try:
        arguments, _ = json.JSONDecoder().raw_decode(rest.replace('\\"', '"'))  # some clients quote what is asked
    except ValueError:
        return f"No arguments in JSON: {rest}{END}"
    return f"{CALL_OPEN}call:{name}{gemma(arguments)}{CALL_CLOSE}{RESPONSE_OPEN}"


def gemma(value) -> str:
    """JSON in the words of the model's calls."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, list):
        return f"[{','.join(map(gemma, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{gemma(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)


class Answering(FakeModel):
    """It settles in two passes a canvas."""

    def __init__(self, tokenizer: Tokenizer):
        stops = tuple(map(tokenizer.token_id, ("<eos>", END, RESPONSE_OPEN)))
        shape = {"vocab_size": tokenizer.vocab_size, "canvas_length": 256, "max_position_embeddings": 131_072}
        super().__init__([], facts(**shape, stop_ids=stops))
        self.tokenizer = tokenizer

    def denoise(self, rows):
        time.sleep(SECONDS)
        return super().denoise(rows)

    def _predict(self, row):
        text = self.tokenizer.decode([*row.cache.tokens, *row.pending.tokens], skip_special_tokens=False)
        prompt, begun = text.rsplit(MODEL, 1)
        rest = answer_to(prompt + MODEL).removeprefix(begun)
        ids = [*self.tokenizer.encode(rest, special_tokens=True), *[0] * 256][: len(row.canvas)]
        first = row.self_conditioning is None
        row.cache.passes = 0
        self.script = [(ids, np.arange(0, len(ids), 2) if first else [])]
        return super()._predict(row)


def load():
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(BPE, Path(folder) / "bpe"))
        (copy / "chat_template.jinja").write_text(TEMPLATE)
        tokenizer = Tokenizer(copy)
    return Answering(tokenizer), tokenizer, Ask(sampling=Sampling(max_denoising_steps=8), max_tokens=4096)


def main() -> None:
    options: argparse.Namespace = parser().parse_args()
    run.open_model = lambda *_: load()
    with listen(options.host, options.port) as bound:
        run.serve("answering", options, None, bound)


if __name__ == "__main__":
    main()
