"""`python -m mlx_dgemma.generate`: a prompt in, a denoised answer out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from .command import Parser, at_least, run, waiting
from .mistake import Mistake

if TYPE_CHECKING:
    from .answer import Answer
    from .interface import DiffusionModel
    from .sampling import Sampling
    from .tokenizer import Tokenizer

NAME = "mlx_dgemma.generate"
REAL_MODEL = "mlx-community/diffusiongemma-26B-A4B-it-4bit"


class _NoTemperature(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(
            f"{option_string} is not an option: the temperature falls from t_max to t_min while a canvas is denoised, "
            "set both in the checkpoint's generation_config.json"
        )


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Write an answer by denoising a canvas of tokens.")
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER_OR_HUB_ID",
        help="a DiffusionGemma checkpoint; without it, a tiny one that comes along",
    )
    add("--prompt", required=True, help="what to answer; - reads it from standard input")
    add("--system", help="a system turn before it")
    add("--raw", action="store_true", help="take the prompt as it is, without the chat template")
    add("--thinking", action="store_true", help="let the model think first; what it thinks goes to stderr")
    add("--max-tokens", type=at_least(1), default=2048, metavar="N", help="cut the text here")
    add(
        "--max-denoising-steps",
        type=at_least(1),
        metavar="N",
        help="passes a canvas may take (default: the checkpoint's)",
    )
    add("--seed", type=at_least(0), default=0, metavar="N", help="of all random numbers: same seed, same answer")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="of activations (default: the checkpoint's)")
    add("--watch", action="store_true", help="show the canvas as it settles")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--temp", "--temperature", action=_NoTemperature, help=argparse.SUPPRESS)
    return parser


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for "-"."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise Mistake(
            f"standard input is not UTF-8: byte 0x{wrong:02x} at offset {error.start}; convert it first"
        ) from None


def tokens_of(options: argparse.Namespace, tokenizer: Tokenizer) -> list[int]:
    from .answer import prompt_tokens

    prompt = read_prompt(options.prompt)
    if not options.raw:
        return prompt_tokens(tokenizer, prompt, system=options.system, thinking=options.thinking)
    if options.system is not None or options.thinking:
        raise Mistake("--raw has no turns: leave out --system and --thinking, or --raw")
    if not prompt:
        raise Mistake("the prompt is empty: say what you want")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer.encode(prompt)


def statistics(answer: Answer, prompt_length: int, peak_memory: int, seed: int, model: str) -> dict:
    """The object that --json prints. Seconds, and bytes."""
    return {
        "text": answer.text,
        "thinking": answer.thinking,
        "tokens": len(answer.tokens),
        "prompt_tokens": prompt_length,
        "blocks": len(answer.steps_per_block),
        "steps": answer.steps,
        "tokens_per_forward": answer.tokens_per_forward,
        "seconds": answer.seconds,
        "seconds_to_first_block": answer.seconds_to_first_block,
        "peak_memory": peak_memory,
        "finish_reason": answer.finish_reason,
        "seed": seed,
        "model": model,
    }


def summary(stats: dict) -> str:
    if not stats["blocks"]:
        return "interrupted before the first block was done"
    from .load import gigabytes

    blocks = f"{stats['blocks']} block" + "s" * (stats["blocks"] != 1)
    return (
        f"{stats['tokens']} tokens in {stats['seconds']:.2f} s: {blocks}, "
        f"{stats['steps'] / stats['blocks']:.1f} steps a block, {stats['tokens_per_forward']:.1f} tokens per forward, "
        f"first block after {stats['seconds_to_first_block']:.2f} s, peak memory {gigabytes(stats['peak_memory'])}"
        + (" (cut at the length asked for)" if stats["finish_reason"] == "length" else "")
    )


def write(
    answer: Answer, model: DiffusionModel, tokens: list[int], sampling: Sampling, options: argparse.Namespace
) -> None:
    """Denoise; show text as blocks finish, unless --json."""
    from .diffusion import diffuse

    with contextlib.ExitStack() as stack:
        watch = None
        if options.watch and sys.stdout.isatty() and sys.stderr.isatty():
            from .watch import Watch

            watch = stack.enter_context(Watch(answer.tokenizer, sampling.max_denoising_steps))
        steps = diffuse(model, tokens, max_tokens=answer.max_tokens, sampling=sampling, seed=options.seed)
        with waiting(f"reading {len(tokens)} tokens"):
            first = next(steps)
        for step in chain([first], steps):
            thinking, text = answer.add(step)
            if watch:
                watch.show(step)
            if watch and step.final:
                watch.clear()
            if not options.json:
                print(thinking, end="", file=sys.stderr, flush=True)
                print(text, end="", flush=True)


def generate(options: argparse.Namespace) -> int:
    from .answer import Answer
    from .load import find, load

    if options.model is None:
        print(
            f"{NAME}: no --model given, so the tiny one that comes along answers: it knows the few tasks that README "
            f"lists. The real one: --model {REAL_MODEL}",
            file=sys.stderr,
        )
    folder = find(options.model)  # a download has a progress bar of its own
    with waiting("loading"):
        model, tokenizer, sampling = load(folder, dtype=options.dtype)
    if options.max_denoising_steps:
        sampling = replace(sampling, max_denoising_steps=options.max_denoising_steps)
    tokens = tokens_of(options, tokenizer)
    answer = Answer(model.config, tokenizer, options.max_tokens)
    code = 0
    try:
        write(answer, model, tokens, sampling, options)
    except KeyboardInterrupt:
        answer.finish_reason, code = "interrupted", 130
    stats = statistics(answer, len(tokens), model.peak_memory(), options.seed, options.model or "tiny")
    if options.json:
        print(json.dumps(stats, ensure_ascii=False))
    elif answer.text and not answer.text.endswith("\n"):
        print(flush=True)
    print(summary(stats), file=sys.stderr)
    return code


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: generate(options))


if __name__ == "__main__":
    sys.exit(main())
