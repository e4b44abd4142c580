"""The flags that commands share, and what they make of them: a model, and an `Ask`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from ..errors import Mistake
from ..seam.model import Draw
from ..writing.ask import MODES, Ask
from ..writing.sampling import PRESETS, SAMPLERS, STOPS, Sampling
from .command import at_least, waiting

if TYPE_CHECKING:
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer

REAL_MODEL = "mlx-community/diffusiongemma-26B-A4B-it-4bit"
DENOISING, DRAWING = ({field.name for field in fields(kind)} for kind in (Sampling, Draw))


@dataclass(frozen=True)
class Preset:
    """The options of `--preset`: of denoising, and of writing left to right."""

    sampling: dict[str, float | str]
    draw: dict[str, float | str]


def preset(text: str) -> Preset:
    """An argparse type: NAME, NAME=VALUE, or several of these with commas between them; later ones win."""
    options: dict[str, float | str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals and name in PRESETS:
            options |= PRESETS[name]
        elif equals and name in DENOISING | DRAWING:
            options[name] = _number(value)
        else:
            known = f"{', '.join(PRESETS)}, or NAME=VALUE with one of {', '.join(sorted(DENOISING | DRAWING))}"
            raise argparse.ArgumentTypeError(f"need {known}; got {part!r}")
    chosen = [{name: options[name] for name in options.keys() & names} for names in (DENOISING, DRAWING)]
    try:  # what is wrong is known before anything is loaded
        Sampling(**chosen[0]), Draw(**chosen[1])
    except Mistake as mistake:
        raise argparse.ArgumentTypeError(str(mistake)) from None
    if chosen[1] and not chosen[1].get("temp"):
        raise argparse.ArgumentTypeError(f"{next(iter(chosen[1]))} is of tokens that are drawn: give temp=T, too")
    return Preset(*chosen)


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def number(text: str) -> float:
    """An argparse type."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"need a number, got {text!r}") from None


def add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model").add_argument
    add(
        "--model",
        metavar="FOLDER_OR_HUB_ID",
        help="a DiffusionGemma checkpoint; without it, a tiny one that comes along",
    )
    add("--backend", choices=["mlx", "torch"], help="default: torch where there is a CUDA device, else mlx")
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "fp8"],
        help="of activations (default: the checkpoint's); fp8, on torch: of experts and linears too",
    )


def add_ask(parser: argparse.ArgumentParser, *, modes: bool = True) -> None:
    """`modes`: whether the text can be written left to right, too."""
    add = parser.add_argument_group("how to write it").add_argument
    left_to_right = ""
    if modes:
        left_to_right = "; left to right temp=T, top_p=P, top_k=K, min_p=P"
        add(
            "--mode",
            choices=MODES,
            default="diffusion",
            help="denoise, write left to right, or block by block what costs less",
        )
    add(
        "--preset",
        type=preset,
        default=Preset({}, {}),
        metavar="NAME[,OPTION=VALUE…]",
        help=f"{', '.join(PRESETS)}, and single options: sampler=NAME ({', '.join(SAMPLERS)}), stop=NAME "
        f"({', '.join(STOPS)}), canvas_length=N or auto, entropy_bound=NATS, …{left_to_right}",
    )
    add(
        "--max-denoising-steps",
        type=at_least(1),
        metavar="N",
        help="passes a canvas may take (default: the checkpoint's)",
    )
    add("--verify", action="store_true", help="check each block by the causal pass, write again what it doubts")
    add("--deadline", type=number, metavar="SECONDS", help="end the text after that time, as it stands")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of all random numbers: same seed, same text")


def add_max_tokens(add) -> None:
    add("--max-tokens", type=at_least(1), default=Ask.max_tokens, metavar="N", help="cut the text here")


def check_ask(options: argparse.Namespace) -> None:
    """Mistake where flags contradict each other. Before anything is loaded."""
    mode, given = _mode(options), options.preset
    if given.draw and mode == "diffusion":
        modes = " (--mode ar or auto)" if "mode" in options else ""
        raise Mistake(
            f"{next(iter(given.draw))} is of writing left to right{modes}: while a canvas is denoised the temperature "
            "falls from t_max to t_min"
        )
    if mode == "ar" and (given.sampling or options.max_denoising_steps):
        name = f"--preset {next(iter(given.sampling))}" if given.sampling else "--max-denoising-steps"
        raise Mistake(f"{name} is of denoising: leave it out, or --mode ar")
    if options.verify and mode != "diffusion":
        raise Mistake(f"--verify checks what was denoised: leave it out, or --mode {mode}")
    ask(options, Sampling())


def _mode(options: argparse.Namespace) -> str:
    return options.mode if "mode" in options else "diffusion"


def ask(options: argparse.Namespace, sampling: Sampling) -> Ask:
    """Returns what the flags ask for, over the checkpoint's `sampling`."""
    steps = {"max_denoising_steps": options.max_denoising_steps} if options.max_denoising_steps else {}
    return Ask(
        sampling=replace(sampling, **{**options.preset.sampling, **steps}),
        max_tokens=options.max_tokens if "max_tokens" in options else Ask.max_tokens,
        seed=options.seed,
        mode=_mode(options),
        verify=options.verify,
        deadline=options.deadline,
        draw=Draw(**options.preset.draw),
    )


def opened(name: str, options: argparse.Namespace) -> tuple[DiffusionModel, Tokenizer, Sampling]:
    """The model that the flags of the command `name` name."""
    from ..checkpoint.hub import find
    from ..load import load, why_no_gpu

    if options.model is None:
        print(
            f"{name}: no --model given, so the tiny one that comes along answers: it knows the few tasks that README "
            f"lists. The real one: --model {REAL_MODEL}",
            file=sys.stderr,
        )
    folder = find(options.model)  # a download has a progress bar of its own
    with waiting("loading"):
        model, tokenizer, sampling = load(folder, options.backend, options.dtype)
    if reason := why_no_gpu(options.backend):
        print(f"{name}: no CUDA device, so torch computes on the CPU: {reason}", file=sys.stderr)
    return model, tokenizer, sampling


def raw_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encodes a prompt as it is: no chat template, control tokens in it are tokens."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer.encode(prompt, special_tokens=True)
