"""Tools that must be called -> the texts that call them: in the words of the chat template where a vocabulary has them,
else as JSON."""

import json
from collections.abc import Sequence

from ..errors import Mistake
from ..tokens.tools import parsed_call
from . import schema
from .automaton import Automaton, Budget
from .construction import build_automaton
from .expression import ANY, Expression, Repeat, either, optional, series
from .notation import CALLS, END, JSON, THOUGHT, THOUGHT_END, Notation, call_open


def calls(tools: Sequence[dict], *, several: bool, thinking: bool, budget: Budget) -> Automaton:
    """A call of one of `tools`, which are as `read_tools` returns them, or several; thoughts may stand before."""
    for name in (tool["function"]["name"] for tool in tools):
        if (read := parsed_call(f"call:{name}{{}}", "\0")) is None or read.name != name:
            raise Mistake(f"{name!r:.80}: no call can have this name: leave out braces, and spaces around it")
    ways = [series(call_open(name), each, END) for name, each in _arguments(tools, CALLS, budget)]
    thought = [optional(series(THOUGHT, Repeat(ANY), THOUGHT_END))] if thinking else []
    return build_automaton(series(*thought, Repeat(either(*ways), 1, None if several else 1)), budget)


def json_calls(tools: Sequence[dict], budget: Budget) -> Automaton:
    """The arguments of a call as a JSON object; where there are several tools, in one that names the tool, too."""
    [first, *more] = _arguments(tools, JSON, budget)
    if not more:
        return build_automaton(first[1], budget)
    ways = [series(f'{{"name": {json.dumps(name)}, "arguments": ', each, "}") for name, each in (first, *more)]
    return build_automaton(either(*ways), budget)


def _arguments(tools: Sequence[dict], notation: Notation, budget: Budget) -> list[tuple[str, Expression]]:
    """The name of each, and its arguments, which are an object whatever its schema says."""
    made = []
    for tool in (tool["function"] for tool in tools):
        try:
            form = tool["parameters"] | {"type": "object"}
            made.append((tool["name"], schema.automaton(form, budget, notation)))
        except Mistake as mistake:
            raise Mistake(f"{tool['name']}: {mistake}") from None
    return made
