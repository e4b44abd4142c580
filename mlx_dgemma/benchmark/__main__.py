"""`python -m mlx_dgemma.benchmark` measures diffusion and autoregression on this machine; `predict`, `compare` and
`baseline` are commands beside it."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from ..checkpoint.hub import is_hub_id
from ..errors import Mistake, NotFound
from ..terminal import picture
from ..terminal.command import Parser, at_least, check_target, run
from . import baseline, compare, plot, predict
from .measure import Measurement
from .report import read_report, show

NAME = "mlx_dgemma.benchmark"
OTHERS = {"predict": predict, "compare": compare, "baseline": baseline}


def _numbers(text: str) -> list[int]:
    return [at_least(1)(part) for part in text.split(",")]


def parser() -> Parser:
    about = "Measure diffusion against autoregression on this machine. Other commands, each with --help: "
    parser = Parser(f"python -m {NAME}", f"{about}{', '.join(OTHERS)}.")
    add = parser.add_argument
    add("--model", metavar="FOLDER_OR_HUB_ID", help="a DiffusionGemma checkpoint; without it, the embedded one")
    add("--dummy", metavar="NAME", help="random weights of a published shape instead, such as 26b-a4b")
    add("--precision", metavar="NAME", help="of --dummy: float32, bf16, 4bit, or fp8 on torch (default: bf16)")
    add("--peaked", type=float, metavar="X", help="of --dummy: a factor on the logits (default: 1, flat predictions)")
    add("--steps-per-block", type=at_least(1), default=12, metavar="N", help="assumed where none are measured")
    add("--backend", choices=["mlx", "torch"], help="(default: what the machine has)")
    add("--dtype", metavar="NAME", help="of activations: float32, bfloat16 or float16 (default: the checkpoint's)")
    add("--ar-model", metavar="FOLDER_OR_HUB_ID", help="an autoregressive model to compare with; see `baseline`")
    add("--prompts", metavar="FILE.jsonl", help='what is answered: one {"prompt": …} a line (default: the tasks)')
    add("--each", type=at_least(1), default=2, metavar="N", help="prompts of each task, where these are answered")
    add("--max-tokens", type=at_least(1), metavar="N", help="of an answer, in every mode (default: one canvas)")
    add("--max-denoising-steps", type=at_least(1), metavar="N", help="(default: the checkpoint's)")
    add("--context", type=_numbers, default=[512], metavar="N,…", help="tokens before a timed pass")
    add("--batch", type=_numbers, default=[1], metavar="N,…", help="sequences in a timed pass")
    add("--repeat", type=at_least(2), default=8, metavar="N", help="times a pass is timed")
    add("--seeds", type=at_least(1), default=3, metavar="N", help="times all prompts are answered")
    add("--seed", type=at_least(0), default=0, metavar="N", help="the first of them")
    add("--json", action="store_true", help="print the report as one JSON object instead of tables")
    add("--out", metavar="FILE.json", help="write the report there, too")
    add("--plot", metavar="FILE.png", help="draw both ways of writing over the steps of a block")
    return parser


def check_flags(options: Namespace) -> None:
    """Checks what can be checked before anything is loaded. Mistake names the flag."""
    if options.dummy:
        flags = {"--model": options.model, "--prompts": options.prompts, "--ar-model": options.ar_model}
        if clash := [name for name, value in (flags | {"--dtype": options.dtype}).items() if value]:
            raise Mistake(f"--dummy has random weights and no tokenizer: leave out {', '.join(clash)}")
    elif options.precision or options.peaked:
        raise Mistake("--precision and --peaked are of --dummy NAME; a checkpoint is taken as it is stored")
    if (path := options.ar_model) and not Path(path).is_dir() and not is_hub_id(path):
        raise NotFound(f"--ar-model {path}: no such folder, and no hub id either")
    if options.plot:
        picture.check(Path(options.plot))
    if options.out is not None:
        check_target("--out", Path(options.out))
        if Path(options.out).exists() and Path(options.out).stat().st_size:
            read_report(Path(options.out))  # anything else is not ours to overwrite


def measure(options: Namespace, arguments: list[str]) -> int:
    check_flags(options)
    measurement = Measurement(options, [NAME, *arguments])
    report = measurement.report
    try:
        measurement.run()
    finally:  # whatever stopped it, what was measured is shown
        if report["passes"]:
            print(json.dumps(report, ensure_ascii=False)) if options.json else show(report)
    if options.plot and report["passes"]:
        plot.plot_machines([(report["machine"]["device"]["name"], report)], Path(options.plot))
    return 130 if report["interrupted"] else 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and (module := OTHERS.get(arguments[0])):
        options = module.parser().parse_args(arguments[1:])
        return run(f"{NAME} {arguments[0]}", lambda: module.command(options))
    options = parser().parse_args(arguments)
    return run(NAME, lambda: measure(options, arguments))


if __name__ == "__main__":
    sys.exit(main())
