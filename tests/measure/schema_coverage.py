"""Which schemas are held, which are refused and why, how long it takes, and whether documents of theirs are valid.

    python tests/measure/schema_coverage.py suite JSON-Schema-Test-Suite/tests/draft2020-12    # of jsonschema's sources
    python tests/measure/schema_coverage.py pydantic                                           # 51 kinds of fields
    python tests/measure/schema_coverage.py files FILE.json …
    python tests/measure/schema_coverage.py kubernetes FOLDER V1Deployment …  # pip install --target FOLDER kubernetes

Of each schema that is held, random texts of its automaton are validated by jsonschema, formats checked. Prints a line
for each that is refused or wrong, and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes_schemas import kubernetes
from pydantic_schemas import pydantic

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.automaton import Automaton, Budget
from mlx_dgemma.forms.strings import FORMATS

CHECKER = jsonschema.FormatChecker(FORMATS.keys() & jsonschema.FormatChecker.checkers)
CHECKER.checks("date-time", ValueError)(lambda text: not isinstance(text, str) or datetime.fromisoformat(text))
REACH = 256 * 1024
TEXTS = 40
LENGTH = 400  # bytes from which a text goes to its end


def sampled(automaton: Automaton, draw: random.Random, length: int) -> bytes:
    """A random text, which goes the nearest way to its end from `length` bytes on."""
    text, state, byte = bytearray(), 0, automaton.nearest[1]
    while True:
        if automaton.accepting[state] and (len(text) >= length or not automaton.rows[state] or draw.random() < 0.2):
            return bytes(text)
        low, high, _ = draw.choice(automaton.rows[state])
        text.append(byte[state] if len(text) >= length else draw.randint(low, high))
        state = int(automaton.table[state, text[-1]])


def wrong(made: Any, automaton: Automaton, texts: int = TEXTS) -> list[str]:
    """Texts of the automaton that are no documents of the schema."""
    kind = jsonschema.validators.validator_for(made, default=jsonschema.Draft202012Validator)
    validator, draw = kind(made, format_checker=CHECKER), random.Random(0)
    found = [sampled(automaton, draw, draw.choice([1, 20, LENGTH])) for _ in range(texts)]
    return [text.decode() for text in found if not valid(validator, text)]


def valid(validator, text: bytes) -> bool:
    return validator.is_valid(json.loads(text))


def suite(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            yield f"{path.stem}: {group['description']}", group["schema"]


def measured(schemas: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    held, refused, invalid, slowest = 0, 0, 0, (0.0, "")
    for name, made in schemas:
        start = time.perf_counter()
        try:
            automaton = schema.automaton(made, Budget(reach=REACH))
        except Mistake as mistake:
            refused += 1
            print(f"refused  {name}: {str(mistake)[:200]}", flush=True)
            continue
        finally:
            slowest = max(slowest, (time.perf_counter() - start, name))
        held += 1
        if bad := wrong(made, automaton):
            invalid += 1
            print(f"WRONG  {name}: {bad[0]}", flush=True)
    total = held + refused
    return {"schemas": total, "held": held / total, "with a wrong text": invalid, "slowest": slowest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["suite", "pydantic", "files", "kubernetes"])
    parser.add_argument("paths", nargs="*")
    options = parser.parse_args()
    if options.what == "suite":
        schemas = suite(Path(options.paths[0]))
    elif options.what == "pydantic":
        schemas = pydantic()
    elif options.what == "kubernetes":
        schemas = kubernetes(Path(options.paths[0]), options.paths[1:])
    else:
        schemas = ((path, json.loads(Path(path).read_text(encoding="utf-8"))) for path in options.paths)
    print(json.dumps(measured(schemas), indent=1))


if __name__ == "__main__":
    sys.exit(main())
