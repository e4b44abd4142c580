"""`python -m mlx_dgemma.fuse`: a checkpoint and an adapter in, one ordinary checkpoint out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkpoint import adapter_folder, peft
from ..checkpoint.hub import find
from ..errors import Mistake
from ..terminal.command import Parser, note, run, waiting

NAME = "mlx_dgemma.fuse"


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Add an adapter to the weights of its checkpoint.")
    add = parser.add_argument
    add("--model", metavar="FOLDER_OR_HUB_ID", help="the checkpoint that was tuned; without it, the tiny one")
    add("--adapter-path", default="adapters", metavar="FOLDER", help="what was learnt, as train or PEFT left it")
    add("--save-path", default="fused_model", metavar="FOLDER", help="the new folder")
    alone = "write the adapter alone there, in PEFT's format, for transformers and vLLM"
    add("--peft", action="store_true", help=alone)
    return parser


def fuse(options: argparse.Namespace) -> None:
    adapter, destination = adapter_folder.read(options.adapter_path), Path(options.save_path).expanduser().absolute()
    if destination.exists():
        raise Mistake(f"--save-path {destination} exists: give a new folder")
    if options.peft:
        peft.write(adapter, destination, options.model or "tiny")
    else:
        from .fuse import Fusion

        with waiting("fusing"):
            for name in Fusion(find(options.model), adapter).write(destination):
                note(f"{destination / name}")
    note(f"{destination}: {'for PEFT' if options.peft else '--model takes it'}")


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: fuse(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
