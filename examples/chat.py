"""A conversation of two turns: the second encodes only what the model has not read yet.

python examples/chat.py [FOLDER_OR_HUB_ID]
"""

import sys

from mlx_dgemma import Conversation, load
from mlx_dgemma.writing.ask import Ask

# The embedded model was taught mostly single questions; it may fail at a second one, not at this.
QUESTIONS = "Reverse: Ann, Bob, Cara", "Extract JSON: Bob, a chef from Perth, is 26 years old."

model, tokenizer, sampling = load(sys.argv[1] if len(sys.argv) > 1 else None)
conversation = Conversation(model, tokenizer, Ask(sampling=sampling, seed=0))
for question in QUESTIONS:
    conversation.say(question)
    print(f"> {question}\n  ({conversation.unread} of {len(conversation.tokens)} tokens are new)")
    for piece in conversation.write():
        print(piece.text, end="", flush=True)
    print()
