"""The flags for a text that has a form: --json-schema, --template, --choices."""

import argparse
from dataclasses import dataclass

from ..errors import Mistake
from ..forms import choices, template
from ..forms.automaton import Automaton, Budget
from ..forms.construction import build_automaton
from ..forms.language import Language
from ..forms.lattice import LONGEST, Vocabulary
from ..seam.model import DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask

INCOMPLETE = 3  # exit code: no text of the form asked for


@dataclass(frozen=True)
class Form:
    flag: str  # that asks for it
    automaton: Automaton | None = None  # of a schema or a template
    template: str | None = None
    choices: tuple[str, ...] = ()

    def language(self, model: DiffusionModel, tokenizer: Tokenizer) -> Language:
        return Language(model, Vocabulary(tokenizer, model.facts.vocab_size), self.automaton)

    def slots(self, text: str) -> dict[str, dict[str, str]]:
        """Returns a template's slots, for --json."""
        return {} if self.template is None else {"slots": template.filled(self.template, text)}


def add_form(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the form that it must have").add_argument
    add("--json-schema", metavar="FILE", help="write a JSON document that this schema allows, and nothing else")
    slots = "{name} a line, {name:text}, {name:integer}, {name:number}, {name:boolean}, {name:a|b}"
    add("--template", metavar="TEXT", help=f"fill in its slots: {slots}")
    add("--choices", metavar="A,B,…", help="answer with one of these; with --json, how probable each is")


def read_form(options: argparse.Namespace, max_tokens: int | None = None) -> Form | None:
    """Returns the form that is asked for. Mistake where there are several, or it cannot be held. Loads nothing.

    A length limit of a schema that no text of `max_tokens` can reach costs nothing.
    """
    forms = {"--json-schema": options.json_schema, "--template": options.template, "--choices": options.choices}
    flags = [flag for flag, value in forms.items() if value is not None]
    if not flags:
        return None
    if len(flags) > 1:
        raise Mistake(f"{' and '.join(flags)} do not go together: choose one")
    if options.thinking:
        raise Mistake(f"--thinking does not go with {flags[0]}: the form begins with the first token of the text")
    if options.mode == "auto":
        raise Mistake(f"--mode auto does not go with {flags[0]}: leave it out, or give --mode ar")
    if options.json_schema is not None:
        return Form(flags[0], automaton=_schema(options.json_schema, max_tokens and max_tokens * LONGEST))
    if options.template is not None:
        return Form(flags[0], build_automaton(template.template(options.template)), options.template)
    _check_choices(options)
    return Form(flags[0], choices=tuple(choices.read(options.choices)))


def _check_choices(options: argparse.Namespace) -> None:
    """Mistake where a flag would say nothing to --choices, which looks at a canvas twice and writes nothing."""
    ignored = {
        "--watch": options.watch,
        "--verify": options.verify,
        "--mode ar": options.mode == "ar",
        "--preset": options.preset,
        "--max-denoising-steps": options.max_denoising_steps,
        "--max-tokens": options.max_tokens != Ask.max_tokens,
    }
    if wrong := [flag for flag, given in ignored.items() if given]:
        raise Mistake(f"{wrong[0]} does not go with --choices, which makes two passes and writes nothing: leave it out")


def _schema(path: str, reach: int | None) -> Automaton:
    from ..forms import schema  # at once it would cost every start a tenth of a second

    document = schema.read(path)
    try:
        return schema.automaton(document, Budget(reach=reach))
    except Mistake as mistake:
        raise Mistake(f"{path}: {mistake}") from None
