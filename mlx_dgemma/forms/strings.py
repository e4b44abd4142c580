"""The automata of patterns and formats."""

from .automaton import Automaton, Budget
from .construction import build_automaton
from .expression import Expression
from .notation import Notation
from .pattern import pattern

DATE = (
    r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
BYTE = r"(?:25[0-5]|2[0-4]\d|1\d{2}|[1-9]?\d)"
WORD = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
FORMATS = {  # those that are cheap to hold; each has only texts that are surely right
    "date": f"^{DATE}$",
    "date-time": f"^{DATE}T{TIME}$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "email": rf"^[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{WORD}(?:\.{WORD})+$",
    "ipv4": rf"^{BYTE}(?:\.{BYTE}){{3}}$",
}


class Strings:
    """The automata of one schema's patterns and formats, each made once."""

    def __init__(self, budget: Budget, notation: Notation):
        self.budget, self.notation = budget, notation
        self.made: dict[tuple[str, bool], Automaton] = {}
        self.counted: dict[tuple, Expression] = {}  # by patterns and length

    def plain(self, text: str) -> Automaton:
        """The texts in which the pattern `text` is found."""
        return self._made(text, False)

    def content(self, text: str) -> Automaton:
        """The texts of `plain`, as they are written inside a string."""
        return self._made(text, True)

    def _made(self, text: str, inside: bool) -> Automaton:
        if (text, inside) not in self.made:
            texts = pattern(text)
            self.made[text, inside] = build_automaton(self.notation.escaped(texts) if inside else texts, self.budget)
        return self.made[text, inside]
