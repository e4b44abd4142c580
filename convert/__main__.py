"""`python -m mlx_dgemma.convert`: a DiffusionGemma checkpoint into an MLX folder, quantized or not, or back.

Options are named as mlx_lm.convert's. The same command goes on with a run that was killed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..checkpoint.config import DTYPES
from ..errors import Mistake
from ..terminal.command import Parser, run
from .recipes import BITS, MODES, NAMED

if TYPE_CHECKING:
    from .journal import Errors
    from .plan import Plan, Request

NAME = "mlx_dgemma.convert"


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Convert a DiffusionGemma checkpoint to an MLX folder.")
    add = parser.add_argument
    add("--hf-path", "--model", required=True, metavar="SRC", help="folder, or hub id, of the checkpoint")
    add("--revision", metavar="R", help="a commit, branch or tag of a hub id, as in --hf-path ID@R")
    add("--mlx-path", default="mlx_model", metavar="DST", help="folder to make")
    either = parser.add_mutually_exclusive_group().add_argument
    either("-q", "--quantize", action="store_true", help="quantize as the recipe says")
    either("-d", "--dequantize", action="store_true", help="back to plain weights in the layout of transformers")
    add("--q-bits", type=int, choices=BITS, help="of experts and self-conditioning (default: 4)")
    add("--q-group-size", type=int, help="weights that share a scale: 32 or 64 (default: 64, or the mode's own)")
    add("--q-mode", choices=list(MODES), help="of experts and self-conditioning (default: affine)")
    file = 'or a JSON file: {"*.self_attn.*": 8, "*.router.proj": false, ...}'
    add("--quant-predicate", metavar="RECIPE", help=f"{', '.join(NAMED)} (default: {NAMED[0]}), {file}")
    add("--dtype", choices=DTYPES, help="of scales and what is not quantized (default: the checkpoint's)")
    add("--text-only", action="store_true", help="leave the image tower out")
    add("--upload-repo", metavar="ID", help="send the folder to this hub repository")
    add("--dry-run", action="store_true", help="print what would be made, read no weights")
    add("--json", action="store_true", help="print one JSON object to stdout")
    return parser


def _quantization_flags(options: argparse.Namespace) -> dict[str, int | str | None]:
    values = {"--q-bits": options.q_bits, "--q-group-size": options.q_group_size, "--q-mode": options.q_mode}
    return values | {"--quant-predicate": options.quant_predicate}


def _request(options: argparse.Namespace) -> Request:
    """Mistake: flags that do not go together."""
    from .plan import Request
    from .recipes import choose, quantization

    recipe = default = None
    if options.quantize:
        name, group = options.quant_predicate or NAMED[0], options.q_group_size
        if name == "precise" and group is None and options.q_mode in (None, "affine"):
            group = 32
        default = quantization(options.q_mode, options.q_bits, group)
        recipe = partial(choose, name, default)
    elif flags := [flag for flag, value in _quantization_flags(options).items() if value is not None]:
        raise Mistake(f"{' and '.join(flags)}: need -q")
    return Request(recipe, default, options.dequantize, options.dtype, options.text_only)


def _command_line(options: argparse.Namespace) -> str:
    """Return the command as it could be typed again, without the user's folders."""
    path, recipe = Path(options.hf_path), options.quant_predicate
    values = {
        "--hf-path": path.name if path.is_dir() else options.hf_path,
        "-q": options.quantize,
        "-d": options.dequantize,
        **_quantization_flags(options),
        "--quant-predicate": recipe and Path(recipe).name,
        "--dtype": options.dtype,
        "--text-only": options.text_only,
    }
    return " ".join(flag if value is True else f"{flag} {value}" for flag, value in values.items() if value)


def _print_line(line: str) -> None:
    print(f"{NAME}: {line}", file=sys.stderr)


def _show(steps: Iterator[int], total: int, what: str) -> None:
    """Run through `steps` with a bar on stderr, if that is a terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from ..terminal.live import Bar

    columns = (BarColumn(None), TaskProgressColumn(), TimeRemainingColumn(), TransferSpeedColumn())
    with Bar(TextColumn("{task.description}"), *columns, hidden=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        for done in steps:
            bar.advance(task, done)


def _print_table(plan: Plan, errors: Errors | None, file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    from . import report

    table, (head, *rows) = Table(box=None, pad_edge=False), report.rows(plan, errors)
    for name in head:
        table.add_column(name, justify="left" if name in ("class", "stored as") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(file=file, width=None if file.isatty() else 120, highlight=False)
    console.print(table)
    console.print(report.memory_line(plan), soft_wrap=True)


def _plan_before_fetching(options: argparse.Namespace, request: Request, destination: Path) -> Plan | None:
    """Plan from a repository's headers, so that a mistake is known before 50 GB are fetched. None: all is here."""
    from ..checkpoint.hub import cached, is_hub_id, outline
    from .destination import check_room_to_fetch
    from .plan import plan

    if not is_hub_id(options.hf_path) or cached(options.hf_path):
        return None
    with outline(options.hf_path) as folder:
        planned = plan(folder, request)
        if not options.dry_run:
            check_room_to_fetch(planned, destination)
    return planned


def convert(options: argparse.Namespace) -> None:
    """Convert as the options say. Mistake: nothing was made, or the same command goes on."""
    from ..checkpoint.hub import find
    from ..checkpoint.memory import gigabytes
    from . import destination as folders
    from . import hub, report
    from .plan import plan

    started, request = time.perf_counter(), _request(options)
    destination = Path(options.mlx_path).expanduser().absolute()
    if not options.dry_run:
        folders.check(destination)
        if options.upload_repo:
            hub.check_repository(options.upload_repo)
    planned = _plan_before_fetching(options, request, destination)
    if planned is None or not options.dry_run:
        planned = plan(find(options.hf_path, to_load=False), request)
        if not options.dry_run and not (planned.source / "tokenizer.json").is_file():
            _print_line(f"{planned.source} has no tokenizer.json: copy one into what is made, or it cannot run")
    errors = None if options.dry_run else folders.make(planned, _command_line(options), destination, _show)
    seconds = time.perf_counter() - started
    for line in report.notes(planned):
        _print_line(line)
    if options.json:
        about = {"source": options.hf_path, "destination": str(destination), "dry_run": options.dry_run}
        print(json.dumps(about | report.as_json(planned, errors) | {"seconds": seconds}))
    else:
        _print_table(planned, errors, sys.stdout if options.dry_run else sys.stderr)
    if options.dry_run:
        return
    size, bits = gigabytes(planned.nbytes), planned.bits_per_weight
    _print_line(f"{destination}: {size}, {bits:.2f} bits per weight, {seconds:.1f} s")
    if options.upload_repo:
        _print_line(f"sent to {hub.upload(destination, options.upload_repo)}")


def _convert(options: argparse.Namespace) -> None:
    try:
        convert(options)
    except PermissionError as error:
        raise Mistake(f"no permission for {error.filename}") from error
    except KeyboardInterrupt:
        from .destination import unfinished

        if (part := unfinished(Path(options.mlx_path).expanduser().absolute())).is_dir():
            _print_line(f"interrupted; {part} is kept, the same command goes on with it")
        raise


def main(argv: list[str] | None = None) -> int:
    return run(NAME, partial(_convert, parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
