"""JSON that a schema allows, whatever the model: each draft is such a document, and the last is the answer.

python examples/schema.py [FOLDER_OR_HUB_ID]
"""

import json
import sys

from mlx_dgemma import load
from mlx_dgemma.forms import language as constrained
from mlx_dgemma.forms import schema
from mlx_dgemma.writing.answer import prompt_tokens
from mlx_dgemma.writing.writing import steps

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "job": {"enum": ["baker", "pilot", "nurse", "clerk", "vet"]},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "job", "city"],
}
PROMPT = "Extract JSON: In Accra lives Tess, a vet aged 40."

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
language = constrained.Language(model, tokenizer, schema.language(PERSON))  # once, for any number of texts
writing = constrained.begin(
    model, prompt_tokens(tokenizer, PROMPT), language=language, max_tokens=200, sampling=sampling
)
text = ""
for step in steps(model, writing):
    draft = text + tokenizer.decode(step.draft.tolist())
    print(f"block {step.block} step {step.step}: {draft}", file=sys.stderr)
    text = draft if step.final else text  # a longer document goes on in the next block
print(json.loads(text))
