"""A JSON schema -> the automaton of its documents.

What a schema allows is decided in three files: `tokens/references.py` finds what it refers to, `cases.py` reads its
keywords into cases (`case.py`), and `documents.py` writes those, as JSON or for a call (`notation.py`), as expressions
(`expression.py`; patterns of texts: `strings.py`, `pattern.py`, numbers: `numeral.py`). Whatever is written is valid;
what cannot be held is a mistake, named with its path. Words that restrict nothing are annotations.

`construction.py` makes the expression an automaton (`automaton.py`), `lattice.py` reads it in tokens, and
`language.py` holds a text to it while it is written.
"""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from jsonschema import validators
from jsonschema.exceptions import SchemaError

from ..errors import Mistake, NotFound
from ..tokens.references import References
from .automaton import TOO_LARGE, Automaton, Budget
from .cases import Refusal, pointer
from .construction import MAX_NODES, build_automaton
from .documents import NOTHING, Depth, Documents
from .expression import Expression
from .fit import Fit
from .keywords import well_formed
from .notation import JSON, Notation
from .strings import Strings

DEPTHS = [Depth(4, 2), Depth(3, 2), Depth(2, 1), Depth(2, 0), Depth(1, 0)]  # the first that is small enough is taken
SMALL, LARGE = 12_000, 31_000  # nodes; each pass looks at all that can be reached
TEXTS = (2000, 1000, 500, 250, 180, 120, 80, 60)  # characters that are counted of a text, where all would make it large
DEEP = 16  # times that what refers to itself stands inside itself, where four times are that much smaller
MAX_SCHEMA = 2**24  # characters of a schema
LEGACY = (validators.Draft4Validator, validators.Draft6Validator, validators.Draft7Validator)
Schema = dict[str, Any]


def read(path: str | Path) -> Schema:
    """Reads a schema from a file. Mistake where it cannot be read, or is no JSON."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_SCHEMA + 1)  # a device never ends
        if len(text) > MAX_SCHEMA:
            raise ValueError(f"it has more than {MAX_SCHEMA} characters")
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as error:
        raise NotFound(f"{path}: {(error.strerror or str(error)).lower()}; --json-schema takes a file") from None
    except RecursionError:
        raise Mistake(f"{path} cannot be held: it is nested too deep") from None
    except ValueError as error:
        raise Mistake(f"{path} is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def automaton(schema: Schema | bool, budget: Budget | None = None, notation: Notation = JSON) -> Automaton:
    """Builds the automaton of a schema's documents.

    Mistake where it is no JSON schema, or cannot be held: names the keyword and its path.
    """
    if not isinstance(schema, dict | bool):
        raise Mistake(f"no JSON schema: need an object, got {json.dumps(schema)[:40]}")
    if isinstance(schema, dict) and not isinstance(schema.get("$schema", ""), str):
        raise Mistake(f"no JSON schema: $schema is a text, got {json.dumps(schema['$schema'])[:40]}")
    validator = validators.validator_for(schema, default=validators.Draft202012Validator)
    if validator is validators.Draft3Validator:
        raise Mistake("#/$schema cannot be held: draft 3 means other things by the same words; use draft 4 or later")
    try:
        if validator is not validators.Draft202012Validator or not well_formed(schema):
            validator.check_schema(schema, format_checker=None)  # or Python's `re` would have to read each pattern
        return _built(schema, budget or Budget(), notation, validator in LEGACY)
    except SchemaError as error:
        raise Mistake(f"no JSON schema: {error.message}, at {pointer(error.absolute_path)}") from None
    except RecursionError:
        raise Mistake("the schema cannot be held: it is nested too deep") from None


def _built(schema: Schema | bool, budget: Budget, notation: Notation, legacy: bool) -> Automaton:
    fit = Fit(References(schema), Strings(budget, notation), legacy)
    fit.cases.of(schema)
    for depth in DEPTHS:
        documents, expression = _written(fit, budget, schema, depth)
        if not documents.cut or documents.sizes[expression] <= SMALL:
            break
    if documents.cut and documents.sizes[expression] * DEEP // depth.itself <= SMALL:
        deeper = _written(fit, budget, schema, depth._replace(itself=DEEP))
        documents, expression = deeper if deeper[0].sizes[deeper[1]] <= SMALL else (documents, expression)
    for text in TEXTS:
        if documents.sizes[expression] <= LARGE:
            break
        documents, expression = _written(fit, budget, schema, documents.depth._replace(text=text))
    if expression is NOTHING:
        why = "it refers to itself, so no document of it ends" if documents.cut else "nothing fits it"
        raise Refusal((), why)
    nodes, path = documents.largest()
    try:
        if nodes > MAX_NODES:
            raise Mistake(TOO_LARGE)
        return build_automaton(expression, budget)
    except Mistake as mistake:
        raise Refusal(path, str(mistake)) from None


def _written(fit: Fit, budget: Budget, schema: Schema | bool, depth: Depth) -> tuple[Documents, Expression]:
    documents = Documents(fit, budget, depth)
    return documents, documents.value((schema,), ())
