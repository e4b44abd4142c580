"""The whole of the Python API: load, ask, read text as blocks finish.

python examples/hello.py [FOLDER_OR_HUB_ID]
"""

import sys

from mlx_dgemma import load, stream_generate
from mlx_dgemma.writing.ask import Ask

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
prompt = "Extract JSON: Tess is 40 and works as a vet in Accra."
for piece in stream_generate(model, tokenizer, prompt, Ask(sampling=sampling, seed=0)):
    accepted = int(piece.step.accepted.sum())
    print(f"block {piece.step.block} step {piece.step.step}: {accepted} positions accepted", file=sys.stderr)
    print(piece.text, end="", flush=True)
print()
