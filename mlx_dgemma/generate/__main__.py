"""`python -m mlx_dgemma.generate`: a prompt in, a denoised answer out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..terminal.command import CUT, Parser, read_prompt, run, to_stderr, to_stdout, waiting
from ..terminal.form import INCOMPLETE, Form, add_form, read_form
from ..terminal.options import add_ask, add_max_tokens, add_model, ask, check_ask, opened, raw_tokens

if TYPE_CHECKING:
    from ..forms.language import Language
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer
    from ..writing.ask import Ask
    from ..writing.writing import Step

NAME = "mlx_dgemma.generate"


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Write an answer by denoising a canvas of tokens.")
    add = parser.add_argument_group("what to write").add_argument
    add("--prompt", required=True, help="what to answer; - reads it from standard input")
    add("--system", help="a system turn before it")
    add("--thinking", action="store_true", help="let the model think first; its thoughts go to stderr")
    add(
        "--raw", action="store_true", help="take the prompt as it is: no chat template, control tokens in it are tokens"
    )
    add("--special-tokens", action="store_true", help="control tokens written in the prompt are tokens, not text")
    add_max_tokens(add)
    add("--watch", action="store_true", help="show the canvas as it settles")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_form(parser)
    add_ask(parser)
    add_model(parser)
    return parser


def check(options: argparse.Namespace) -> None:
    """Mistake where flags contradict each other."""
    check_ask(options)
    if options.raw and (options.system is not None or options.thinking or options.special_tokens):
        raise Mistake("--raw has no turns: leave out --system, --thinking and --special-tokens, or --raw")


def encode_prompt(options: argparse.Namespace, prompt: str, tokenizer: Tokenizer) -> list[int]:
    from ..tokens.messages import prompt_tokens

    if options.raw:
        return raw_tokens(tokenizer, prompt)
    how = {"system": options.system, "thinking": options.thinking, "special_tokens": options.special_tokens}
    return prompt_tokens(tokenizer, prompt, **how)


def generate(options: argparse.Namespace) -> int:
    check(options)
    form, prompt = read_form(options), read_prompt(options.prompt, raw=options.raw)
    model, tokenizer, sampling = opened(NAME, options)
    asked, tokens = ask(options, sampling), encode_prompt(options, prompt, tokenizer)
    about = {"seed": options.seed, "model": options.model or "tiny"}
    if form and form.choices:
        return choose(model, tokenizer, tokens, form, asked, about if options.json else None)
    return Writer(model, tokenizer, asked, form, options.watch, options.json).write(tokens, about)


def choose(
    model: DiffusionModel, tokenizer: Tokenizer, tokens: list[int], form: Form, ask: Ask, about: dict | None
) -> int:
    """Prints the most probable choice, or one JSON object with `about` in it."""
    from ..forms import choices

    answer = choices.choose(model, tokenizer, tokens, form.choices, ask)
    if about is not None:
        print(json.dumps(answer | about, ensure_ascii=False))
        return 0
    print(answer["text"])
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    print(", ".join(f"{choice} {value:.1%}" for choice, value in ranked[:5]), file=sys.stderr)
    return 0


class Writer:
    """Writes one answer to the terminal: text as blocks finish, a text with a form when it is whole."""

    def __init__(
        self, model: DiffusionModel, tokenizer: Tokenizer, ask: Ask, form: Form | None, watch: bool, as_json: bool
    ):
        from ..writing.answer import Answer

        self.model, self.ask, self.form, self.as_json = model, ask, form, as_json
        self.language: Language | None = form and form.language(model, tokenizer)
        self.answer = Answer(model.facts, tokenizer, ask.max_tokens)
        self.watched = watch and sys.stdout.isatty() and sys.stderr.isatty()

    def write(self, tokens: list[int], about: dict) -> int:
        code = 0
        try:
            self._run(tokens)
        except KeyboardInterrupt:
            code = 130
            # What is finished is kept; of a form, with the shortest ending that makes it whole.
            ending = self.language.ending(self.answer.tokens) if self.language and self.answer.tokens else []
            self.answer.finish(ending, "interrupted")
        if self.language and self.answer.tokens and not self.complete():
            print(f"{NAME}: no text that fits {self.form.flag} was found: give more --max-tokens", file=sys.stderr)
            return INCOMPLETE
        self._report(len(tokens), about)
        return code

    def complete(self) -> bool:
        """Whether the text is one of the form."""
        return not len(self.language.ending(self.answer.tokens))

    def _steps(self, tokens: list[int]) -> Iterator[Step]:
        from ..seam.model import Text
        from ..writing.batch import run
        from ..writing.diffuse import diffuse

        if self.language is None:
            return diffuse(self.model, tokens, self.ask)
        from ..forms.language import begin_within

        return run(self.model, [begin_within(self.model, Text(tokens), self.ask, self.language)])

    def _run(self, tokens: list[int]) -> None:
        with contextlib.ExitStack() as stack:
            watch, show = None, lambda text, out: out(text)
            if self.watched:
                from ..terminal.watch import Watch

                watch = stack.enter_context(Watch(self.answer.tokenizer, self.ask.sampling.max_denoising_steps))
                show = watch.write
            steps = self._steps(tokens)
            with waiting(f"reading {len(tokens)} tokens"):
                first = next(steps)
            for step in chain([first], steps):
                thinking, text = self.answer.add(step)
                if not (self.as_json or self.language):
                    show(thinking, to_stderr)
                    show(text, to_stdout)
                if watch:
                    watch.show(step)

    def _report(self, prompt_length: int, about: dict) -> None:
        answer = self.answer
        numbers = answer.statistics(prompt_length) | {"peak_memory": self.model.peak_memory()} | about
        if self.as_json:
            print(json.dumps(numbers | (self.form.slots(answer.text) if self.form else {}), ensure_ascii=False))
        else:
            print(answer.text if self.language else "", end="")
            print("" if not answer.text or answer.text.endswith("\n") else "\n", end="", flush=True)
            for call in answer.calls:
                print(f"tool call: {call}", flush=True)
        for note in answer.notes:  # not where they come up: there they would stand amid the text
            print(note, file=sys.stderr)
        print(summary(numbers), file=sys.stderr)


def summary(numbers: dict) -> str:
    from ..checkpoint.memory import gigabytes

    if not numbers["blocks"]:
        return "interrupted before the first block was done"
    blocks = f"{numbers['blocks']} block" + "s" * (numbers["blocks"] != 1)
    return (
        f"{numbers['tokens']} tokens in {numbers['seconds']:.2f} s: {blocks}, "
        f"{numbers['steps'] / numbers['blocks']:.1f} steps a block, {numbers['tokens_per_forward']:.1f} tokens per "
        f"forward, first block after {numbers['seconds_to_first_block']:.2f} s, "
        f"peak memory {gigabytes(numbers['peak_memory'])}{CUT.get(numbers['finish_reason'], '')}"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: generate(options))


if __name__ == "__main__":
    sys.exit(main())
