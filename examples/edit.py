"""Change one line of a text in place, and show what changed.

python examples/edit.py [FOLDER_OR_HUB_ID]
"""

import sys

from mlx_dgemma import load
from mlx_dgemma.fill.edit import change, cut, unified_diff
from mlx_dgemma.fill.infill import infill
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.ask import Ask

QUESTION = "Solve this sudoku:\n...3\n.124\n1342\n2.3."
TEXT = "4213\n3142\n1342\n2431"  # two digits of line 2 have changed places

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
lines, prompt = cut(TEXT, 2, 2), prompt_tokens(tokenizer, QUESTION)
request = change(tokenizer, lines, prompt=prompt, ask=Ask(sampling=sampling, seed=0), strength=0.75)
[filled] = infill(model, tokenizer, [request])
print(unified_diff(TEXT, lines.with_new(filled.gaps[0]), "grid.txt"), end="")
