"""`python -m mlx_dgemma.convert`: a Hugging Face checkpoint into an MLX folder, quantized or not.

The folder is written beside its final name and renamed when it is whole. Options are named as mlx_lm.convert's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..command import Parser, run
from ..mistake import Mistake, NotFound
from .recipes import BITS, GROUP_SIZES, mlx_community, plain

NAME = "mlx_dgemma.convert"
# Of the source, what goes along as it is.
COPIED = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "chat_template.*", "generation_config.json",
    "processor_config.json", "preprocessor_config.json", "LICENSE*",
)  # fmt: skip


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Convert a DiffusionGemma checkpoint to an MLX folder.")
    add = parser.add_argument
    add("--hf-path", required=True, metavar="SRC", help="folder, or hub id, of the original checkpoint")
    add("--mlx-path", default="mlx_model", metavar="DST", help="folder to make")
    add("-q", "--quantize", action="store_true", help="to --q-bits; attention, dense MLP, embedding and router to 8")
    add("--q-bits", type=int, choices=BITS, help="of experts and self-conditioning (default: 4)")
    add("--q-group-size", type=int, choices=GROUP_SIZES, help="weights that share a scale (default: 64)")
    dtypes = ["float32", "bfloat16", "float16"]
    add("--dtype", choices=dtypes, help="of scales and what is not quantized (default: the checkpoint's)")
    return parser


def _say(line: str) -> None:
    print(f"{NAME}: {line}", file=sys.stderr)


def _check_destination(destination: Path) -> None:
    if os.path.lexists(destination):
        raise Mistake(f"{destination} exists: need a new folder for --mlx-path")
    parent = destination.parent
    if not parent.is_dir():
        raise NotFound(f"{parent} is no folder: make it first, {destination.name} is to be in it")
    if not os.access(parent, os.W_OK):
        raise Mistake(f"{parent} cannot be written to")


@contextmanager
def _appears_whole(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its name when all went well, and is gone otherwise."""
    part = destination.with_name(destination.name + ".part")
    try:
        part.mkdir()
    except FileExistsError:
        raise Mistake(f"{part} exists: another conversion runs, or one was killed; remove it then") from None
    try:
        yield part
        part.rename(destination)
    except BaseException:
        shutil.rmtree(part)
        raise


def _show(steps: Iterator[int], total: int) -> None:
    """Run through `steps` with a bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        for _ in steps:
            pass
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        for done in steps:
            bar.advance(task, done)


def convert(options: argparse.Namespace, shard_bytes: int | None = None) -> None:
    """Mistake: nothing was made."""
    from ..config import Quantization
    from ..load import find, gigabytes
    from . import stream

    recipe, default = plain, None
    if options.quantize:
        default = Quantization(bits=options.q_bits or 4, group_size=options.q_group_size or 64)
        recipe = mlx_community(default.bits, default.group_size)
    elif options.q_bits or options.q_group_size:
        raise Mistake("--q-bits and --q-group-size need -q")
    destination = Path(options.mlx_path).expanduser().absolute()
    _check_destination(destination)
    started = time.perf_counter()
    source = find(options.hf_path, to_load=False)
    plan = stream.plan(source, recipe, default, options.dtype, shard_bytes or stream.SHARD)
    copied = sorted({file for pattern in COPIED for file in source.glob(pattern) if file.is_file()})
    needed = plan.nbytes + sum(file.stat().st_size for file in copied) + 1_000_000 * (len(plan.shards) + 1)
    free = shutil.disk_usage(destination.parent).free
    if needed > free:
        raise Mistake(f"too little disk for {destination}: needs {gigabytes(needed)}, {gigabytes(free)} are free")
    for line in plan.undivided:
        _say(line)
    with _appears_whole(destination) as part:
        _show(stream.write(plan, part), plan.source_bytes)
        for file in copied:
            shutil.copyfile(file, part / file.name)
    seconds = time.perf_counter() - started
    _say(f"{destination}: {gigabytes(plan.nbytes)}, {plan.bits_per_weight:.2f} bits per weight, {seconds:.1f} s")


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)

    def command() -> int:
        try:
            convert(options)
        except KeyboardInterrupt:
            _say("interrupted; nothing is left behind")
            return 130
        return 0

    return run(NAME, command)


if __name__ == "__main__":
    sys.exit(main())
