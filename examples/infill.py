"""Fill gaps in a text: their lengths are searched, and what is around them stays as it is, to the byte.

python examples/infill.py [FOLDER_OR_HUB_ID]
"""

import sys

from mlx_dgemma import load
from mlx_dgemma.fill.infill import Infill, infill
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.ask import Ask

QUESTION = "Extract JSON: Tess is 40 and works as a vet in Accra."
TEXTS = ['{"name": "', '", "age": ', ', "job": "', '", "city": "Accra"}']  # around three gaps

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
request = Infill(prompt=prompt_tokens(tokenizer, QUESTION), texts=TEXTS, ask=Ask(sampling=sampling, seed=0))
[filled] = infill(model, tokenizer, [request])
for gap, scores in zip(filled.gaps, filled.tried, strict=True):
    best = sorted(scores.items(), key=lambda item: -item[1])[:3]
    print(f"{gap!r}:", ", ".join(f"{length} tokens {score:.1f} nats" for length, score in best), file=sys.stderr)
print(f"{filled.passes} canvases were denoised", file=sys.stderr)
print(filled.text)
