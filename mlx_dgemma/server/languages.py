"""The languages of schemas, templates and calls, made once and kept for the next request that asks for the same; and
whether a chat template speaks of tools."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from ..errors import Mistake
from ..forms import schema, template
from ..forms.automaton import MAX_WORK, Automaton, Budget
from ..forms.calls import calls, json_calls
from ..forms.construction import build_automaton
from ..forms.language import Language
from ..forms.lattice import LONGEST, Vocabulary
from ..forms.notation import CALLS, JSON, Notation
from ..seam.model import DiffusionModel
from ..tokens.messages import hears_tools
from ..tokens.tokenizer import Tokenizer

MOST = 16  # that are kept


class Languages:
    """For any thread: what is made here computes nothing on the model."""

    def __init__(self, model: DiffusionModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self._made: OrderedDict[tuple, Language] = OrderedDict()
        self._lock = threading.RLock()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        with self._lock:
            return Vocabulary(self.tokenizer, self.model.facts.vocab_size)

    def of_schema(self, document: Any, max_tokens: int) -> Language:
        """Mistake where the schema cannot be held."""
        budget = Budget(reach=max_tokens * LONGEST)
        return self._get(("schema", json.dumps(document), max_tokens), lambda: schema.automaton(document, budget))

    def of_template(self, text: str) -> Language:
        """Mistake where the template has no slots, or one that is wrong."""
        return self._get(("template", text), lambda: build_automaton(template.template(text)))

    def of_calls(self, tools: Sequence[dict], max_tokens: int, *, several: bool, thinking: bool) -> Language:
        """The calls of `tools`; JSON where the vocabulary has no calls, and then `several` and `thinking` say nothing.
        Mistake where a schema of theirs cannot be held."""
        budget = Budget(min(len(tools), 5) * MAX_WORK, max_tokens * LONGEST)
        key = ("calls", json.dumps(tools), max_tokens, several, thinking)
        if not self.vocabulary.has_calls:
            return self._get(key, lambda: json_calls(tools, budget))
        return self._get(key, lambda: calls(tools, several=several, thinking=thinking, budget=budget), CALLS)

    def _get(self, key: tuple, make: Callable[[], Automaton], notation: Notation = JSON) -> Language:
        with self._lock:
            if key not in self._made:
                self._made[key] = Language(self.model, self.vocabulary, make(), notation)
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
