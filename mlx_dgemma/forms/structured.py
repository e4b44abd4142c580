"""The flags of `generate` for text that has a form: --json-schema, --template, --choices."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import Mistake

if TYPE_CHECKING:
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer
    from ..writing.sampling import Sampling
    from ..writing.writing import Writing

FORMS = ("json_schema", "template", "choices")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json-schema", metavar="FILE", help="write a JSON document that this schema allows, and nothing else")
    add(
        "--template",
        metavar="TEXT",
        help="fill in its slots: {name} a line, {name:text}, {name:integer}, {name:number}, {name:boolean}, {name:a|b}",
    )
    add("--choices", metavar="A,B,…", help="answer with one of these; with --json, how probable each is")


def asked(options: argparse.Namespace) -> list[str]:
    """The flags of a form that are given."""
    return [f"--{name.replace('_', '-')}" for name in FORMS if getattr(options, name) is not None]


def check(options: argparse.Namespace) -> None:
    """Reads what the form is, into `options.expression`: before anything is loaded."""
    options.expression, given = None, asked(options)
    if not given:
        return
    if len(given) > 1:
        raise Mistake(f"{' and '.join(given)} do not go together: choose one")
    if options.thinking:
        raise Mistake(f"--thinking does not go with {given[0]}: what the text may be begins with its first token")
    if options.json_schema is not None:
        from . import schema

        try:
            options.expression = schema.language(schema.read(options.json_schema))
        except Mistake as mistake:
            named = str(mistake).startswith(str(options.json_schema))
            raise mistake if named else Mistake(f"{options.json_schema}: {mistake}") from None
    elif options.template is not None:
        from .template import template

        options.expression = template(options.template)
    else:
        _check_choices(options)


def _check_choices(options: argparse.Namespace) -> None:
    from .choices import read

    if options.watch:
        raise Mistake("with --choices there is nothing to watch: leave out --watch")
    options.choices = read(options.choices)


def begin(options: argparse.Namespace, model: DiffusionModel, tokenizer: Tokenizer) -> Callable[..., Writing]:
    """What makes a writing of the form asked for."""
    from ..writing import writing as diffusion
    from . import language as constrained

    if options.expression is None:
        return diffusion.begin
    return partial(constrained.begin, language=constrained.Language(model, tokenizer, options.expression))


def found(options: argparse.Namespace, text: str) -> dict[str, Any]:
    """For --json: a template's slots."""
    if options.template is not None:
        from .template import filled

        return {"slots": filled(options.template, text)}
    return {}


def choose(
    options: argparse.Namespace, model: DiffusionModel, tokenizer: Tokenizer, sampling: Sampling, tokens: list[int]
) -> int:
    """Print the most probable of --choices."""
    from .choices import chosen

    said = chosen(model, tokenizer, tokens, options.choices, sampling=sampling, seed=options.seed)
    if options.json:
        print(json.dumps(said | {"seed": options.seed, "model": options.model or "tiny"}, ensure_ascii=False))
        return 0
    print(said["text"])
    ranked = sorted(said["probabilities"].items(), key=lambda one: -one[1])
    print(", ".join(f"{choice} {value:.1%}" for choice, value in ranked[:5]), file=sys.stderr)
    return 0
