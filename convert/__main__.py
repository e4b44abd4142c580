"""`python -m mlx_dgemma.convert`: a DiffusionGemma checkpoint into an MLX folder, quantized or not, or back.

The folder is written beside its final name and renamed when it is whole; a run that was killed is gone on with by the
same command. Options are named as mlx_lm.convert's.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Mistake, NotFound
from ..terminal.command import Parser, run
from .recipes import BITS, MODES, NAMED

if TYPE_CHECKING:
    from .plan import Plan, Wish

NAME = "mlx_dgemma.convert"
# Of the source, what goes along as it is.
COPIED = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "generation_config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "LICENSE*", "NOTICE*",
)  # fmt: skip
MEMORY = 1_000_000_000  # bytes that a conversion takes at most


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Convert a DiffusionGemma checkpoint to an MLX folder.")
    add = parser.add_argument
    add("--hf-path", "--model", required=True, metavar="SRC", help="folder, or hub id, of the checkpoint")
    add("--mlx-path", default="mlx_model", metavar="DST", help="folder to make")
    add("-q", "--quantize", action="store_true", help="quantize as the recipe says")
    add("--q-bits", type=int, choices=BITS, help="of experts and self-conditioning (default: 4)")
    add("--q-group-size", type=int, help="weights that share a scale: 32 or 64 (default: 64, or the mode's own)")
    add("--q-mode", choices=list(MODES), help="of experts and self-conditioning (default: affine)")
    recipes = f"{', '.join(NAMED)} (default: {NAMED[0]}), or a JSON file"
    recipes += ': {"*.self_attn.*": 8, "*.router.proj": false, ...}'
    add("--quant-predicate", metavar="RECIPE", help=recipes)
    dtypes = ["float32", "bfloat16", "float16"]
    add("--dtype", choices=dtypes, help="of scales and what is not quantized (default: the checkpoint's)")
    add("-d", "--dequantize", action="store_true", help="back to plain weights in the layout of transformers")
    add("--text-only", action="store_true", help="leave the image tower out")
    add("--upload-repo", metavar="ID", help="send the folder to this hub repository")
    add("--dry-run", action="store_true", help="print what would be made, read no weights")
    add("--json", action="store_true", help="print one JSON object to stdout")
    return parser


def _say(line: str) -> None:
    print(f"{NAME}: {line}", file=sys.stderr)


def _wish(options: argparse.Namespace, shard_bytes: int | None) -> Wish:
    """Mistake: flags that do not go together."""
    from .plan import SHARD, Wish
    from .recipes import choose, quantization

    given = {"--q-bits": options.q_bits, "--q-group-size": options.q_group_size, "--q-mode": options.q_mode}
    given["--quant-predicate"] = options.quant_predicate
    flags = [flag for flag, value in given.items() if value is not None]
    if options.quantize and options.dequantize:
        raise Mistake("-q and -d: choose one")
    kept = {"dtype": options.dtype, "text_only": options.text_only, "shard_bytes": shard_bytes or SHARD}
    if not options.quantize:
        if flags:
            raise Mistake(f"{' and '.join(flags)}: need -q")
        return Wish(dequantize=options.dequantize, **kept)
    name = options.quant_predicate or NAMED[0]
    group = options.q_group_size
    if name == "precise" and group is None and options.q_mode in (None, "affine"):
        group = 32
    default = quantization(options.q_mode, options.q_bits, group)
    return Wish(recipe=lambda paths: choose(name, default, paths), default=default, **kept)


def _command_line(options: argparse.Namespace) -> str:
    """As it could be typed again, without anybody's folders in it."""
    words = [f"--hf-path {Path(options.hf_path).name if Path(options.hf_path).is_dir() else options.hf_path}"]
    words += [flag for flag, on in (("-q", options.quantize), ("-d", options.dequantize)) if on]
    for name in ("q_bits", "q_group_size", "q_mode", "quant_predicate", "dtype"):
        value = getattr(options, name)
        if value is not None:
            value = Path(value).name if name == "quant_predicate" else value
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join([*words, *(["--text-only"] if options.text_only else [])])


def _check_destination(destination: Path) -> None:
    from .journal import NAME as JOURNAL

    if os.path.lexists(destination) and not (destination / JOURNAL).is_file():
        raise Mistake(f"{destination} exists: need a new folder for --mlx-path")
    parent = destination.parent
    if not parent.is_dir():
        raise NotFound(f"{parent} is no folder: make it first, {destination.name} is to be in it")
    if not os.access(parent, os.W_OK):
        raise Mistake(f"{parent} cannot be written to: no permission")


def _check_room(plan: Plan, copied: list[Path], part: Path) -> None:
    from ..checkpoint import memory
    from ..checkpoint.folder import gigabytes

    there = sum(file.stat().st_blocks * 512 for file in part.glob("*")) if part.is_dir() else 0
    needed = plan.nbytes + sum(file.stat().st_size for file in copied) + 1_000_000 * (len(plan.shards) + 1)
    free = shutil.disk_usage(part.parent).free
    if needed - there > free:
        raise Mistake(
            f"too little disk for {part.with_suffix('')}: needs {gigabytes(needed - there)}, {gigabytes(free)} are free"
        )
    if (free := memory.available()) < min(MEMORY, 2 * plan.source_bytes):
        raise Mistake(f"too little memory: needs {gigabytes(MEMORY)}, {gigabytes(free)} are free")


@contextmanager
def _unfinished(part: Path) -> Iterator[None]:
    """A folder that stays when the run can be gone on with, and is gone when its source or its options are wrong."""
    from .journal import NAME as JOURNAL

    if part.is_dir() and any(part.iterdir()) and not (part / JOURNAL).is_file():
        raise Mistake(f"{part} exists, and no conversion left it; remove it")
    part.mkdir(exist_ok=True)
    try:
        yield
    except KeyboardInterrupt:
        _say(f"interrupted; {part} is kept, the same command goes on with it")
        raise
    except OSError as error:
        if isinstance(error, Mistake) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Mistake(
            f"{part}: {os.strerror(error.errno)}; make room and give the same command again, it goes on from there"
        ) from error


def _show(steps: Iterator[int], total: int, what: str) -> None:
    """Run through `steps` with a bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        for _ in steps:
            pass
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for done in steps:
            bar.advance(task, done)


def _print_table(plan: Plan, errors, file) -> None:
    from rich.console import Console
    from rich.table import Table

    from . import report

    head, body = report.rows(plan, errors)
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index in (0, 3) else "right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    console = Console(file=file, width=None if file.isatty() else 120, highlight=False)
    console.print(table)
    console.print(report.fits(plan), soft_wrap=True)


def _make(plan: Plan, options: argparse.Namespace, destination: Path, copied: list[Path]) -> dict:
    """-> the errors by job."""
    from . import card, stream
    from .journal import NAME as JOURNAL
    from .journal import Journal

    part, command = destination.with_name(destination.name + ".part"), _command_line(options)
    if destination.is_dir():  # a run was killed between the last two lines below
        with Journal(destination, plan.fingerprint, command) as journal:
            os.unlink(destination / JOURNAL)
            return journal.errors
    _check_room(plan, copied, part)
    with _unfinished(part), Journal(part, plan.fingerprint, command) as journal:
        try:
            _show(stream.write(plan, part, journal), plan.source_bytes, "converting")
        except Mistake:  # of the source: what was made of it is worth nothing
            shutil.rmtree(part)
            raise
        _show(stream.verify(plan, part, journal), plan.nbytes, "verifying")
        for file in copied:
            shutil.copyfile(file, part / file.name)
        card.write(plan, journal.errors, command, part)
        stream.write_configs(plan, part)
        for file in part.iterdir():
            _sync(file)
        part.rename(destination)
        os.unlink(destination / JOURNAL)
    return journal.errors


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def _plan_before_fetching(options: argparse.Namespace, wish: Wish, destination: Path) -> Plan | None:
    """Of a hub id that is not in the cache, from its headers: what is wrong is known before 50 GB have come."""
    from ..load import cached, gigabytes, is_hub_id
    from . import hub
    from . import plan as planning

    if not is_hub_id(options.hf_path) or cached(options.hf_path):
        return None
    with hub.outline(options.hf_path) as outline:
        plan = planning.plan(outline, wish)
        if options.dry_run:
            return plan
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
        cache = next(folder for folder in (cache, *cache.parents) if folder.exists())
        shared = cache.stat().st_dev == destination.parent.stat().st_dev
        needed, free = plan.nbytes + shared * plan.source_bytes, shutil.disk_usage(destination.parent).free
        if needed > free:
            what = "to fetch and to convert it" if shared else "to convert it"
            raise Mistake(
                f"too little disk for {destination}: needs {gigabytes(needed)} {what}, {gigabytes(free)} are free"
            )
    return plan


def convert(options: argparse.Namespace, shard_bytes: int | None = None) -> None:
    """Mistake: nothing was made, or what was made can be gone on with."""
    from ..load import find, gigabytes
    from . import card, report
    from . import plan as planning

    started = time.perf_counter()
    wish = _wish(options, shard_bytes)
    destination = Path(options.mlx_path).expanduser().absolute()
    if not options.dry_run:
        _check_destination(destination)
        if options.upload_repo:
            card.check_repository(options.upload_repo)
    plan = _plan_before_fetching(options, wish, destination)
    if plan is None or not options.dry_run:
        source = find(options.hf_path, to_load=False)
        plan = planning.plan(source, wish)
    errors = None
    if not options.dry_run:
        copied = sorted({file for pattern in COPIED for file in source.glob(pattern) if file.is_file()})
        errors = _make(plan, options, destination, copied)
    for line in (*plan.undivided, *report.dropped(plan)):
        _say(line)
    if options.json:
        told = {"source": options.hf_path, "destination": str(destination), "dry_run": options.dry_run}
        print(json.dumps(told | report.as_json(plan, errors) | {"seconds": time.perf_counter() - started}))
    else:
        _print_table(plan, errors, sys.stdout if options.dry_run else sys.stderr)
    if options.dry_run:
        return
    seconds = time.perf_counter() - started
    _say(f"{destination}: {gigabytes(plan.nbytes)}, {plan.bits_per_weight:.2f} bits per weight, {seconds:.1f} s")
    if options.upload_repo:
        _say(f"sent to {card.upload(destination, options.upload_repo)}")


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return run(NAME, partial(_convert_or_say, options))


def _convert_or_say(options: argparse.Namespace) -> None:
    try:
        convert(options)
    except PermissionError as error:
        raise Mistake(f"no permission for {error.filename}") from error


if __name__ == "__main__":
    sys.exit(main())
