"""JSON that a schema allows, whatever the model: each draft is such a document, and the last is the answer.

python examples/schema.py [FOLDER_OR_HUB_ID]
"""

import json
import sys

from mlx_dgemma import load
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.language import Language, begin_within
from mlx_dgemma.forms.lattice import Vocabulary
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run

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

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
vocabulary = Vocabulary(tokenizer, model.facts.vocab_size)
language = Language(model, vocabulary, schema.automaton(PERSON))  # once, for any number of texts
prompt = Text(prompt_tokens(tokenizer, "Extract JSON: In Accra lives Tess, a vet aged 40."))
text = ""
for step in run(model, [begin_within(model, prompt, Ask(sampling=sampling, max_tokens=200), language)]):
    draft = text + tokenizer.decode(step.draft.tolist())
    print(f"block {step.block} step {step.step}: {draft}", file=sys.stderr)
    text = draft if step.final else text  # a longer document goes on in the next block
print(json.loads(text))
