"""The languages of schemas and templates, made once and kept for the next request that asks for the same; and whether a
chat template speaks of tools."""

import json
import threading
from collections import OrderedDict
from typing import Any

from ..errors import Mistake
from ..forms import schema, template
from ..forms.construction import build_automaton
from ..forms.language import Language
from ..seam.model import DiffusionModel
from ..terminal.form import LONGEST, Form
from ..tokens.messages import hears_tools
from ..tokens.tokenizer import Tokenizer

MOST = 16  # that are kept


class Languages:
    """For any thread: what is made here computes nothing on the model."""

    def __init__(self, model: DiffusionModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self._made: OrderedDict[tuple, Language] = OrderedDict()
        self._lock = threading.Lock()

    def of_schema(self, document: Any, max_tokens: int) -> Language:
        """Mistake where the schema cannot be held."""
        return self._get("schema", json.dumps(document), max_tokens)

    def of_template(self, text: str) -> Language:
        """Mistake where the template has no slots, or one that is wrong."""
        return self._get("template", text, 0)

    def _get(self, *key) -> Language:
        kind, text, max_tokens = key
        with self._lock:
            if key not in self._made:
                if kind == "schema":
                    automaton = schema.automaton(json.loads(text), reach=max_tokens * LONGEST)
                else:
                    automaton = build_automaton(template.template(text))
                self._made[key] = Form(kind, automaton=automaton).language(self.model, self.tokenizer)
            self._made.move_to_end(key)
            while len(self._made) > MOST:
                self._made.popitem(last=False)
            return self._made[key]


def can_hear_tools(tokenizer: Tokenizer) -> bool:
    """Whether the chat template tells the model of tools."""
    probe = {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}}
    try:
        return hears_tools(tokenizer, [{"type": "function", "function": probe}])
    except Mistake:
        return False
