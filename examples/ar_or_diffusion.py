"""The same prompts denoised, left to right, and by whatever costs less: seconds, and which way was taken.

python examples/ar_or_diffusion.py [FOLDER_OR_HUB_ID]
"""

import sys
import time

from mlx_dgemma import load, stream_generate
from mlx_dgemma.writing.ask import Ask

PROMPTS = [
    "Extract JSON: Tess is 40 and works as a vet in Accra.",
    "Reverse: clerk, Kofi, Eve, Turin, Noor, Cara",
    "Sort: Lima, Tokyo, Kyiv, Oslo, Rome, Bonn, Eve, Zoe, Yan, Omar",  # too long for the embedded model
]

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
for prompt in PROMPTS:
    print(prompt)
    for mode in ("diffusion", "ar", "auto"):
        start = time.perf_counter()
        pieces = list(stream_generate(model, tokenizer, prompt, Ask(sampling=sampling, mode=mode, max_tokens=256)))
        seconds = time.perf_counter() - start
        single = sum(len(piece.step.canvas) == 1 for piece in pieces)
        text = "".join(piece.text for piece in pieces)
        print(f"  {mode:9} {seconds:6.2f} s, {len(pieces) - single} passes, {single} tokens left to right: {text}")
        for note in filter(None, (piece.step.note for piece in pieces)):
            print(f"            {note}")
