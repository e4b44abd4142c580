"""Makes the model to compare with: an autoregressive checkpoint, each layer stored as the diffusion model's is."""

import argparse

from ..convert import recipes
from ..load import baseline
from ..terminal.command import Parser


def parser() -> Parser:
    parser = Parser("python -m mlx_dgemma.benchmark baseline", "Gemma 4 by mlx-lm, as our recipe stores layers.")
    add = parser.add_argument
    add("--hf-path", required=True, metavar="FOLDER_OR_HUB_ID", help="such as google/gemma-4-26B-A4B-it")
    add("--mlx-path", required=True, metavar="FOLDER", help="where to")
    add("--quant-predicate", choices=recipes.NAMED, default=recipes.NAMED[0], help="the recipe")
    add("--q-mode", choices=list(recipes.MODES), help="(default: affine)")
    add("--q-bits", type=int, metavar="N")
    add("--q-group-size", type=int, metavar="N")
    return parser


def command(options: argparse.Namespace) -> int:
    default = recipes.quantization(options.q_mode, options.q_bits, options.q_group_size)
    library = baseline("mlx")
    library.build(options.hf_path, options.mlx_path, recipes.choose(options.quant_predicate, default, ()))
    bits = library.Baseline(options.mlx_path).bits
    print(f"{options.mlx_path}: bits a weight: " + ", ".join(f"{name} {value:.3g}" for name, value in bits.items()))
    return 0
