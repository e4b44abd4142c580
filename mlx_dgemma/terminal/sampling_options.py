"""The options of the algorithm on a command line: flags, and what they make of a checkpoint's Sampling."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..errors import Mistake
from ..writing.route import MODES
from ..writing.sampling import PRESETS, SAMPLERS, SCHEDULES, STOPS, Sampling, preset
from .command import Parser, at_least

OF_DENOISING = ("max_denoising_steps", "canvas_length", "sampler", "schedule", "stop")
LEFT_TO_RIGHT = ("temp", "top_p", "top_k", "min_p")


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"need a number, got {text!r}") from None


def add_to(parser: Parser) -> None:
    add = parser.add_argument
    add("--mode", choices=MODES, default="diffusion", help="denoise, write left to right, or what costs less, by block")
    add("--preset", choices=PRESETS, help="fewer or more passes by name (default: as the checkpoint has it)")
    add("--sampler", choices=SAMPLERS, help="which positions a pass accepts (default: entropy-bound)")
    add("--schedule", choices=SCHEDULES, help="of --sampler scheduled: how many positions (default: linear)")
    add("--stop", choices=STOPS, help="when a block may end (default: settled)")
    add("--verify", action="store_true", help="check each block by the causal pass, write again what it doubts")
    add("--deadline", type=number, metavar="SECONDS", help="answer with what there is after that time")
    add("--temp", "--temperature", type=number, metavar="T", help="of --mode ar and auto, left to right (default: 0)")
    add("--top-p", type=number, metavar="P", help="of --mode ar and auto: the likeliest, P of the probability")
    add("--top-k", type=at_least(0), metavar="K", help="of --mode ar and auto: the K likeliest; 0: all")
    add("--min-p", type=number, metavar="P", help="of --mode ar and auto: those P times as likely as the best")


def check(options: argparse.Namespace) -> None:
    """Which of them go together."""
    given = [name for name in LEFT_TO_RIGHT if getattr(options, name) is not None]
    if given and options.mode == "diffusion":
        raise Mistake(
            f"{_flag(given[0])} is of writing left to right (--mode ar or auto): while a canvas is denoised the "
            "temperature falls from t_max to t_min, set both in the checkpoint's generation_config.json"
        )
    if given and not options.temp and given != ["temp"]:
        raise Mistake(f"{_flag(given[-1])} chooses what is drawn from: give --temp, too")
    if options.verify and options.mode != "diffusion":
        raise Mistake(f"--verify checks what was denoised: leave it out, or --mode {options.mode}")
    denoising = [name for name in (*OF_DENOISING, "preset") if getattr(options, name) is not None]
    if denoising and options.mode == "ar":
        raise Mistake(f"{_flag(denoising[0])} is of denoising: leave it out, or --mode ar")
    if options.schedule and options.sampler != "scheduled":
        raise Mistake("--schedule is of --sampler scheduled: give both")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def apply(options: argparse.Namespace, sampling: Sampling) -> Sampling:
    """`sampling` with what was asked for."""
    if options.preset:
        sampling = preset(sampling, options.preset)
    asked = {name: getattr(options, name) for name in (*OF_DENOISING, *LEFT_TO_RIGHT, "deadline")}
    return replace(sampling, **{name: value for name, value in asked.items() if value is not None})
