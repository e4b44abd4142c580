"""The canvas as it settles, a line a pass: what is not yet accepted is a dot.

python examples/watch.py [FOLDER_OR_HUB_ID]
"""

import sys

from mlx_dgemma import load, stream_generate
from mlx_dgemma.writing.ask import Ask

PROMPT = "Extract JSON of pet, name, job: Xena, a judge from Rome, is 71 years old. Xena has a snail and likes red."

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
for piece in stream_generate(model, tokenizer, PROMPT, Ask(sampling=sampling, seed=0)):
    step = piece.step
    tokens = zip(step.draft.tolist(), step.accepted.tolist(), strict=True)
    canvas = "".join((tokenizer.decode([token]) or " ") if accepted else "·" for token, accepted in tokens)
    print(f"{step.block}.{step.step:02}  {canvas.rstrip()}".replace("\n", "⏎"))
    if piece.text:
        print(piece.text)
