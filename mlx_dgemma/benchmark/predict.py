"""Predicts which mode is faster on a machine: at its ceilings, which are an upper bound, and as published builds reach
them, with their spread; or from the ceilings that a report measured, beside what it measured."""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from ..checkpoint.config import parse_config
from ..checkpoint.memory import gigabytes
from ..checkpoint.shares import Share
from ..errors import Mistake
from ..terminal.command import Parser, at_least
from ..terminal.picture import check
from ..terminal.table import ms, plain, print_table
from . import fits
from .count import BITS, Count, break_even, tokens_per_second
from .devices import DEVICES, LINKS, ROWS, SHAPE, Published, Range, alike, device, expected, left_out
from .passes import Ceilings
from .plot import plot_published
from .report import read_report, whole
from .subject import published

METAL_STEP = Path(__file__).with_name("metal_step.json")  # counted by tests/measure/count_step.py
STEPS = (4, 8, 12, 16, 24, 32, 48)
KINDS = {"step": "a denoise step", "commit": "a commit", "token": "a token left to right"}
# Steps that a full canvas takes, as others saw them with the published model.
WORKLOADS = {"JSON, short answers": (2, 5), "maths, code": (10, 20), "prose": (20, 35)}


def speeds(canvas: int, seconds: dict[str, float], rows: int = 1) -> dict[str, Any]:
    """Returns tokens a second of both modes and the break-even, given the seconds of a step, a commit and a token."""
    step, commit = seconds["step"], seconds["commit"]
    return {
        "seconds": seconds,
        "autoregression": rows / seconds["token"],
        "diffusion": {n: tokens_per_second(canvas, n, step, commit, rows) for n in STEPS},
        "break_even": break_even(canvas, **seconds),
    }


def prediction(count: Count, context: int, ceilings: Ceilings, rows: int = 1) -> dict[str, Any]:
    """Predicts both modes at these ceilings, `rows` sequences behind `context` tokens each."""
    passes = count.passes(context, rows)
    seconds = {name: work.seconds(*ceilings) for name, work in passes.items()}
    by_bytes = seconds["step"] > passes["step"].total_flops / ceilings[1]
    about = {"context": context, "rows": rows, "bound_by": "bytes" if by_bytes else "FLOPs"}
    return about | speeds(count.config.canvas_length, seconds, rows)


def advice(steps: float) -> dict[str, str]:
    """Names the faster mode for each workload, where diffusion wins below `steps` a block."""
    return {
        name: "diffusion" if most < steps else "autoregression" if least > steps else "either"
        for name, (least, most) in WORKLOADS.items()
    }


def predict_device(options: argparse.Namespace) -> dict[str, Any]:
    machine, config = device(options.device), published(options.shape)
    count = Count(config, BITS[options.precision])
    ceiling = prediction(count, options.context, (machine.bandwidth, machine.flops_for(options.precision)))
    near = {kind: alike(kind, machine.family, options.precision, ROWS) for kind in ("step", "token")}
    floors = ceiling["seconds"].items()
    ranges = [expected(floor, near["token" if name == "token" else "step"]) for name, floor in floors]
    reached = [speeds(config.canvas_length, dict(zip(KINDS, each, strict=True))) for each in zip(*ranges, strict=True)]
    counted = json.loads(METAL_STEP.read_text())
    known = (options.precision, options.shape) == (counted["precision"], SHAPE)
    return ceiling | {
        "device": options.device, "name": machine.name, "sources": machine.sources, "precision": options.precision,
        "memory": machine.memory, "needed_memory": count.resident + count.token(options.context).bytes["attention"],
        "reached": dict(zip(("fastest", "middle", "slowest"), reached, strict=True)),
        "measured": [{row.kind: row.seconds, "source": f"{row.build}; {row.source}"} for row in ROWS
                     if (row.device, row.precision) == (options.device, options.precision)],
        "counted": counted["milliseconds"].get(options.device, {}) if known else {},
        "sent": (sent := Share(0, 2).sent(config, 2)), "links": {link: sent / rate for link, rate in LINKS.items()},
    }  # fmt: skip


def predict_report(path: Path) -> dict[str, Any]:
    """Predicts from the ceilings that a report measured; what is reached is what it measured of the passes."""
    report = read_report(path)
    if not report["passes"]:
        raise Mistake(f"{path}: no passes were measured in it; run the benchmark to its end")
    ceilings, point = report["ceilings"], report["passes"][0]
    count = Count(parse_config(report["config"]), report["bits"], report["kv_bytes"])
    rates = ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    seconds = {name: point[name]["seconds"]["median"] for name in KINDS}
    return prediction(count, point["context"], rates, point["rows"]) | {
        "name": report["machine"]["device"]["name"], "precision": report["settings"]["precision"],
        "measured": [seconds | point["break_even"] | {"source": str(path)}],
        "reached": {"middle": speeds(count.config.canvas_length, seconds, point["rows"])},
    }  # fmt: skip


def show(predicted: dict[str, Any]) -> None:
    """Prints what is at the ceiling beside what is reached, then the advice and the published rows."""
    at_once = f", {predicted['rows']} at once" if predicted["rows"] > 1 else ""
    about = f"{predicted['name']}, {predicted['precision']}, {predicted['context']:,} tokens of context{at_once}"
    notes = [("machine", about), *((f"  {name}", source) for name, source in predicted.get("sources", {}).items())]
    if "memory" in predicted:
        needed, memory = predicted["needed_memory"], predicted["memory"]
        fits = ": does not fit, the figures are of a larger one" * (needed > memory)
        notes.append(("memory", f"{gigabytes(needed)} of the {gigabytes(memory)} of the GPU{fits}"))
        notes += [(f"two ranks over {link}", f"{ms(took)} ms a step") for link, took in predicted["links"].items()]
    print_table(("", ""), notes, left=2)
    reached = predicted["reached"]
    columns = [predicted, *(reached[name] for name in ("middle", "fastest", "slowest") if name in reached)]
    table = [[f"{title}, ms", *(ms(part["seconds"][name]) for part in columns)] for name, title in KINDS.items()]
    table[0][0] += f", bound by {predicted['bound_by']}"
    table.append(["left to right, tokens/s", *(plain(part["autoregression"]) for part in columns)])
    table += [[f"diffusion, tokens/s at {n} steps", *(plain(part["diffusion"][n]) for part in columns)] for n in STEPS]
    table.append(["break-even, steps a block", *(plain(part["break_even"]["steps"]) for part in columns)])
    print_table(["", "at the ceiling", "reached", "by fast builds", "by slow builds"][: 1 + len(columns)], table)
    advised = [(f"{name}, {low}-{high} steps", predicted["advice"][name]) for name, (low, high) in WORKLOADS.items()]
    print_table(("faster, by what is reached", ""), advised, left=2)
    seen = [(f"measured, {KINDS[kind]}, ms", ms(row[kind]), row["source"])
            for row in predicted["measured"] for kind in KINDS if kind in row]  # fmt: skip
    print_table(("", "", ""), seen, left=3)
    if counted := predicted.get("counted"):
        titles = ("a step by its counted kernels, predicted, context 512", "ms")
        print_table(titles, [(path, str(milliseconds)) for path, milliseconds in counted.items()])


def error(row: Published, predicted: Range) -> float:
    """Returns |log ratio| of predicted to published seconds."""
    return abs(math.log(predicted[1] / row.seconds))


def cells(row: Published, predicted: Range) -> list[str]:
    """Returns machine, weights, build, published and predicted ms, their ratio, a reason."""
    fastest, middle, slowest = map(ms, predicted)
    name = device(row.device).name.split(",")[0] + (f", canvas {row.canvas}" if row.canvas != 256 else "")
    name += f", {row.context:,} before" if row.context > 10_000 else ""
    numbers = [ms(row.seconds), f"{middle} ({fastest}-{slowest})", f"{predicted[1] / row.seconds:.2f}"]
    return [name, row.precision, row.build, *numbers, row.reason or ""]


def show_published(options: argparse.Namespace) -> None:
    """Prints every published measurement beside what all the others predict for it."""
    pairs = left_out()
    if options.plot:
        plot_published(pairs, Path(options.plot))
    if options.json:
        print(json.dumps([vars(row) | {"seconds": row.seconds, "predicted": near} for row, near in pairs]))
        return
    for kind in ("step", "token"):
        chosen = [pair for pair in pairs if pair[0].kind == kind]
        titles = (KINDS[kind], "weights", "build", "published, ms", "predicted (spread)", "ratio", "")
        print_table(titles, [cells(*pair) for pair in chosen], left=3)
        print(f"median |log ratio| {statistics.median(error(*pair) for pair in chosen):.2f}\n")


def parser() -> Parser:
    parser = Parser("python -m mlx_dgemma.benchmark predict", "Tokens a second of both modes, without measuring.")
    add = parser.add_argument
    add("--device", metavar="NAME", help=f"one of {', '.join(DEVICES)}")
    add("--report", metavar="FILE.json", help="take the ceilings that this report measured instead")
    add("--memory", type=at_least(8), metavar="GB", help="of a Mac: which weights go into it, with how long a text")
    add("--published", action="store_true", help="what others measured, each row predicted from all the others")
    add("--plot", metavar="FILE.png", help="with --published: draw it")
    add("--precision", choices=list(BITS), default="4bit", help="of the weights")
    add("--context", type=at_least(0), default=512, metavar="N", help="tokens before the canvas")
    add("--shape", default=SHAPE, metavar="NAME", help="a published shape")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def command(options: argparse.Namespace) -> int:
    if [bool(one) for one in (options.device, options.report, options.published, options.memory)].count(True) != 1:
        choice = "need one of --device NAME or --report FILE.json, --published, --memory GB"
        raise Mistake(f"{choice}; devices: {', '.join(DEVICES)}")
    if options.plot:
        if not options.published:
            raise Mistake("--plot draws what is --published")
        check(Path(options.plot))
    if options.published:
        show_published(options)
        return 0
    if options.memory:
        print(json.dumps(fits.fits(options.memory))) if options.json else fits.show(options.memory)
        return 0
    with whole(options.report or options.device):
        predicted = predict_device(options) if options.device else predict_report(Path(options.report))
        predicted["advice"] = advice(predicted["reached"]["middle"]["break_even"]["steps"])
        print(json.dumps(predicted)) if options.json else show(predicted)
    return 0
