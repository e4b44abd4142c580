"""The flags that commands share, and the model that they open."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from .command import at_least, waiting

if TYPE_CHECKING:
    from ..seam.model import DiffusionModel
    from ..tokens.tokenizer import Tokenizer
    from ..writing.sampling import Sampling

REAL_MODEL = "mlx-community/diffusiongemma-26B-A4B-it-4bit"


def _canvas_length(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def add_shared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        metavar="FOLDER_OR_HUB_ID",
        help="a DiffusionGemma checkpoint; without it, a tiny one that comes along",
    )
    add("--system", help="a system turn before all others")
    add("--thinking", action="store_true", help="let the model think first; what it thinks goes to stderr")
    add("--max-tokens", type=at_least(1), default=2048, metavar="N", help="cut the text here")
    add(
        "--max-denoising-steps",
        type=at_least(1),
        metavar="N",
        help="passes a canvas may take (default: the checkpoint's)",
    )
    add(
        "--canvas-length",
        type=_canvas_length,
        metavar="N",
        help="tokens of a canvas, or auto: narrow where few are left to write (default: the checkpoint's)",
    )
    add("--seed", type=at_least(0), default=0, metavar="N", help="of all random numbers: same seed, same answer")
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "fp8"],
        help="of activations (default: the checkpoint's); fp8, on torch: of experts and linears too",
    )
    add("--backend", choices=["mlx", "torch"], help="default: torch where there is a CUDA device, else mlx")
    add("--tensor-parallel", type=at_least(1), metavar="N", help="GPUs to divide the model over; under torchrun")


def opened(name: str, options: argparse.Namespace) -> tuple[DiffusionModel, Tokenizer, Sampling]:
    """What the flags of the command `name` ask for."""
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
        model, tokenizer, sampling = load(folder, options.backend, options.dtype, options.tensor_parallel)
    if reason := why_no_gpu(options.backend):
        print(f"{name}: no CUDA device, so torch computes on the CPU: {reason}", file=sys.stderr)
    asked = {name: getattr(options, name) for name in ("max_denoising_steps", "canvas_length")}
    return model, tokenizer, replace(sampling, **{name: value for name, value in asked.items() if value is not None})
