"""Predicts which mode is faster on a machine, from its bandwidth, its FLOP rates and the counted work, or a report.

Both modes are taken at the machine's ceilings, so each number is an upper bound and their ratio an estimate. What was
measured, by others or in a report, stands beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.config import parse_config
from ..checkpoint.memory import gigabytes
from ..errors import Mistake
from ..terminal.command import Parser, at_least
from .count import PRECISIONS, BreakEven, Count, precision, tokens_per_second
from .devices import device, devices
from .report import read_report
from .shapes import published
from .tables import ms, plain, print_lines

SHAPE = "26b-a4b"  # of which there are measurements
STEPS = (4, 8, 12, 16, 24, 32, 48)
WORKLOADS = {  # steps a full canvas takes, as others saw them with the published model
    "JSON, short answers": (2, 5),
    "maths, code": (10, 20),
    "prose": (20, 35),
}


def prediction(
    count: Count, context: int, bytes_per_second: float, flops_per_second: float, rows: int = 1
) -> dict[str, Any]:
    """Predicts both modes at these ceilings, `rows` sequences behind `context` tokens each: seconds of the passes,
    tokens a second of all sequences, the break-even."""
    step, canvas = count.denoise(context, rows), count.config.canvas_length
    passes = {"step": step, "commit": count.commit(context, rows), "token": count.token(context, rows)}
    seconds = {name: work.seconds(bytes_per_second, flops_per_second) for name, work in passes.items()}
    by_bytes = step.total_bytes / bytes_per_second > step.total_flops / flops_per_second
    return {
        "seconds": seconds,
        "bound_by": "bytes" if by_bytes else "FLOPs",
        "autoregression": rows / seconds["token"],
        "diffusion": {n: tokens_per_second(canvas, n, seconds["step"], seconds["commit"], rows) for n in STEPS},
        "break_even": asdict(BreakEven.of(canvas, **seconds)),
    }


def advice(steps: float) -> dict[str, str]:
    """Names the faster mode for each workload, where diffusion wins below `steps` a block."""

    def mode(fewest: int, most: int) -> str:
        return "diffusion" if most < steps else "autoregression" if fewest > steps else "either"

    return {name: mode(*usual) for name, usual in WORKLOADS.items()}


def with_advice(found: dict[str, Any], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds the advice to a prediction, by what was measured where something was."""
    even = measured[0] if measured else found["break_even"]
    by = "measured" if measured else "predicted"
    return found | {"measured": measured, "advised_by": by, "advice": advice(even["steps"])}


def predict_device(options: argparse.Namespace) -> dict[str, Any]:
    machine, config = device(options.device), published(options.shape)
    count = Count(config, precision(options.precision))
    measured = []
    for pair in machine.measured if options.shape == SHAPE else ():
        if pair["precision"] == options.precision:
            step, token = pair["step"], 1 / pair["tokens_per_second"]
            even = BreakEven.of(config.canvas_length, step, 0.0, token)  # nobody tells what a commit takes
            measured.append({"step": step, "token": token, **asdict(even), "source": pair["source"]})
    found = {
        "device": options.device, "name": machine.name, "sources": machine.sources, "context": options.context,
        "rows": 1, "precision": options.precision, "memory": machine.memory,
        "needed_memory": count.resident + count.token(options.context).bytes["attention"],
        **prediction(count, options.context, machine.bandwidth, machine.flops_for(options.precision)),
    }  # fmt: skip
    return with_advice(found, measured)


def predict_report(path: Path) -> dict[str, Any]:
    """Predicts from the ceilings that a report measured, beside what it measured of the passes."""
    report = read_report(path)
    if not report["passes"]:
        raise Mistake(f"{path}: no passes were measured in it; run the benchmark to its end")
    ceilings, point = report["ceilings"], report["passes"][0]
    count = Count(parse_config(report["config"]), report["bits"], report["kv_bytes"])
    rates = ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    found = {
        "device": None, "name": report["machine"]["device"]["name"], "context": point["context"],
        "rows": point["rows"], "precision": report["settings"]["precision"],
        **prediction(count, point["context"], *rates, rows=point["rows"]),
    }  # fmt: skip
    step, token = (point[name]["seconds"]["median"] for name in ("step", "token"))
    return with_advice(found, [{"step": step, "token": token, **point["break_even"], "source": str(path)}])


def equal(even: dict[str, Any]) -> str:
    """Says where both modes are equally fast."""
    if even["steps"] < 1:
        return "none: not even one step a block would be few enough for diffusion"
    return f"{plain(even['steps'])} steps a block = {plain(even['tokens_per_forward'])} tokens per forward"


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Writes a prediction as lines of a figure and its value."""
    seconds = {name: f"{ms(value)} ms" for name, value in found["seconds"].items()}
    behind = f"{found['context']:,} tokens of context" + (f", {found['rows']} at once" if found["rows"] > 1 else "")
    lines = [("machine", f"{found['name']}, {found['precision']}, {behind}")]
    lines += [(f"  {name}", source) for name, source in found.get("sources", {}).items()]
    if "memory" in found:
        fits = "" if found["needed_memory"] <= found["memory"] else ": does not fit, the figures are of a larger one"
        lines.append(("memory", f"{gigabytes(found['needed_memory'])} of {gigabytes(found['memory'])}{fits}"))
    speeds = ", ".join(f"{plain(speed)} at {steps} steps" for steps, speed in found["diffusion"].items())
    lines += [
        ("denoise step", f"{seconds['step']}, bound by {found['bound_by']}"),
        ("commit", seconds["commit"]),
        ("left to right", f"{plain(found['autoregression'])} tokens/s, {seconds['token']} a token"),
        ("diffusion", f"tokens/s {speeds}"),
        ("break-even", equal(found["break_even"])),
    ]
    for pair in found["measured"]:
        step, token = (f"{name} {ms(pair[name])} ms ({seconds[name]} predicted)" for name in ("step", "token"))
        lines.append(("measured", f"{step}, {token}, break-even {equal(pair)}; {pair['source']}"))
    lines.append((f"faster, as {found['advised_by']}", ""))
    steps = {name: "-".join(map(str, usual)) for name, usual in WORKLOADS.items()}
    return lines + [(f"  {name}, {steps[name]} steps", mode) for name, mode in found["advice"].items()]


def parser() -> Parser:
    parser = Parser(
        prog="python -m mlx_dgemma.benchmark predict",
        description="Tokens a second of both modes at a machine's ceilings, and which to use. Nothing is measured.",
    )
    add = parser.add_argument
    add("--device", metavar="NAME", help=f"one of {', '.join(devices())}")
    add("--report", metavar="FILE.json", help="take the ceilings that this report measured instead")
    add("--precision", choices=list(PRECISIONS), default="4bit", help="of the weights")
    add("--context", type=at_least(0), default=512, metavar="N", help="tokens before the canvas")
    add("--shape", default=SHAPE, metavar="NAME", help="a published shape")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def command(options: argparse.Namespace) -> int:
    if (options.device is None) == (options.report is None):
        raise Mistake(f"need --device NAME or --report FILE.json; devices: {', '.join(devices())}")
    found = predict_device(options) if options.device else predict_report(Path(options.report))
    print(json.dumps(found)) if options.json else print_lines(lines(found))
    return 0
